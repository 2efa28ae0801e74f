"""The world of scenes: what is drawn, and what follows from it."""

import numpy as np
import pytest

from tests.data.scenes.worlds import WORLDS, holds
from vljax.data.scenes import (
    CLASSES,
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    Scene,
    boxes,
    keypoints,
    masks,
    relations,
    render,
)
from vljax.data.scenes.draws import Draws
from vljax.data.scenes.shapes import KEYPOINTS
from vljax.data.scenes.world import PALETTE, visibility


def test_classes_are_shapes_times_colours():
    assert len(CLASSES) == len(SHAPES) * len(COLOURS) == 48
    for scene in WORLDS[:50]:
        for thing in scene.objects:
            assert CLASSES[thing.label] == thing.name == f"{thing.colour} {thing.shape}"


def test_worlds_keep_their_promises():
    for scene in WORLDS:
        labels = [thing.label for thing in scene.objects]
        assert 1 <= len(labels) == len(set(labels)) <= MAX_OBJECTS
        assert min(visibility(scene.objects)) >= 0.6
        for i, a in enumerate(scene.objects):
            assert a.radius < a.x < 1 - a.radius
            assert a.radius < a.y < 1 - a.radius
            for b in scene.objects[:i]:
                apart = max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius
                assert a.colour != b.colour or apart


def test_worlds_are_diverse():
    things = [thing for scene in WORLDS for thing in scene.objects]
    assert {thing.label for thing in things} == set(range(len(CLASSES)))
    counts = np.bincount([len(scene.objects) for scene in WORLDS], minlength=6)[1:]
    assert counts.min() > 30
    tones = [scene.background.tone for scene in WORLDS]
    assert 100 < tones.count("light") < 200
    overlapping = sum("behind" in r for scene in WORLDS for r in relations(scene).values())
    assert overlapping > 100


@pytest.mark.parametrize("image_size", [32, 64, 100])
def test_masks_are_disjoint_and_show_the_colours(image_size):
    for scene in WORLDS[:40]:
        picture, visible = render(scene, image_size), masks(scene, image_size)
        assert picture.shape == (image_size, image_size, 3)
        assert picture.dtype == np.uint8
        assert visible.sum(0).max() == 1
        for mask, thing in zip(visible, scene.objects, strict=True):
            colour = np.median(picture[mask], axis=0)
            distances = {
                name: np.abs(colour - np.array(rgb)).max() for name, rgb in PALETTE.items()
            }
            assert min(distances, key=distances.get) == thing.colour
        ground = np.median(picture[~visible.any(0)])
        assert (ground > 128) == (scene.background.tone == "light")


def test_boxes_are_tight():
    for scene in WORLDS[:60]:
        for mask, box in zip(masks(scene, 64), boxes(scene, 64), strict=True):
            x0, y0, x1, y1 = box.astype(int)
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum() > 0
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_keypoints_lie_on_their_objects(image_size):
    for scene in WORLDS[:60]:
        visible, points = masks(scene, image_size), keypoints(scene, image_size)
        for i, thing in enumerate(scene.objects):
            known = len(KEYPOINTS[thing.shape])
            assert (points[i, known:] == 0).all()
            alone = masks(Scene(scene.background, (thing,)), image_size)[0]
            for x, y, flag in points[i, :known]:
                # A star's tip may be thinner than a pixel in the smallest pictures.
                slack = 1 if image_size == 32 else 0
                rows = slice(int(y) - slack, int(y) + slack + 1)
                assert alone[rows, int(x) - slack : int(x) + slack + 1].any()
                assert flag == (2 if visible[i, int(y), int(x)] else 1)


def test_pictures_of_all_sizes_show_the_same():
    for scene in WORLDS[:10]:
        large, small = render(scene, 256).astype(float), render(scene, 64).astype(float)
        assert np.abs(large.reshape(64, 4, 64, 4, 3).mean((1, 3)) - small).mean() < 2.0


def test_relations_are_true_and_mirrored():
    opposite = dict(zip(RELATIONS, (1, 0, 3, 2, 5, 4), strict=True))
    for scene in WORLDS[:60]:
        between = relations(scene)
        assert len(between) == len(scene.objects) * (len(scene.objects) - 1)
        for (i, j), names in between.items():
            assert names
            assert all(holds(scene, i, name, j) for name in names)
            assert set(between[j, i]) == {RELATIONS[opposite[name]] for name in names}


def test_the_stream_of_chance_is_the_published_one():
    # First outputs of SplitMix64 from state 1234567, as its authors' C code gives them.
    draws = Draws(0)
    draws._state = 1234567
    assert [draws.word() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
