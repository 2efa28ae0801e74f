"""ShapePrompts: the published files, masks by brute force, and every kind of damage."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from vljax.data.pictures.shape_prompts import ShapePrompts, decode_mask, named_object
from vljax.data.scenes import Scenes
from vljax.data.scenes.world import CLASSES
from vljax.data.source import CorruptExampleError, Source
from vljax.errors import UserError

PUBLISHED = Path(__file__).parents[3] / "../shared/data/shape_prompts"
published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the sample of ShapePrompts is not beside the checkout"
)


def content(segmentation=None, **changes):
    """A file of one picture, 20 wide and 10 high, with one object of 8 × 5 pixels."""
    square = [[2, 1, 10, 1, 10, 6, 2, 6]]
    annotation = {
        "id": 7,
        "image_id": 3,
        "category_id": 18,
        "area": 40.0,
        "bbox": [2, 1, 8, 5],
        "iscrowd": 0,
        "segmentation": square if segmentation is None else segmentation,
        "text": "dog made of lego",
    }
    return {
        "images": [{"id": 3, "file_name": "a.png", "height": 10, "width": 20}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [annotation | changes],
    }


def written(folder, contents):
    (folder / "few.json").write_text(json.dumps(contents))
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "few.json", pixels


def test_an_example(tmp_path):
    path, pixels = written(tmp_path, content())
    source = ShapePrompts(path, tmp_path)
    assert isinstance(source, Source)
    assert len(source) == 1
    example = pickle.loads(pickle.dumps(source))[0]
    np.testing.assert_array_equal(example.pop("image"), pixels)
    mask = np.zeros((10, 20), bool)
    mask[1:6, 2:10] = True
    np.testing.assert_array_equal(example.pop("edit_mask"), mask)
    np.testing.assert_array_equal(example.pop("box"), [2, 1, 10, 6])
    assert example == {
        "source_prompt": "dog",
        "edit_prompt": "dog made of lego",
        "id": 7,
        "path": "a.png",
    }
    with pytest.raises(IndexError):
        source[1]
    other, _ = written(tmp_path, content(text="dog made of paper"))
    assert ShapePrompts(other, None).fingerprint != source.fingerprint


def test_pictures_may_lie_in_cocos_folders(tmp_path):
    contents = content()
    contents["images"][0]["coco_url"] = "http://images.cocodataset.org/val2017/a.png"
    path, pixels = written(tmp_path, contents)
    (tmp_path / "val2017").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "val2017" / "a.png")
    np.testing.assert_array_equal(ShapePrompts(path, tmp_path)[0]["image"], pixels)


@published
def test_the_published_validation_set():
    source = ShapePrompts(PUBLISHED / "val.json", None)
    assert len(source) == 1000
    raw = {a["id"]: a for a in json.loads((PUBLISHED / "val.json").read_text())["annotations"]}
    first = source[0]
    assert "image" not in first
    assert (first["source_prompt"], first["edit_prompt"]) == ("dog", "dog wearing a floral jacket")
    names = set()
    for index in range(0, 1000, 10):
        example = source[index]
        names.add(example["source_prompt"])
        mask, area = example["edit_mask"], raw[example["id"]]["area"]
        assert mask.sum() == pytest.approx(area, rel=0.1)
        rows, columns = np.nonzero(mask)
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(example["box"], tight, atol=5)
    assert {"cat", "dog", "horse"} < names
    assert len(names) == 10


@published
def test_the_published_photograph():
    source = ShapePrompts(PUBLISHED / "one_image.json", PUBLISHED)
    for index in range(len(source)):
        example = source[index]
        assert example["image"].shape == (480, 640, 3)
        assert example["edit_mask"].shape == (480, 640)
        assert 0.02 <= example["edit_mask"].mean() <= 0.5


def even_odd(polygon, height, width):
    """Pixels whose middle lies inside a polygon, by counting crossings to the right."""
    x, y = np.array(polygon, float).reshape(-1, 2).T
    inside = np.zeros((height, width), bool)
    for i, j in np.ndindex(height, width):
        py, px = i + 0.5, j + 0.5
        crossings = 0
        for a in range(len(x)):
            b = (a + 1) % len(x)
            if (y[a] > py) != (y[b] > py):
                crossings += px < x[a] + (py - y[a]) / (y[b] - y[a]) * (x[b] - x[a])
        inside[i, j] = crossings % 2
    return inside


def test_polygons_are_united():
    triangle, box = [3.2, 2.1, 28.7, 9.4, 12.3, 27.8], [20, 20, 35, 20, 35, 29, 20, 29]
    expected = even_odd(triangle, 30, 40) | even_odd(box, 30, 40)
    mask = decode_mask([triangle, box], 30, 40)
    # COCO rounds outlines to a fifth of a pixel: only pixels on them may differ.
    assert (mask != expected).sum() < 0.1 * expected.sum()
    assert mask[20:29, 20:35].all()
    assert not mask[:2].any()


def test_run_lengths_whole_and_compressed_are_the_same_mask():
    generator = np.random.default_rng(0)
    for height, width, share in ((7, 9, 0.5), (40, 60, 0.02), (300, 200, 0.9)):
        mask = generator.random((height, width)) < share
        mask[height // 3 :, : width // 2] = True
        column = np.concatenate([[False], mask.T.ravel()])
        places = np.flatnonzero(np.diff(np.concatenate([column, [not column[-1]]])))
        counts = np.diff(np.concatenate([[0], places])).tolist()
        whole = {"size": [height, width], "counts": counts}
        np.testing.assert_array_equal(decode_mask(whole, height, width), mask)
        compressed = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        short = {"size": [height, width], "counts": compressed}
        np.testing.assert_array_equal(decode_mask(short, height, width), mask)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([[1, 2, 3, 4]], "three or more x, y pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three or more x, y pairs"),
        ([[1, 2, 3, 4, 5, "6"]], "three or more x, y pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "lies outside of 20×10"),
        ([[1, 2, 3, 4, 1e9, 6]], "lies outside of 20×10"),
        ([], "neither a list of polygons"),
        ([[-9, -4, -8, -4, -8, -3]], "marks no pixel"),
        ({"size": [20, 10], "counts": [200]}, r"its size is .20, 10."),
        ({"size": [10, 20], "counts": [100, 50]}, "not run lengths of 200 pixels"),
        ({"size": [10, 20], "counts": [300, -100]}, "not run lengths of 200 pixels"),
        ({"size": [10, 20], "counts": [200]}, "marks no pixel"),
        ({"size": [10, 20], "counts": "11"}, "not run lengths of 200 pixels"),
        ({"size": [10, 20], "counts": "zz"}, "its counts hold 'z'"),
        ({"size": [10, 20], "counts": "\n"}, "its counts hold"),
        ({"size": [10, 20]}, "not run lengths"),
    ],
)
def test_a_broken_segmentation_names_its_annotation(tmp_path, segmentation, words):
    path, _ = written(tmp_path, content(segmentation))
    source = ShapePrompts(path, tmp_path)
    with pytest.raises(CorruptExampleError, match=words) as error:
        source[0]
    assert "example 0 (annotation 7)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": None}, r"annotations\[0\]: text is missing"),
        ({"text": " "}, "annotation 7 has an empty text"),
        ({"area": "40"}, "area is '40'"),
        ({"id": True}, "id is 'True'"),
        ({"image_id": 4}, "annotation 7 has image_id=4, which is not listed"),
        ({"category_id": 4}, "annotation 7 has category_id=4, which is not listed"),
        ({"bbox": [1, 2, 3]}, r"annotation 7 has bbox=\[1, 2, 3\]"),
        ({"segmentation": 3}, "segmentation is '3'"),
    ],
)
def test_a_broken_annotation_is_refused_at_once(tmp_path, change, words):
    path, _ = written(tmp_path, content(**change))
    with pytest.raises(UserError, match=words) as error:
        ShapePrompts(path, tmp_path)
    assert "\n" not in str(error.value)


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "few.json"
    with pytest.raises(UserError, match="does not exist"):
        ShapePrompts(path, None)
    path.write_text('{"images": [')
    with pytest.raises(UserError, match="not readable json"):
        ShapePrompts(path, None)
    path.write_text("[]")
    with pytest.raises(UserError, match="no COCO annotation file"):
        ShapePrompts(path, None)
    path.write_text(json.dumps({**content(), "images": 3}))
    with pytest.raises(UserError, match="no list 'images'"):
        ShapePrompts(path, None)
    flat = content()
    flat["images"][0]["height"] = 0
    path.write_text(json.dumps(flat))
    with pytest.raises(UserError, match=r"images\[0\] has no pixels"):
        ShapePrompts(path, None)
    twice = content()
    twice["annotations"] *= 2
    path.write_text(json.dumps(twice))
    with pytest.raises(UserError, match="annotation 7 is there twice"):
        ShapePrompts(path, None)


def test_objects_of_other_areas_are_left_out(tmp_path):
    contents = content()
    shares = (0.019, 0.02, 0.3, 0.5, 0.51)
    contents["annotations"] = [
        content(id=i, area=200 * share)["annotations"][0] for i, share in enumerate(shares)
    ]
    path, _ = written(tmp_path, contents)
    source = ShapePrompts(path, None)
    assert [source[i]["id"] for i in range(len(source))] == [1, 2, 3]
    with pytest.raises(UserError, match="no object that takes 60% to 70%"):
        ShapePrompts(path, None, area=(0.6, 0.7))


def test_pictures_that_are_missing_or_not_the_annotated_ones(tmp_path):
    path, _ = written(tmp_path, content())
    with pytest.raises(UserError, match=r"image folder .*nowhere is not there"):
        ShapePrompts(path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"lacks 1 of 1 pictures, the first is a\.png"):
        ShapePrompts(path, tmp_path / "empty")
    source = ShapePrompts(path, tmp_path)
    Image.new("RGB", (10, 20)).save(tmp_path / "a.png")
    with pytest.raises(CorruptExampleError, match=r"is 10×20 pixels, the annotations say 20×10"):
        source[0]
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(CorruptExampleError, match=re.escape(str(tmp_path / "a.png"))):
        source[0]


def test_named_objects_of_scenes():
    scenes = Scenes(size=200, image_size=32, fields=("image", "class_ids", "masks"))
    said = []

    def tokenizer(texts, length):
        said.extend(texts)
        return np.zeros((1, length), np.int32)

    transform = named_object(tokenizer, 9, absent=0.3)
    generator = np.random.default_rng(0)
    empty, wordings = 0, set()
    for i, scene in enumerate(scenes):
        made = transform(scene, generator)
        assert made["tokens"].shape == (9,)
        np.testing.assert_array_equal(made["image"], scene["image"])
        name = re.sub("^(a photo of a|a|the) ", "", said[i])
        wordings.add(said[i].removesuffix(name))
        there = list(scene["class_ids"])
        if CLASSES.index(name) in there:
            expected = scene["masks"][there.index(CLASSES.index(name))]
            np.testing.assert_array_equal(made["mask"], expected)
        else:
            assert not made["mask"].any()
            empty += 1
    assert len(wordings) == 4
    assert 35 < empty < 85
    with pytest.raises(UserError, match="absent=1"):
        named_object(tokenizer, 9, absent=1)
