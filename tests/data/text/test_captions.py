"""Captions beside regions: COCO's folder layouts, and scenes."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.data.pictures.images import decode_image, write_png
from vljax.data.scenes import Scenes, boxes, captions
from vljax.data.source import CorruptExampleError
from vljax.data.text.captions import (
    CELL,
    GRID,
    SCENE_FEATURES,
    SHORTEST_WORDING,
    caption_words,
    grid_boxes,
    open_coco,
    open_scene_captions,
    scene_regions,
)
from vljax.errors import UserError


class TestWords:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("A man, sitting.", "a man , sitting ."),
            ("Dogs don't; a man's do", "dogs do n't ; a man 's do"),
            ("they’re 5 o'clock T-shirts", "they 're 5 o'clock t-shirts"),
            ("wait... what?!", "wait ... what ? !"),
            ("a pădure (old) - №5", "a pădure ( old ) - № 5"),
            ("  \n ", ""),
        ],
    )
    def test_known(self, text, expected):
        assert " ".join(caption_words(text)) == expected

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(max_codepoint=0x17F), max_size=40))
    def test_loses_nothing_and_is_settled_after_once(self, text):
        once = caption_words(text)
        assert "".join(once) == "".join(text.lower().split())
        assert caption_words(" ".join(once)) == once


def store(folder, name, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)


def regions(seed, count=3, size=5):
    generator = np.random.default_rng(seed)
    corners = np.sort(generator.uniform(size=(count, 2, 2)), axis=1).reshape(count, 4)
    return {
        "features": generator.normal(size=(count, size)).astype(np.float16),
        "boxes": corners.astype(np.float32),
    }


@pytest.fixture
def coco(tmp_path):
    """Two pictures with two captions and one, a third without any."""
    told = {
        "images": [
            {"id": 7, "file_name": "000007.jpg", "width": 200, "height": 100},
            {"id": 3, "file_name": "000003.jpg", "width": 50, "height": 80},
            {"id": 5, "file_name": "000005.jpg", "width": 50, "height": 80},
        ],
        "annotations": [
            {"image_id": 7, "caption": "A dog."},
            {"image_id": 3, "caption": "a red cat"},
            {"image_id": 7, "caption": "the dog, running\n"},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/captions_train2017.json").write_text(json.dumps(told))
    for number in (3, 7):
        store(tmp_path / "features/train2017", f"{number:06}", **regions(number))
    return tmp_path


class TestCoco:
    def test_pictures_and_their_captions(self, coco):
        corpus = open_coco(coco, "train2017")
        assert len(corpus) == 2
        assert corpus.references(0) == ["a red cat"]
        assert corpus.references(1) == ["a dog .", "the dog , running"]
        assert corpus.texts(1) == {"target": "a dog ."}
        each = dataclasses.replace(corpus, each_caption=True)
        assert [each.texts(i)["target"] for i in range(len(each))] == [
            "a red cat",
            "a dog .",
            "the dog , running",
        ]
        assert each.references(2) == corpus.references(1)
        assert len(corpus.part(1, 2)) == 1
        prints = {c.fingerprint for c in (corpus, each, corpus.part(0, 1), corpus.part(1, 2))}
        assert len(prints) == 4

    def test_regions_of_a_detector(self, coco):
        found = open_coco(coco, "train2017").arrays(1)
        expected = regions(7)
        assert found["regions"].dtype == found["boxes"].dtype == np.float32
        np.testing.assert_array_equal(found["regions"], expected["features"].astype(np.float32))
        np.testing.assert_array_equal(found["boxes"], expected["boxes"])

    def test_boxes_in_pixels_become_fractions(self, coco):
        scaled = regions(7)
        scaled["boxes"] = scaled["boxes"] * [200, 100, 200, 100]
        store(coco / "features/train2017", "000007", **scaled)
        found = open_coco(coco, "train2017").arrays(1)["boxes"]
        np.testing.assert_allclose(found, regions(7)["boxes"], rtol=1e-5)
        scaled["boxes"] *= 2
        store(coco / "features/train2017", "000007", **scaled, size=np.array([400, 200]))
        found = open_coco(coco, "train2017").arrays(1)["boxes"]
        np.testing.assert_allclose(found, regions(7)["boxes"], rtol=1e-5)

    def test_a_grid_has_a_box_for_each_cell(self, coco):
        grid = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
        store(coco / "features/train2017", "000007", features=grid)
        found = open_coco(coco, "train2017").arrays(1)
        np.testing.assert_array_equal(found["regions"], grid.reshape(6, 4))
        np.testing.assert_allclose(found["boxes"][0], [0, 0, 1 / 3, 1 / 2])
        np.testing.assert_allclose(found["boxes"][4], [1 / 3, 1 / 2, 2 / 3, 1], rtol=1e-6)

    def test_a_picture_without_detections_is_one_blank_region(self, coco):
        store(
            coco / "features/train2017",
            "000007",
            features=np.zeros((0, 5), np.float32),
            boxes=np.zeros((0, 4), np.float32),
        )
        found = open_coco(coco, "train2017").arrays(1)
        np.testing.assert_array_equal(found["regions"], np.zeros((1, 5)))
        np.testing.assert_array_equal(found["boxes"], [[0, 0, 1, 1]])

    def test_features_of_all_splits_may_lie_in_one_folder(self, coco):
        for file in (coco / "features/train2017").iterdir():
            file.rename(coco / "features" / file.name)
        assert open_coco(coco, "train2017").arrays(0)["regions"].shape == (3, 5)

    def test_captions_in_text_files(self, tmp_path):
        for name, lines in {"b": "Two dogs.\n\n a dog \n", "a": "a cat", "none": "\n"}.items():
            (tmp_path / "captions").mkdir(exist_ok=True)
            (tmp_path / f"captions/{name}.txt").write_text(lines)
            store(tmp_path / "features", name, **regions(1))
        corpus = open_coco(tmp_path, "train")
        assert [p.name for p in corpus.pictures] == ["a", "b"]
        assert corpus.references(1) == ["two dogs .", "a dog"]

    def test_pixels(self, coco):
        generator = np.random.default_rng(0)
        (coco / "images").mkdir()
        side = GRID * CELL
        picture = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        for number in (3, 7):
            write_png(coco / f"images/{number:06}.png", picture)
        found = open_coco(coco, "train2017", "pixels").arrays(0)
        assert found["regions"].shape == (GRID * GRID, CELL * CELL * 3)
        patch = found["regions"][GRID + 2].reshape(CELL, CELL, 3)
        x0, y0, x1, y1 = np.rint(found["boxes"][GRID + 2] * side).astype(int)
        stored = decode_image((coco / "images/000003.png").read_bytes())
        np.testing.assert_allclose(patch, stored[y0:y1, x0:x1] / 127.5 - 1, atol=1e-6)

    @pytest.mark.parametrize(
        ("arrays", "why"),
        [
            ({"features": np.zeros((3, 5))}, "boxes"),
            ({"features": np.zeros(3)}, r"features has shape \[3\]"),
            ({"features": np.zeros((3, 5)), "boxes": np.zeros((2, 4))}, r"shape \[2, 4\]"),
            ({"boxes": np.zeros((3, 4))}, "features"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, coco, arrays, why):
        store(coco / "features/train2017", "000007", **arrays)
        with pytest.raises(CorruptExampleError, match=why) as caught:
            open_coco(coco, "train2017").arrays(1)
        assert "example 1: " in str(caught.value)
        assert "000007.npz" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_pixel_boxes_without_a_size_and_cut_files(self, tmp_path):
        (tmp_path / "captions").mkdir()
        (tmp_path / "captions/a.txt").write_text("a cat")
        arrays = regions(0)
        store(tmp_path / "features", "a", features=arrays["features"], boxes=arrays["boxes"] * 90)
        with pytest.raises(CorruptExampleError, match="size is not told"):
            open_coco(tmp_path, "train").arrays(0)
        file = tmp_path / "features/a.npz"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(CorruptExampleError, match="example 0"):
            open_coco(tmp_path, "train").arrays(0)
        file.write_bytes(b"")
        with pytest.raises(CorruptExampleError, match="example 0"):
            open_coco(tmp_path, "train").arrays(0)
        with file.open("wb") as bare:
            np.save(bare, arrays["features"])
        with pytest.raises(CorruptExampleError, match="no array 'features'"):
            open_coco(tmp_path, "train").arrays(0)

    def test_what_is_missing_is_named(self, coco, tmp_path):
        (coco / "features/train2017/000003.npz").unlink()
        (tmp_path / "captions_cut.json").write_text('{"images": [')
        (tmp_path / "captions_other.json").write_text('{"images": [{"id": 1}]}')
        numbers = {"images": [{"id": 1, "file_name": "a"}], "annotations": []}
        numbers["annotations"].append({"image_id": 1, "caption": 7})
        (tmp_path / "captions_numbers.json").write_text(json.dumps(numbers))
        (tmp_path / "captions/latin").mkdir(parents=True)
        (tmp_path / "captions/latin/a.txt").write_bytes("ein Käse".encode("latin1"))
        (tmp_path / "captions_none.json").write_text('{"images": [], "annotations": []}')
        for arguments, why in [
            ((coco / "nowhere", "train2017"), "is no folder"),
            ((coco, "val2017"), "holds no captions of split 'val2017'"),
            ((coco, "train2017"), "1 of 2 pictures, first '000003.jpg', have no .npz"),
            ((coco, "train2017", "pixels"), "2 of 2 pictures"),
            ((coco, "train2017", "words"), "choose 'regions' or 'pixels'"),
            ((coco, "cut"), "is not readable json"),
            ((coco, "other"), "is not COCO's caption file"),
            ((coco, "numbers"), "is not COCO's caption file"),
            ((coco, "none"), "are all empty"),
            ((coco, "latin"), "latin/a.txt cannot be read"),
        ]:
            with pytest.raises(UserError, match=why) as caught:
                open_coco(*arguments)
            assert "\n" not in str(caught.value)


def test_grid_boxes_tile_the_picture():
    cells = grid_boxes(3, 5)
    area = (cells[:, 2] - cells[:, 0]) * (cells[:, 3] - cells[:, 1])
    np.testing.assert_allclose(area, 1 / 15, rtol=1e-5)
    np.testing.assert_array_equal(cells[:, :2].min(0), [0, 0])
    np.testing.assert_array_equal(cells[:, 2:].max(0), [1, 1])


class TestScenes:
    def test_regions_tell_the_objects(self):
        source = Scenes(min_objects=2)
        for index in range(20):
            scene = source.scene(index)
            told, places = scene_regions(scene)
            assert told.shape == (len(scene.objects), len(SCENE_FEATURES))
            seen = boxes(scene, 256) / 256
            for row, box, visible, thing in zip(told, places, seen, scene.objects, strict=True):
                names = {
                    n
                    for n, value in zip(SCENE_FEATURES, row, strict=True)
                    if value == 1 and n != "depth"
                }
                assert names == {thing.shape, thing.colour, thing.size, scene.background.tone}
                x = SCENE_FEATURES.index("x")
                np.testing.assert_allclose(row[x : x + 3], [thing.x, thing.y, thing.radius])
                # The box holds all that is visible, an edge's blur apart.
                assert (box[:2] <= visible[:2] + 0.01).all()
                assert (box[2:] >= visible[2:] - 0.01).all()
            depth = told[:, SCENE_FEATURES.index("depth")]
            np.testing.assert_allclose(depth, np.linspace(0, 1, len(depth)))

    def test_the_order_of_regions_says_nothing(self):
        corpus = open_scene_captions("train", 40, {"size": 400, "min_objects": 2, "max_objects": 2})
        depth = SCENE_FEATURES.index("depth")
        behind = [corpus.arrays(i)["regions"][0, depth] == 0 for i in range(400)]
        assert 160 < sum(behind) < 240
        again = corpus.arrays(3)
        for name, value in corpus.arrays(3).items():
            np.testing.assert_array_equal(value, again[name])

    def test_targets_are_short_enough_wordings_of_the_scene(self):
        corpus = open_scene_captions("train", SHORTEST_WORDING, {"size": 600})
        used = set()
        for index in range(600):
            target = corpus.texts(index)["target"]
            right = corpus.references(index)
            assert right == [
                " ".join(caption_words(c)) for c in captions(corpus.scenes.scene(index), index)
            ]
            used.add(right.index(target))
            assert len(target.split()) <= SHORTEST_WORDING
        assert len(used) > 2

    def test_too_short_a_limit_is_refused(self):
        with pytest.raises(UserError, match="captions of scenes need 11"):
            open_scene_captions("train", SHORTEST_WORDING - 1, {})
        with pytest.raises(UserError, match="size=0"):
            open_scene_captions("train", 20, {"size": 0})
