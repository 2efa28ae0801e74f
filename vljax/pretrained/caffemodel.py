"""Caffe's `.caffemodel`, read without Caffe and without a protobuf library.

The file is one protobuf message (`NetParameter` of Caffe's `caffe.proto`), of which five kinds of
field are needed:

| message | field |
|---|---|
| network | 100: a layer; in files of 2014 and before 2: a layer |
| layer | 1: name, 7: a blob (old: 4: name, 5: type, 6: a blob) |
| blob | 7: shape, 5: floats, 8: doubles (old: 1 to 4: the four sides) |
| shape | 1: sides |

In protobuf's encoding a field is a varint, of which the low three bits say how its value is
written and the rest its number, then the value: 0 is a varint, 1 eight bytes, 2 a length and that
many bytes, 5 four bytes. All other fields (geometry, losses, data sources) are passed over.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vljax.errors import UserError

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

# A layer's fields: number in the network, then of its name and its blobs.
_LAYERS = {100: (1, 7), 2: (4, 6)}
# In the old form every array has four sides, and the layer's type (field 5) says how many of a
# weight's count: of convolution, deconvolution and linear layer.
_OLD_TYPE, _OLD_SIDES = 5, {4: 4, 39: 4, 14: 2}


class _DamageError(ValueError):
    """The bytes are not what the format promises."""


def read_caffemodel(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The learned arrays of a caffemodel by `layer.index`, in the layer's own order.

    A convolution's `.0` is its weight (out, in, height, width) and `.1` its bias; a linear layer's
    `.0` is (out, in); an LSTM's are the weight of the input, the bias, and the weight of the state.

    Args:
        path: The file.

    Returns:
        Arrays of float32, or of float64 where the file has doubles.

    Raises:
        UserError: the file cannot be read, is damaged, or holds no learned layer.
    """
    try:
        data = memoryview(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"no checkpoint at {path} ({error}): give a file that exists") from error
    tensors: dict[str, np.ndarray] = {}
    try:
        for number, value in _fields(data):
            if number in _LAYERS:
                layer = _layer(_message(value), *_LAYERS[number], old=number == 2)
                if repeated := layer.keys() & tensors.keys():
                    raise _DamageError(f"two layers hold {min(repeated)}")
                tensors |= layer
    except _DamageError as error:
        raise UserError(f"{path} is not a readable caffemodel ({error}): fetch it again") from error
    if not tensors:
        raise UserError(
            f"{path} holds no learned layers: give a .caffemodel, which is written by training, "
            "not a .prototxt"
        )
    return tensors


def by_path(blobs: Mapping[str, np.ndarray], layers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """A caffemodel's arrays by the paths of our parameters.

    Args:
        blobs: What `read_caffemodel` returned.
        layers: The path of our layer for each of theirs. A layer of three arrays is an LSTM, one of
            one or two a linear layer, a convolution or an embedding; a 1×1 kernel becomes a matrix.

    Returns:
        The renamed arrays; those of other layers keep their names, and the importer lists them.
    """
    renamed = {}
    for name, blob in blobs.items():
        layer, _, index = name.rpartition(".")
        recurrent = f"{layer}.2" in blobs
        fields = ("weight_ih", "bias", "weight_hh") if recurrent else ("weight", "bias")
        if layer not in layers or int(index) >= len(fields):
            renamed[name] = blob
        else:
            pointwise = blob.ndim == 4 and blob.shape[2:] == (1, 1)
            blob = blob[:, :, 0, 0] if pointwise else blob
            renamed[f"{layers[layer]}.{fields[int(index)]}"] = blob
    return renamed


def _layer(data: memoryview, name: int, blobs: int, *, old: bool) -> dict[str, np.ndarray]:
    title, kind, values = "", 0, []
    for number, value in _fields(data):
        if number == name:
            try:
                title = str(_message(value), "utf-8")
            except UnicodeDecodeError as error:
                raise _DamageError("a layer's name is no text") from error
        elif number == blobs:
            values.append(_message(value))
        elif old and number == _OLD_TYPE:
            kind = _integer(value)
    if values and not title:
        raise _DamageError("a layer with weights has no name")
    return {
        f"{title}.{i}": _blob(blob, f"{title}.{i}", 1 if i else _OLD_SIDES.get(kind, 1))
        for i, blob in enumerate(values)
    }


def _blob(data: memoryview, name: str, least: int) -> np.ndarray:
    """An array, which if in the old form has at least so many sides."""
    shape: list[int] | None = None
    sides: dict[int, int] = {}
    floats: list[memoryview] = []
    doubles: list[memoryview] = []
    for number, value in _fields(data):
        if number == 7:
            shape = _shape(_message(value))
        elif number in (1, 2, 3, 4):
            sides[number] = _integer(value)
        elif number in (5, 8):
            wanted = (_FOUR, _BYTES) if number == 5 else (_EIGHT, _BYTES)
            if value[0] not in wanted or not isinstance(value[1], memoryview):
                raise _DamageError(f"the numbers of {name} are written in a wrong way")
            (floats if number == 5 else doubles).append(value[1])
    dtype, parts = ("<f8", doubles) if doubles else ("<f4", floats)
    raw = b"".join(parts)
    if len(raw) % np.dtype(dtype).itemsize:
        raise _DamageError(f"the numbers of {name} are cut off")
    array = np.frombuffer(raw, dtype)
    if shape is None:
        shape = [sides.get(i, 1) for i in (1, 2, 3, 4)] if sides else [array.size]
        while len(shape) > least and shape[0] == 1:
            shape = shape[1:]
    # Compared before anything is made, so that a wild shape costs nothing.
    if math.prod(shape) != array.size or not array.size:
        raise _DamageError(f"{name} holds {array.size} numbers, but its shape is {shape}")
    return array.reshape(shape).astype(dtype[1:])


def _shape(data: memoryview) -> list[int]:
    sides: list[int] = []
    for number, (wire, value) in _fields(data):
        if number != 1:
            continue
        if wire == _VARINT and isinstance(value, int):
            sides.append(value)
        elif wire == _BYTES and isinstance(value, memoryview):
            place = 0
            while place < len(value):
                side, place = _varint(value, place)
                sides.append(side)
        else:
            raise _DamageError("a shape is written in a wrong way")
        if len(sides) > 32:
            raise _DamageError("a shape has more than 32 sides")
    return sides


# How a value was written, and the value.
_Value = tuple[int, int | memoryview]


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """The fields of a message, in their order."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _DamageError("a field has the number 0")
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield number, (wire, value)
            continue
        if wire == _BYTES:
            size, place = _varint(data, place)
        elif wire in (_EIGHT, _FOUR):
            size = 8 if wire == _EIGHT else 4
        else:
            raise _DamageError(f"field {number} is written in the unknown way {wire}")
        if size > len(data) - place:
            raise _DamageError(
                f"field {number} ends {size - len(data) + place} bytes after the data"
            )
        yield number, (wire, data[place : place + size])
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _DamageError("a number is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise _DamageError("a number has more than ten bytes")


def _message(value: _Value) -> memoryview:
    if not isinstance(value[1], memoryview) or value[0] != _BYTES:
        raise _DamageError("a number stands where a name, a layer or an array should be")
    return value[1]


def _integer(value: _Value) -> int:
    if not isinstance(value[1], int):
        raise _DamageError("something else stands where a whole number should be")
    return value[1]
