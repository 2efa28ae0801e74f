"""Pointing maps and features of pictures, whatever their files hold."""

import io

import numpy as np
import pytest

from vljax.data.pictures.features import Features, compute_features, read_features
from vljax.data.pictures.images import write_png
from vljax.data.pictures.maps import (
    find_hat,
    find_pointing,
    heat_colours,
    mean_map,
    named_pointing,
    read_hat,
    read_pointing,
)
from vljax.errors import UserError

RNG = np.random.default_rng(0)
THREE = RNG.random((3, 20, 30)).astype(np.float32)


@pytest.mark.parametrize(
    ("arrays", "expected", "told"),
    [
        ({"x": THREE}, THREE, "3 of 20×30 from 'x' float32 [3, 20, 30]"),
        ({"x": THREE.transpose(1, 2, 0)}, THREE, "3 of 20×30 from 'x' float32 [20, 30, 3]"),
        ({"map": THREE[0]}, THREE[:1], "1 of 20×30 from 'map' float32 [20, 30]"),
        ({"b": THREE[1], "a": THREE[0]}, THREE[:2], "'a' float32 [20, 30], 'b' float32 [20, 30]"),
        ({"x": THREE > 0.5}, THREE > 0.5, "'x' bool [3, 20, 30]"),
        ({"x": np.uint8(255 * THREE)}, np.uint8(255 * THREE), "'x' uint8"),
    ],
)
def test_maps_are_found_and_told(tmp_path, arrays, expected, told):
    np.savez(tmp_path / "p.npz", **arrays)
    found = read_pointing(tmp_path / "p.npz")
    assert found.maps.dtype == np.float32
    np.testing.assert_array_equal(found.maps, expected)
    assert told in found.told


def test_a_single_array_without_a_name(tmp_path):
    np.save(tmp_path / "p.npy", THREE)
    np.testing.assert_array_equal(read_pointing(tmp_path / "p.npy").maps, THREE)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, "holds nothing"),
        ({"x": np.zeros(7)}, r"holds 'x' float64 \[7\]"),
        ({"x": np.zeros((3, 3, 20, 30))}, r"\[3, 3, 20, 30\]"),
        ({"x": np.zeros((20, 20, 30))}, r"\[20, 20, 30\]"),
        ({"x": np.zeros((20, 30)), "y": np.zeros((20, 31))}, r"'y' float64 \[20, 31\]"),
        ({"x": THREE, "y": THREE}, "holds 'x'"),
        ({"x": -THREE}, "below 0"),
        ({"x": THREE * np.nan}, "not finite"),
        ({"x": np.array(["a"])}, "'x' is <U1"),
        ({"x": np.zeros((0, 3))}, "'x' is float64"),
    ],
)
def test_what_is_no_map_is_told(tmp_path, arrays, told):
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(UserError, match=told) as error:
        read_pointing(tmp_path / "p.npz")
    assert "p.npz" in str(error.value)
    assert "give a pointing map" in str(error.value)


def test_damaged_files_are_told(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(UserError, match="does not exist"):
        read_pointing(path)
    whole, packed = io.BytesIO(), io.BytesIO()
    np.savez(whole, x=THREE)
    np.savez_compressed(packed, x=THREE)
    # One byte of what is packed, and the number of the way it is packed.
    flipped, unknown = bytearray(packed.getvalue()), bytearray(packed.getvalue())
    flipped[60] ^= 255
    unknown[unknown.index(b"PK\1\2") + 10] = 99
    for damage in (b"", b"no archive", whole.getvalue()[:-100], flipped, unknown):
        path.write_bytes(damage)
        for read in (read_pointing, read_features):
            with pytest.raises(UserError, match="cannot be read"):
                read(path)


def test_vqa_hat_is_found_by_question(tmp_path):
    for name in ("1000_1", "1000_2", "27_1", "31", "readme_1"):
        write_png(tmp_path / f"{name}.png", np.full((4, 6), 51, np.uint8))
    found = find_hat(tmp_path)
    assert {question: len(paths) for question, paths in found.items()} == {
        "1000": 2,
        "27": 1,
        "31": 1,
    }
    np.testing.assert_allclose(read_hat(found["27"][0]), np.full((4, 6), 0.2))
    with pytest.raises(UserError, match="no map of VQA-HAT"):
        find_hat(tmp_path / "nowhere")


# -------------------------------------------------------------------------------- features


def test_a_single_array_is_no_features(tmp_path):
    with (tmp_path / "f.npz").open("wb") as file:
        np.save(file, THREE)
    with pytest.raises(UserError, match=r"f.npz has no array 'x' \(it has f\)"):
        read_features(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": THREE, "z": THREE}, r"no array 'x' \(it has y, z\)"),
        ({"x": THREE[0]}, r"'x' is float32 \[20, 30\]"),
        ({"x": np.zeros((2, 2, 2), int)}, "'x' is int64"),
        ({"x": THREE * np.inf}, "'x' is float32"),
    ],
)
def test_other_features_are_refused(tmp_path, arrays, told):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=told) as error:
        read_features(tmp_path / "f.npz")
    assert "f.npz" in str(error.value)


def test_features_are_computed_once(tmp_path):
    pictures = {f"{i}.jpg": np.full((2, 2, 3), i, np.float32) for i in range(7)}
    seen = []

    def encode(batch):
        assert batch.shape == (3, 2, 2, 3)
        seen.extend(batch[:, 0, 0, 0].tolist())
        return batch * 2

    folder = tmp_path / "deep/er"
    made = compute_features(folder, list(pictures)[:4], pictures.__getitem__, encode, 3)
    assert seen == [0, 1, 2, 3, 3, 3]
    again = compute_features(folder, pictures, pictures.__getitem__, encode, 3)
    assert seen[6:] == [4, 5, 6]
    assert again == made == Features(folder)
    for name, picture in pictures.items():
        assert name in made
        np.testing.assert_array_equal(made[name], 2 * picture.transpose(2, 0, 1))
    assert sorted(path.name for path in folder.iterdir()) == [f"{i}.jpg.npz" for i in range(7)]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept"):
        compute_features(tmp_path / "file", ["a"], lambda name: THREE, lambda batch: batch)


def test_maps_are_found_by_question_picture_or_number(tmp_path):
    names = named_pointing("2621480", "COCO_val2014_000000262148.jpg")
    assert names == (
        *("2621480", "COCO_val2014_000000262148.jpg"),
        *("COCO_val2014_000000262148", "262148"),
    )
    for name in names:
        folder = tmp_path / name / "visual" / "test"
        folder.mkdir(parents=True)
        np.savez(folder / f"{name}.npz", THREE)
        assert find_pointing(tmp_path / name).keys() == {name}
    with pytest.raises(UserError, match=r"holds no pointing map \(\.npz\)"):
        find_pointing(tmp_path / "nowhere")


def test_people_count_alike():
    one, other = np.zeros((2, 2)), np.zeros((2, 2))
    one[0, 0], other[1] = 10, 0.1
    np.testing.assert_allclose(mean_map([one, np.zeros((2, 2)), other]), [[0.5, 0], [0.25, 0.25]])
    assert not mean_map([np.zeros((2, 2))]).any()
    with pytest.raises(UserError, match="different sizes \\(2×2, 2×3\\)"):
        mean_map([one, np.zeros((2, 3))])


def test_more_heat_is_brighter_and_the_ends_are_black_and_white():
    colours = heat_colours(np.linspace(0, 1, 101))
    assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > 0).all()
    np.testing.assert_array_equal(colours[[0, -1]], [[0, 0, 0], [1, 1, 1]])
