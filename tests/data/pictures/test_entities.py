"""Entities: masks from files, from the oracle; grown, feathered, pasted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle_tools

from vljax.data.pictures.entities import (
    feather,
    from_file,
    grow,
    paste,
    read_entities,
    scene_entities,
)
from vljax.data.scenes import Scenes, masks, render
from vljax.errors import UserError

SAMPLES = Path(__file__).parents[4] / "shared" / "data" / "semani"
ONE = np.zeros((8, 12), bool)
ONE[1:5, 2:6] = True
OTHER = np.zeros((8, 12), bool)
OTHER[5:, 8:] = True


def instance(mask, score):
    counts = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"segmentation": {**counts, "counts": counts["counts"].decode()}, "score": score}


def test_run_lengths_come_by_falling_score(tmp_path):
    listed = [{"file_name": "a.jpg", "instances": [instance(ONE, 0.2), instance(OTHER, 0.9)]}]
    for content in (listed, listed[0], [one["segmentation"] for one in listed[0]["instances"]]):
        (tmp_path / "entities.json").write_text(json.dumps(content))
        found = read_entities(tmp_path / "entities.json", ONE.shape, "somewhere/a.png")
        wanted = [OTHER, ONE] if content is not None and "score" in str(content) else [ONE, OTHER]
        np.testing.assert_array_equal(found, wanted)
    (tmp_path / "entities.json").write_text(json.dumps(listed))
    with pytest.raises(UserError, match="tells of other pictures"):
        read_entities(tmp_path / "entities.json", ONE.shape, "b.png")
    with pytest.raises(UserError, match="a segmentation cannot be used: its size"):
        read_entities(tmp_path / "entities.json", (9, 12), "a.png")


def test_a_torch_file_as_the_authors_keep_it(tmp_path):
    torch = pytest.importorskip("torch")
    one = instance(ONE, 0.5)
    one["segmentation"]["counts"] = one["segmentation"]["counts"].encode()
    torch.save([{"file_name": "a.jpg", "instances": [one]}], tmp_path / "segments.pth")
    found = from_file(tmp_path / "segments.pth", "a.jpg")(np.zeros((8, 12, 3), np.uint8))
    np.testing.assert_array_equal(found, [ONE])


def test_pngs_are_masks_in_a_folder_and_patches_in_a_file(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, mask in (("0.png", ONE), ("1.png", OTHER), ("2.png", np.zeros_like(ONE))):
        Image.fromarray(mask).save(folder / name)
    np.testing.assert_array_equal(read_entities(folder, ONE.shape), [ONE, OTHER])
    Image.fromarray(ONE | OTHER).save(tmp_path / "both.png")
    np.testing.assert_array_equal(read_entities(tmp_path / "both.png", ONE.shape), [ONE, OTHER])
    assert read_entities(folder, (16, 24)).shape == (2, 16, 24)
    with pytest.raises(UserError, match=r"12×8 and the photograph, .* 8×12: give a mask"):
        read_entities(folder, (12, 8))
    Image.fromarray(np.zeros_like(ONE)).save(tmp_path / "black.png")
    with pytest.raises(UserError, match="marks no entity"):
        read_entities(tmp_path / "black.png", ONE.shape)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no real samples beside the checkout")
def test_coco_files_give_the_things_and_stuff_of_a_photograph():
    name = "000000010977.jpg"
    with Image.open(SAMPLES / "coco" / "val2017" / name) as photo:
        size = photo.size[::-1]
    told = json.loads((SAMPLES / "coco" / "instances_val2017_8.json").read_text())
    number = next(image["id"] for image in told["images"] if image["file_name"] == name)
    things = [one for one in told["annotations"] if one["image_id"] == number]
    found = read_entities(SAMPLES / "coco" / "instances_val2017_8.json", size, name)
    assert found.shape == (len(things), *size)


def test_the_oracle_divides_a_scene():
    scenes = Scenes(image_size=48, sizes=("large",), max_objects=2)
    scene = next(scenes.scene(i) for i in range(9) if len(scenes.scene(i).objects) == 2)
    visible = masks(scene, 48)
    found = scene_entities(render(scene, 48))
    assert len(found) == 3
    assert found.sum(0).max() == 1
    for mask in (*visible, ~visible.any(0)):
        assert max((mask & one).sum() / (mask | one).sum() for one in found) > 0.85


def test_a_mask_grows_and_shrinks_by_pixels():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    assert grow(mask, 1).sum() == 5
    assert grow(mask, 2).sum() == 13
    np.testing.assert_array_equal(grow(grow(mask, 2), 0), grow(mask, 2))
    assert not grow(mask, -1).any()
    assert grow(~mask, -1).sum() == 81 - 5


@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_a_seam_keeps_all_that_is_outside(seed, pixels):
    rng = np.random.default_rng(seed)
    before, drawn = rng.integers(0, 256, (2, 12, 12, 3), np.uint8)
    mask = rng.random((12, 12)) < 0.5
    weight = feather(mask, pixels)
    made = paste(before, drawn, weight)
    np.testing.assert_array_equal(made[~mask], before[~mask])
    assert (weight[mask] > 0).all()
    np.testing.assert_array_equal(made[weight == 1], drawn[weight == 1])
