"""CUB, Oxford-102 and COCO as captioned photographs, and pickles without globals."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax.data.pictures.captioned import (
    open_coco_photographs,
    open_cub,
    open_oxford,
    read_names,
    read_plain_pickle,
)
from vljax.errors import UserError

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "semani"
samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no real samples beside the checkout")


def picture(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(path)


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


@samples
def test_cub_is_split_by_classes():
    classes = {}
    for split, count, kinds in (("train", 8855, 150), ("test", 2933, 50)):
        names = read_names(SAMPLES / "cub" / f"{split}_filenames.lf.pickle")
        classes[split] = {name.split("/")[0] for name in names}
        assert (len(names), len(classes[split])) == (count, kinds)
    assert not classes["train"] & classes["test"]


@samples
def test_names_that_lost_their_line_ends_are_the_same():
    damaged, whole = (
        read_names(SAMPLES / "cub" / f"test_filenames{kind}.pickle") for kind in ("", ".lf")
    )
    assert damaged == whole


@samples
def test_a_pickle_that_names_code_is_refused():
    with pytest.raises(UserError, match=r"train_class_info\.pickle is a pickle that names code"):
        read_plain_pickle(SAMPLES / "cub" / "train_class_info.pickle")


class Harm:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_pickle_runs_anything(tmp_path, capsys, protocol):
    written_to = tmp_path / "filenames.pickle"
    written_to.write_bytes(pickle.dumps(["a/b", Harm()], protocol))
    with pytest.raises(UserError, match="names code"):
        read_names(written_to)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"(lp0\nV001.", "not a readable pickle"), (pickle.dumps({"a": 1}), "no list of names")],
)
def test_what_is_no_list_of_names_is_told(tmp_path, content, told):
    (tmp_path / "filenames.pickle").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_names(tmp_path / "filenames.pickle")


def test_cub(tmp_path):
    picture(tmp_path / "images" / "001.A" / "a_1.jpg")
    written(tmp_path / "text" / "001.A" / "a_1.txt", "a red  bird\r\n\r\nit is small\r\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "filenames.pickle").write_bytes(b"(lp0\r\nV001.A/a_1\r\np1\r\na.")
    source = open_cub(tmp_path, "test")
    assert source[0]["captions"] == ["a red bird", "it is small"]
    assert source[0]["image"].shape == (6, 8, 3)
    (tmp_path / "images" / "001.A" / "a_1.jpg").unlink()
    with pytest.raises(UserError, match="1 of 1 photographs are not there"):
        open_cub(tmp_path, "test")


def test_oxford_from_three_kinds_of_list(tmp_path):
    for number in (1, 2):
        picture(tmp_path / "jpg" / f"image_0000{number}.jpg")
        place = tmp_path / "text_c10" / f"class_0000{number}" / f"image_0000{number}.txt"
        written(place, f"flower {number}\n")
    with pytest.raises(UserError, match="give Oxford-102 with its split"):
        open_oxford(tmp_path, "test")
    written(tmp_path / "trainvalclasses.txt", "class_00001\r\n")
    written(tmp_path / "testclasses.txt", "class_00002\r\n")
    (train,), (test,) = (
        [one["captions"] for one in map(open_oxford(tmp_path, split).__getitem__, [0])]
        for split in ("train", "test")
    )
    assert (train, test) == (["flower 1"], ["flower 2"])
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "filenames.pickle").write_bytes(pickle.dumps(["jpg/image_00001"], 0))
    assert open_oxford(tmp_path, "test").paths == ("jpg/image_00001.jpg",)
    written(tmp_path / "test_img2caption.json", json.dumps({"image_00002.jpg": ["two", "zwei"]}))
    assert open_oxford(tmp_path, "test").captions == (("two", "zwei"),)


def test_coco_2014(tmp_path):
    picture(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    told = {
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg"}],
        "annotations": [{"image_id": 7, "caption": text} for text in ("A dog.\n", "It runs.")],
    }
    told["annotations"].append({"image_id": 8, "caption": "Of a picture that is not listed."})
    written(tmp_path / "annotations" / "captions_val2014.json", json.dumps(told))
    source = open_coco_photographs(tmp_path, "val2014")
    assert source[0]["captions"] == ["A dog.", "It runs."]
    with pytest.raises(UserError, match="captions of train2014"):
        open_coco_photographs(tmp_path, "train2014")
