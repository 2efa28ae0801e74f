"""Layouts against closed forms, GeNeVA's own code, a loop over all relations, the oracle's truth.

Golden numbers: precision, recall, F1 and RSIM of `random_layouts` by Maluuba/GeNeVA at 7e8d597 with
scikit-learn 1.9.1's averages over samples (each picture a sample), of odd pictures as of CoDraw's
with a height between x and depth. smatsumori/LatteGAN at 79ec94c has the same functions.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.data.scenes import CLASSES, Scenes
from vljax.data.scenes.oracle import Detection, truth
from vljax.metrics.layout import (
    Layout,
    geneva_score,
    layout_of,
    mask_iou,
    match,
    mean_geneva_score,
    mean_score,
    rsim,
    score,
)


def thing(shape: str, colour: str, x: int) -> Detection:
    mask = np.zeros((32, 32), bool)
    mask[4:12, x : x + 8] = True
    box = np.array([x, 4, x + 8, 12], np.float32)
    return Detection(shape, colour, box, mask, np.zeros((6, 3)), (x + 4.0, 8.0), 4.0, 1.0, 0.9)


def test_scores_count_what_agrees():
    meant = [thing("circle", "red", 0), thing("star", "blue", 16)]
    near, far = thing("circle", "red", 2), thing("circle", "red", 6)
    wrong = thing("square", "blue", 16)
    assert score([near, wrong], meant).pairs == ((0, 0),)
    assert score([near], meant).precision == 1
    assert score([near], meant).recall == 0.5
    assert score([near], meant).f1 == pytest.approx(2 / 3)
    assert match([far], meant) == ()
    assert match([far], meant, min_iou=0) == ((0, 0),)
    # Two found for one meant: the better overlap is taken, the other is an error.
    assert score([far, near], meant[:1], min_iou=0.1).pairs == ((1, 0),)
    assert score([far, near], meant[:1]).precision == 0.5
    assert score([], meant).f1 == 0
    assert score(meant, []).precision == 0
    assert score([], []).f1 == 1
    means = mean_score([score([near], meant), score([], meant)])
    assert means == pytest.approx({"precision": 0.5, "recall": 0.25, "f1": 1 / 3})
    assert near.label == CLASSES.index("red circle")
    assert mask_iou(near.mask, meant[0].mask) == pytest.approx(6 / 10)
    assert mask_iou(near.mask & False, near.mask & False) == 0


def layout(*places):
    """A layout whose absent classes lie at places that must not count."""
    present = [place is not None for place in places]
    centres = [(0.9, 0.1) if place is None else place for place in places]
    return Layout(np.array(present), np.array(centres, float))


def by_loop(found, meant):
    """RSIM by its definition, relation by relation."""
    classes = [c for c in range(len(found.present)) if found.present[c] and meant.present[c]]
    if not classes:
        return 0.0
    agree = 0
    for i in classes:
        for j in classes:
            for axis in (0, 1):
                signs = [
                    np.sign(one.centres[i][axis] - (0.5 if i == j else one.centres[j][axis]))
                    for one in (found, meant)
                ]
                agree += signs[0] == signs[1]
    return len(classes) / sum(meant.present) * agree / (2 * len(classes) ** 2)


MEANT = layout((0.2, 0.3), (0.7, 0.8), (0.4, 0.1), None)


def test_a_copy_has_all_and_its_mirror_image_half_of_the_relations():
    copy = geneva_score(MEANT, MEANT)
    assert (copy.precision, copy.recall, copy.f1, copy.rsim) == (1, 1, 1, 1)
    mirrored = Layout(MEANT.present, MEANT.centres * [-1, 1] + [1, 0])
    assert rsim(mirrored, MEANT) == 0.5
    assert rsim(Layout(MEANT.present, 1 - MEANT.centres), MEANT) == 0
    # All is where it was but for its distance: relations are signs.
    assert rsim(Layout(MEANT.present, 0.5 + 0.1 * (MEANT.centres - 0.5)), MEANT) == 1


def test_what_is_missing_costs_recall():
    some = layout((0.2, 0.3), (0.7, 0.8), None, None)
    found = geneva_score(some, MEANT)
    assert found.rsim == found.recall == pytest.approx(2 / 3)
    assert found.precision == 1
    assert found.f1 == pytest.approx(0.8)
    # What was not asked for costs precision alone.
    more = geneva_score(layout((0.2, 0.3), (0.7, 0.8), (0.4, 0.1), (0.6, 0.6)), MEANT)
    assert (more.precision, more.recall, more.rsim) == (0.75, 1, 1)


def test_one_object_has_its_relations_to_the_centre():
    meant = layout((0.2, 0.5))
    assert rsim(layout((0.4, 0.5)), meant) == 1
    assert rsim(layout((0.4, 0.6)), meant) == 0.5  # the tie is a relation of its own
    assert rsim(layout((0.6, 0.4)), meant) == 0


def test_nothing_scores_nothing_on_either_side():
    nothing = layout(None, None, None, None)
    for found, meant in ((nothing, MEANT), (MEANT, nothing), (nothing, nothing)):
        told = geneva_score(found, meant)
        assert (told.precision, told.recall, told.f1, told.rsim) == (0, 0, 0, 0)
    assert rsim(layout((0.1, 0.1), None), layout(None, (0.1, 0.1))) == 0


_PLACES = st.lists(
    st.none() | st.tuples(*2 * [st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])]),
    min_size=5,
    max_size=5,
)


@settings(deadline=None, max_examples=50)
@given(_PLACES, _PLACES)
def test_rsim_equals_a_loop_over_relations(found, meant):
    found, meant = layout(*found), layout(*meant)
    assert rsim(found, meant) == pytest.approx(by_loop(found, meant))


def random_layouts():
    """A thousand pairs: found and meant. Places of every second one are few, so that many tie."""
    rng = np.random.default_rng(11)
    meant = rng.random((1000, 24)) < rng.uniform(0, 0.4, (1000, 1))
    found = meant ^ (rng.random((1000, 24)) < rng.uniform(0, 0.3, (1000, 1)))
    found[:20] = meant[10:30] = False
    places = rng.random((2, 1000, 24, 2))
    places[:, ::4] = np.round(4 * places[:, ::4]) / 4
    places[:, 1::4] = np.round(4 * places[:, 1::4]) / 4
    return [
        [Layout(*one) for one in zip(*pair, strict=True)]
        for pair in zip((found, meant), places, strict=True)
    ]


def test_a_thousand_pictures_score_as_genevas_and_lattegans_code_says():
    golden = np.load(Path(__file__).parents[1] / "golden" / "layout.npz")["scores"]
    found, meant = random_layouts()
    scores = [geneva_score(*pair) for pair in zip(found, meant, strict=True)]
    rows = [(one.precision, one.recall, one.f1, one.rsim) for one in scores]
    np.testing.assert_allclose(rows, golden, rtol=0, atol=1e-6)
    shared = [np.count_nonzero(a.present & b.present) for a, b in zip(found, meant, strict=True)]
    empty = [not a.present.any() and not b.present.any() for a, b in zip(found, meant, strict=True)]
    assert min(sum(empty), shared.count(0), shared.count(1)) >= 10
    told = mean_geneva_score(scores)
    for name, column in zip(("precision", "recall", "F1 (mean)", "RSIM"), golden.T, strict=True):
        assert told[name] == pytest.approx(column.mean())


def test_the_columns_of_the_papers_tables():
    good, half = geneva_score(MEANT, MEANT), geneva_score(layout((0.2, 0.3), *3 * [None]), MEANT)
    told = mean_geneva_score([good, half], last=[False, True])
    assert told["precision"] == 1
    assert told["recall"] == pytest.approx(2 / 3)
    assert told["F1 (mean)"] == pytest.approx((1 + 0.5) / 2)
    assert told["F1 (of means)"] == pytest.approx(0.8)
    assert told["RSIM"] == half.rsim == pytest.approx(1 / 3)
    assert mean_geneva_score([good, half])["RSIM"] == pytest.approx(2 / 3)


def test_the_oracles_detections_are_a_layout():
    source = Scenes(size=1, seed=3, min_objects=4, fields=("class_vector", "coordinates"))
    seen = truth(source.scene(0), 64)
    found = layout_of(seen, len(CLASSES), (64, 64))
    np.testing.assert_array_equal(found.present, source[0]["class_vector"])
    np.testing.assert_allclose(found.centres, source[0]["coordinates"] / 64, rtol=1e-6)
    # Of two of a class the surer one counts.
    unsure = thing("circle", "red", 20)
    sure = dataclasses.replace(unsure, centre=(8.0, 4.0), score=0.95)
    told = layout_of([sure, unsure], len(CLASSES), (32, 64))
    np.testing.assert_allclose(told.centres[unsure.label], (8 / 64, 4 / 32))
