"""Caffe's files: written by an encoder of this test, read by names, refused when damaged."""

import struct

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.recurrent import LSTM
from vljax.pretrained.caffemodel import read_caffemodel


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field, value):
    return varint(field << 3) + varint(value)


def part(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def blob(array, *, old=False, doubles=False, packed=True):
    """A `BlobProto`; the old form has four sides in fields of their own."""
    if old:
        sides = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(number(i + 1, side) for i, side in enumerate(sides))
    else:
        head = part(7, part(1, b"".join(map(varint, array.shape))))
    if doubles:
        return head + part(8, array.astype("<f8").tobytes())
    if not packed:
        tag = varint(5 << 3 | 5)
        return head + b"".join(tag + struct.pack("<f", x) for x in array.ravel())
    return head + part(5, array.astype("<f4").tobytes())


def layer(name, arrays, kind="Convolution"):
    parameters = part(106, number(1, 3))  # a geometry that readers of weights pass over
    blobs = b"".join(part(7, blob(a)) for a in arrays)
    return part(100, part(1, name.encode()) + part(2, kind.encode()) + blobs + parameters)


def old_layer(name, arrays, kind):
    blobs = b"".join(part(6, blob(a, old=True)) for a in arrays)
    return part(2, number(5, kind) + part(4, name.encode()) + blobs)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read(tmp_path, data):
    path = tmp_path / "net.caffemodel"
    path.write_bytes(data)
    return read_caffemodel(path)


def test_layers_are_read_by_name(tmp_path, rng):
    arrays = [rng.standard_normal(shape, np.float32) for shape in ((4, 3, 1, 1), (4,), (5, 4))]
    data = (
        part(1, b"a net")
        + layer("i_emb", arrays[:2])
        + layer("relu", [], "ReLU")
        + layer("prediction", arrays[2:], "InnerProduct")
        + varint(200 << 3 | 1)
        + bytes(8)
    )
    tensors = read(tmp_path, data)
    assert list(tensors) == ["i_emb.0", "i_emb.1", "prediction.0"]
    for tensor, array in zip(tensors.values(), arrays, strict=True):
        np.testing.assert_array_equal(tensor, array)
    np.testing.assert_array_equal(
        pretrained.read_tensors(tmp_path / "net.caffemodel")["i_emb.1"], arrays[1]
    )


def test_the_form_of_2014_is_read(tmp_path, rng):
    kernel, bias, row = (rng.standard_normal(s, np.float32) for s in ((1, 3, 1, 1), (1,), (1, 6)))
    tensors = read(tmp_path, old_layer("conv", [kernel, bias], 4) + old_layer("fc", [row], 14))
    np.testing.assert_array_equal(tensors["conv.0"], kernel)
    np.testing.assert_array_equal(tensors["conv.1"], bias)
    np.testing.assert_array_equal(tensors["fc.0"], row)


@pytest.mark.parametrize("form", [{"doubles": True}, {"packed": False}])
def test_other_ways_to_write_numbers(tmp_path, rng, form):
    array = rng.standard_normal((3, 2)).astype(np.float32)
    tensors = read(tmp_path, part(100, part(1, b"x") + part(7, blob(array, **form))))
    np.testing.assert_array_equal(tensors["x.0"], array)


def test_an_lstm_comes_in_caffes_order(tmp_path, rng):
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((24, 5), (24,), (24, 6))]
    path = tmp_path / "net.caffemodel"
    path.write_bytes(layer("lstm1", arrays, "LSTM"))

    class Net(nnx.Module):
        def __init__(self):
            self.lstm1 = LSTM(5, 6, rngs=nnx.Rngs(0))

    model = pretrained.load(jax.eval_shape(Net), path)
    np.testing.assert_array_equal(model.lstm1.weight_ih[...], arrays[0].T)
    np.testing.assert_array_equal(model.lstm1.bias[...], arrays[1])
    np.testing.assert_array_equal(model.lstm1.weight_hh[...], arrays[2].T)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (part(100, part(1, b"x") + part(7, blob(np.ones(4))[:-1])), "ends 1 bytes after"),
        (layer("x", [np.ones(4)])[:-2], "ends 2 bytes after"),
        (b"\xff", "a number is cut off"),
        (b"\xff" * 11, "more than ten bytes"),
        (number(100, 3), "a number stands where"),
        (part(100, number(1, 3)), "a number stands where"),
        (part(100, part(1, b"x") + number(7, 1)), "a number stands where"),
        (part(100, part(1, b"\xff") + part(7, blob(np.ones(1)))), "name is no text"),
        (part(100, part(7, blob(np.ones(1)))), "has no name"),
        (part(100, part(1, b"x") + part(7, number(5, 3))), "written in a wrong way"),
        (part(100, part(1, b"x") + part(7, number(7, 3))), "a number stands where"),
        (part(100, part(1, b"x") + part(7, part(5, b"123"))), "cut off"),
        (
            part(100, part(1, b"x") + part(7, part(7, part(1, varint(2**62))))),
            r"x.0 holds 0 numbers, but its shape is \[4611686018427387904\]",
        ),
        (part(100, part(1, b"x") + part(7, part(7, part(1, varint(1) * 40)))), "32 sides"),
        (part(100, part(1, b"x") + part(7, part(7, part(1, varint(0))))), "holds 0 numbers"),
        (varint(3 << 3 | 3), "unknown way 3"),
        (b"\x00\x00", "has the number 0"),
        (layer("x", [np.ones(1)]) * 2, "two layers hold x.0"),
    ],
)
def test_damage_is_named(tmp_path, data, problem):
    with pytest.raises(UserError, match=f"not a readable caffemodel .*{problem}"):
        read(tmp_path, data)


def test_what_holds_no_weights_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no learned layers"):
        read(tmp_path, part(1, b"a net"))
    with pytest.raises(UserError, match="no checkpoint at"):
        read_caffemodel(tmp_path / "absent.caffemodel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=150, deadline=None, database=None)
@given(st.data())
def test_no_bytes_do_harm(folder, data):
    """Cut or changed anywhere, a file is read or refused in words."""
    whole = layer("conv1", [np.ones((2, 3, 1, 1)), np.ones(2)]) + old_layer("fc", [np.ones(3)], 14)
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if changed else 0):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = read(folder, bytes(changed))
    except UserError:
        return
    assert sum(t.size for t in tensors.values()) <= len(whole)
