"""The oracle: finds all that is drawn, nothing in noise, and bears what a small model does."""

import dataclasses

import numpy as np
import pytest
import scipy.ndimage

from vljax.data.scenes import COLOURS, SHAPES, Scenes, boxes, render
from vljax.data.scenes.oracle import connected_components, detect, summary, truth
from vljax.data.scenes.world import class_coordinates, class_vector
from vljax.errors import UserError
from vljax.metrics.layout import mask_iou, mean_score, score

SINGLE = {"min_objects": 1, "max_objects": 1}
#: A sixth of the pictures by default.
shares = pytest.mark.parametrize(
    "share", [1 / 6, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)


def judged(image_size, count, corrupt=lambda image: image, **world):
    """Mean F1 over pictures, and all pairs of (found, meant) objects."""
    source = Scenes(size=count, seed=23, split="val", **world)
    scores, pairs = [], []
    for i in range(count):
        scene = source.scene(i)
        meant = truth(scene, image_size)
        found = detect(corrupt(render(scene, image_size)))
        scores.append(score(found, meant))
        pairs += [(found[a], meant[b]) for a, b in scores[-1].pairs]
    return mean_score(scores)["f1"], pairs


@shares
@pytest.mark.parametrize(
    ("image_size", "count", "world", "least"),
    [
        (64, 120, SINGLE, 0.99),
        (64, 150, {}, 0.99),
        (64, 40, {"min_objects": 5}, 0.98),
        (32, 200, SINGLE, 0.97),
        (128, 30, {}, 0.98),
        (90, 30, {}, 0.98),
    ],
)
def test_what_is_drawn_is_found(image_size, count, world, least, share):
    f1, pairs = judged(image_size, round(count * share), **world)
    assert f1 >= least
    assert np.mean([mask_iou(a.mask, b.mask) for a, b in pairs]) > (0.8 if image_size < 64 else 0.9)
    offsets = [np.hypot(*np.subtract(a.centre, b.centre)) for a, b in pairs]
    assert np.mean(offsets) < 0.01 * image_size
    assert np.mean([abs(a.radius / b.radius - 1) for a, b in pairs]) < 0.06
    known = [np.flatnonzero(b.keypoints[:, 2] == 2) for _, b in pairs]
    far = [
        np.abs(a.keypoints[k, :2] - b.keypoints[k, :2]).max()
        for (a, b), k in zip(pairs, known, strict=True)
        if len(k)
    ]
    assert np.mean(far) < 0.02 * image_size


def blurred(image):
    return scipy.ndimage.convolve1d(
        scipy.ndimage.convolve1d(image.astype(float), [0.25, 0.5, 0.25], 0), [0.25, 0.5, 0.25], 1
    ).astype(np.uint8)


def noisy(image):
    rng = np.random.default_rng(int(image.sum()))
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def shifted(image):
    rng = np.random.default_rng(int(image.sum()))
    tinted = image * rng.uniform(0.92, 1.08, 3) + rng.uniform(-12, 12, 3)
    return np.clip(tinted, 0, 255).astype(np.uint8)


@shares
@pytest.mark.parametrize(
    ("corrupt", "least"),
    [
        (blurred, 0.97),
        (noisy, 0.97),
        (shifted, 0.97),
        (lambda image: noisy(blurred(shifted(image))), 0.93),
    ],
    ids=["blur", "noise", "shift", "all"],
)
@pytest.mark.parametrize(("image_size", "world"), [(64, {}), (32, SINGLE)])
def test_what_a_small_model_does_is_borne(corrupt, least, image_size, world, share):
    f1, _ = judged(image_size, round(40 * share), corrupt, **world)
    assert f1 >= least


@shares
@pytest.mark.parametrize("image_size", [32, 64])
def test_noise_shows_nothing(image_size, share):
    rng = np.random.default_rng(5)
    shape = (image_size, image_size, 3)
    for scale in (0.3, 1.0):
        assert not any(detect(rng.normal(0, scale, shape)) for _ in range(round(500 * share)))
    assert not any(
        detect(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(round(1000 * share))
    )


@pytest.mark.parametrize("level", [0, 30, 128, 235, 255])
def test_emptiness_shows_nothing(level):
    plain = np.full((64, 64, 3), level, np.uint8)
    assert detect(plain) == []
    slope = np.clip(plain + np.linspace(-20, 20, 64)[:, None], 0, 255).astype(np.uint8)
    assert detect(slope) == []


@pytest.mark.parametrize("image_size", [32, 64])
def test_smooth_noise_shows_almost_nothing(image_size):
    rng = np.random.default_rng(6)
    seen = 0
    for _ in range(100):
        rough = rng.normal(0, 1, (image_size, image_size, 3))
        smooth = scipy.ndimage.gaussian_filter(rough, (2, 2, 0))
        seen += bool(detect(smooth / smooth.std() * 0.5))
    assert seen < 5


def test_all_forms_of_a_picture_are_read_alike():
    scene = Scenes(seed=4).scene(2)
    image = render(scene, 64)
    one, two = detect(image), detect(image.astype(np.float32) / 127.5 - 1)
    assert [(a.label, a.centre) for a in one] == [(b.label, b.centre) for b in two]
    assert len(one) == len(scene.objects)
    wide = np.concatenate([image, np.broadcast_to(image[:, -1:], (64, 24, 3))], axis=1)
    assert [a.label for a in detect(wide)] == [a.label for a in one]
    assert detect(wide)[0].mask.shape == (64, 88)


def test_detections_agree_with_themselves_and_lie_back_to_front():
    source, right, total = Scenes(size=40, seed=9, min_objects=3), 0, 0
    for i in range(40):
        scene = source.scene(i)
        found, meant = detect(render(scene, 64)), truth(scene, 64)
        assert sum(a.mask.astype(int) for a in found).max() == 1
        for one in found:
            x0, y0, x1, y1 = one.box.astype(int)
            assert one.mask[y0:y1, x0:x1].sum() == one.mask.sum()
            assert 0 < one.visible <= 1
            assert 0.7 < one.score <= 1
            for x, y, flag in one.keypoints:
                assert flag < 2 or one.mask[int(y), int(x)]
        rank = dict(score(found, meant).pairs)
        for a in rank:
            for b in rank:
                hides = rank[a] < rank[b] and meant[rank[a]].visible < 0.95
                covers = (alone(scene, rank[a]) & alone(scene, rank[b])).sum() > 12
                if a != b and hides and covers:
                    total += 1
                    right += a < b
    assert total > 20
    assert right / total > 0.97


def alone(scene, index):
    return truth(dataclasses.replace(scene, objects=(scene.objects[index],)), 64)[0].mask


def test_truth_is_the_scene():
    source = Scenes(size=10, fields=("class_vector", "coordinates"))
    for i, example in enumerate(source):
        scene = source.scene(i)
        meant = truth(scene, 64)
        np.testing.assert_array_equal(np.stack([a.box for a in meant]), boxes(scene, 64))
        labels = [one.label for one in meant]
        np.testing.assert_array_equal(class_vector(labels), example["class_vector"])
        places = class_coordinates(labels, [one.centre for one in meant])
        np.testing.assert_allclose(places, example["coordinates"], rtol=1e-6)
        perfect = score(meant, meant)
        assert (perfect.precision, perfect.recall, perfect.f1) == (1, 1, 1)


def test_a_summary_tells_what_pictures_show():
    source = Scenes(size=30, image_size=32, fields=("image",), shapes=("star",), **SINGLE)
    noise = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    told = summary([example["image"] for example in source] + list(noise))
    assert told["images"] == 40
    assert told["recognised"] == pytest.approx(0.75, abs=0.03)
    assert told["objects"] == pytest.approx(0.75, abs=0.03)
    assert told["shapes"]["star"] > 0.9
    assert set(told["shapes"]) == set(SHAPES)
    assert set(told["colours"]) == set(COLOURS)
    assert sum(told["colours"].values()) == pytest.approx(1)
    nothing = summary(noise)
    assert nothing["recognised"] == nothing["objects"] == 0


def test_components_equal_scipys():
    rng = np.random.default_rng(0)
    for share in (0.3, 0.6, 0.9):
        picture = rng.random((50, 37)) < share
        ours = connected_components(picture.astype(int))
        theirs, count = scipy.ndimage.label(picture)
        assert len(np.unique(ours[picture])) == count
        assert len(set(zip(ours[picture], theirs[picture], strict=True))) == count
    spiral = np.ones((41, 41), int)
    for k in range(0, 20, 2):
        spiral[k + 1, k : 40 - k] = 0
        spiral[k + 1 : 40 - k, 39 - k] = 0
    theirs, count = scipy.ndimage.label(spiral)
    assert len(np.unique(connected_components(spiral)[spiral == 1])) == count


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((64, 64)), np.zeros((64, 64, 4)), np.zeros((16, 16, 3)), np.zeros((64, 64, 3), int)],
)
def test_mistakes_are_named(wrong):
    with pytest.raises(UserError, match="oracle: image of"):
        detect(wrong)
