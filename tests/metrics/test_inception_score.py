"""The Inception Score against closed forms and scipy."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from vljax.errors import UserError
from vljax.metrics.inception_score import inception_score


def test_pictures_that_are_all_alike_score_one():
    assert inception_score(np.zeros((50, 7))) == pytest.approx((1, 0), abs=1e-12)
    alike = np.tile(np.random.default_rng(0).standard_normal(7), (50, 1))
    assert inception_score(alike) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("certainty", [60.0, 1e4])
def test_certain_and_balanced_classes_score_their_number(certainty):
    # The other classes have a probability that vanishes, or is zero in float64.
    logits = np.tile(certainty * np.eye(8, dtype=np.float32), (5, 1))
    assert inception_score(logits, splits=5) == pytest.approx((8, 0))
    half = np.tile(certainty * np.eye(8)[:4], (10, 1))
    assert inception_score(half, splits=1) == pytest.approx((4, 0))


def test_matches_the_mean_relative_entropy():
    logits = 2 * np.random.default_rng(0).standard_normal((23, 9))
    probabilities = scipy.special.softmax(logits, axis=1)
    scores = []
    for start, stop in ((0, 7), (7, 15), (15, 23)):
        part = probabilities[start:stop]
        entropies = [scipy.stats.entropy(p, part.mean(0)) for p in part]
        scores.append(np.exp(np.mean(entropies)))
    expected = (np.mean(scores), np.std(scores))
    assert inception_score(logits, splits=3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("splits", [0, 4])
def test_impossible_splits_are_refused(splits):
    with pytest.raises(UserError, match=f"splits={splits} for 3 pictures"):
        inception_score(np.zeros((3, 2)), splits=splits)
