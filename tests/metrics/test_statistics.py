"""Standard errors against closed forms and draws."""

import numpy as np
import pytest
from scipy import stats

from vljax.metrics.statistics import share_of, standard_error


def test_the_standard_error_is_scipys():
    values = np.random.default_rng(0).normal(size=7)
    assert standard_error(values) == pytest.approx(stats.sem(values))
    assert standard_error([True, False]) == pytest.approx(0.5)


@pytest.mark.parametrize("few", [[], [1.0]])
def test_fewer_than_two_values_have_none(few):
    assert np.isnan(standard_error(few))


def test_a_share_and_its_error_by_pictures():
    right, counts = np.array([1.0, 0, 0, 1]), np.ones(4)
    assert share_of(right, counts) == pytest.approx((0.5, standard_error(right)))
    assert np.isnan(share_of(np.zeros(3), np.zeros(3))).all()
    share, error = share_of(np.ones(1), np.full(1, 2.0))
    assert share == 0.5
    assert np.isnan(error)


def test_the_error_of_a_share_is_how_it_varies():
    rng = np.random.default_rng(0)
    told = []
    for _ in range(400):
        # All things of a picture are right, or none is: pictures are the samples.
        counts = rng.integers(1, 4, 50).astype(float)
        told.append(share_of(counts * (rng.random(50) < 0.3), counts))
    shares, errors = np.transpose(told)
    assert errors.mean() == pytest.approx(shares.std(), rel=0.1)
