"""mIoU and KW-mIoU against hand-computed values, a brute force, and the oracle on scenes."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.data.scenes import Scenes
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.world import COLOURS, masks, render
from vljax.errors import UserError
from vljax.metrics.shape import (
    ShapeScore,
    correct_keypoints,
    iou_within,
    oracle_keypoints,
    oracle_segmenter,
    shape_columns,
    shape_score,
)

PICTURE = np.zeros((4, 4, 3), np.uint8)


def test_iou_by_hand():
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    found = np.zeros((4, 4), bool)
    found[:, :3] = True
    # Six of the mask's eight pixels; the six outside of it do not count.
    assert iou_within(found, mask) == 6 / 8
    assert iou_within(~mask, mask) == 0
    assert iou_within(mask, mask) == 1
    with pytest.raises(UserError, match="empty mask"):
        iou_within(found, np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        iou_within(found[:, :3], mask)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_iou_is_the_published_one_of_confusion_matrices(seed):
    """IoU of the mask's class after all else but the mask is made background on both sides."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 4, (6, 7))
    mask = generator.random((6, 7)) < 0.5
    mask[0, 0] = True
    wanted = 2
    predicted, true = np.where(mask, classes, 4), np.where(mask, wanted, 4)
    pairs = list(zip(predicted.ravel(), true.ravel(), strict=True))
    both = sum(int(p == wanted and t == wanted) for p, t in pairs)
    either = sum(int(p == wanted or t == wanted) for p, t in pairs)
    assert iou_within(classes == wanted, mask) == pytest.approx(both / either)


def test_correct_keypoints_by_hand():
    source = np.array([[10, 10, 2], [20, 10, 1], [30, 10, 2], [40, 10, 2], [0, 0, 0]], float)
    edited = np.array([[13, 14, 2], [20, 15.1, 2], [30, 10, 0], [40, 10, 2], [0, 0, 2]], float)
    # Distances 5 and 5.1, one not found, one exact; the last is not in the source.
    assert correct_keypoints(source, edited, size=50, alpha=0.1) == 2 / 4
    assert correct_keypoints(source, edited, size=51, alpha=0.1) == 3 / 4
    assert correct_keypoints(source, source, size=50) == 1
    assert correct_keypoints(edited[-1:] * [1, 1, 0], source[:1], size=50) is None
    with pytest.raises(ValueError, match="cannot be compared"):
        correct_keypoints(source, edited[:2], size=50)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_correct_keypoints_by_brute_force(seed):
    generator = np.random.default_rng(seed)
    source, edited = generator.uniform(0, 30, (2, 8, 3))
    source[:, 2], edited[:, 2] = generator.integers(0, 3, (2, 8))
    found = right = 0
    for (x, y, flag), (u, v, seen) in zip(source, edited, strict=True):
        if flag:
            found += 1
            right += int(seen > 0 and math.hypot(x - u, y - v) <= 0.2 * 40)
    expected = right / found if found else None
    assert correct_keypoints(source, edited, 40, alpha=0.2) == expected


def test_one_edit_and_the_table():
    mask = np.zeros((4, 4), bool)
    mask[1:3, :] = True
    asked = []

    def segmenter(picture, name):
        asked.append(("pixels", picture[0, 0, 0], name))
        return np.eye(4, dtype=bool)

    def detector(picture, name, given):
        asked.append(("points", picture[0, 0, 0], name))
        assert given is mask
        # The box is 4 wide: with α 0.25 one pixel is near, two are not.
        shift = float(picture[0, 0, 0])
        return np.array([[1, 1, 2], [2 + shift, 1, 2], [1, 2 + 2 * shift, 2], [0, 0, 0]])

    score = shape_score(PICTURE, PICTURE + 1, mask, "dog", "a cat", segmenter, detector, alpha=0.25)
    assert score == ShapeScore(2 / 8, 2 / 3)
    assert asked == [("pixels", 1, "a cat"), ("points", 0, "dog"), ("points", 1, "a cat")]
    plain = shape_score(PICTURE, PICTURE, mask, "car", "car", lambda picture, name: mask)
    assert plain == ShapeScore(1, None)

    columns = shape_columns([score, plain, ShapeScore(0.5, 1.0)])
    np.testing.assert_allclose(columns["miou"], [0.25, 1, 0.5])
    np.testing.assert_allclose(columns["kw_miou"], [2 / 3 * 0.25, np.nan, 0.5])
    assert [column.shape for column in shape_columns([]).values()] == [(0,), (0,)]


def recoloured(scene, index):
    """The scene, one object in a colour that it has not got, and the two names of that object."""
    old = scene.objects[index]
    colour = next(c for c in COLOURS if c not in {thing.colour for thing in scene.objects})
    new = dataclasses.replace(old, colour=colour)
    objects = (*scene.objects[:index], new, *scene.objects[index + 1 :])
    return dataclasses.replace(scene, objects=objects), old.name, new.name


def test_on_scenes_the_oracle_tells_a_perfect_edit_from_none_and_from_a_shrunken_one():
    scenes = Scenes(size=8, max_objects=3, sizes=("large",), min_visible=0.9)
    perfect, unedited, shrunken = [], [], []
    for i in range(len(scenes)):
        scene = scenes.scene(i)
        target, source_name, edited_name = recoloured(scene, 0)
        thing = target.objects[0]
        small = dataclasses.replace(thing, radius=0.55 * thing.radius)
        pictures = {
            "perfect": render(target, 64),
            "unedited": render(scene, 64),
            "shrunken": render(
                dataclasses.replace(target, objects=(small, *target.objects[1:])), 64
            ),
        }
        for name, scores in (
            ("perfect", perfect),
            ("unedited", unedited),
            ("shrunken", shrunken),
        ):
            scores.append(
                shape_score(
                    pictures["unedited"],
                    pictures[name],
                    masks(scene, 64)[0],
                    source_name,
                    edited_name,
                    oracle_segmenter,
                    oracle_keypoints,
                )
            )
    best, none, less = (
        {name: column.mean() for name, column in shape_columns(s).items()}
        for s in (perfect, unedited, shrunken)
    )
    assert len(perfect) == 8
    assert best["miou"] > 0.95
    assert best["kw_miou"] > 0.9
    assert none["miou"] == none["kw_miou"] == 0
    assert 0.2 < less["miou"] < 0.45
    assert less["kw_miou"] < 0.6 * less["miou"]


def test_the_oracle_reads_names():
    scene = Scenes(size=1, min_objects=2, max_objects=2, sizes=("large",)).scene(0)
    picture, visible = render(scene, 64), masks(scene, 64)
    for thing, mask in zip(scene.objects, visible, strict=True):
        for name in (thing.name, f"A photo of a {thing.name.upper()}.", f"the {thing.colour} one"):
            found = oracle_segmenter(picture, name)
            assert (found & mask).sum() / (found | mask).sum() > 0.9
        points = oracle_keypoints(picture, thing.name, mask).reshape(len(SHAPES), -1, 3)
        assert (points[SHAPES.index(thing.shape)][:, 2] > 0).any()
        assert not np.delete(points, SHAPES.index(thing.shape), axis=0).any()
        assert not oracle_keypoints(picture, thing.name, np.zeros_like(mask)).any()
    other = next(c for c in COLOURS if c not in {thing.colour for thing in scene.objects})
    assert not oracle_segmenter(picture, f"something {other}").any()
    with pytest.raises(UserError, match="'a dog' names no object"):
        oracle_segmenter(picture, "a dog")
