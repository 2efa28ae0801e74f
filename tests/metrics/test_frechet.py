"""The Fréchet distance against closed forms, scipy and pytorch-fid; its statistics against numpy.

Golden numbers: `calculate_frechet_distance` of pytorch-fid at commit
b9c18118d082cbd263c1b8963fc4221dc1cbb659, for the features that `two_sets` makes anew here.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.errors import RunError, UserError
from vljax.metrics.frechet import Gaussian, Moments, frechet_distance, moments

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "fid.npz"


def gaussian(features):
    return Gaussian(features.mean(0), np.cov(features, rowvar=False))


def two_sets(count, dimensions=64):
    rng = np.random.default_rng(count)
    mixing = rng.standard_normal((dimensions, dimensions))
    a = rng.standard_normal((count, dimensions)) @ mixing
    b = 0.5 + 1.2 * rng.standard_normal((count + 5, dimensions)) @ mixing
    return a, b


def by_square_root(a, b):
    """The definition, by scipy's square root of the product."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    traces = np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real
    return ((a.mean - b.mean) ** 2).sum() + traces


@pytest.mark.parametrize(("name", "count"), [("full", 400), ("deficient", 20)])
def test_matches_pytorch_fid(name, count):
    a, b = map(gaussian, two_sets(count))
    assert frechet_distance(a, b) == pytest.approx(float(np.load(GOLDEN)[name]), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("counts", [(300, 250), (30, 250), (250, 12), (30, 12), (2, 2)])
def test_matches_scipy_also_with_singular_covariances(counts):
    a, b = (two_sets(400)[i][: counts[i]] for i in range(2))
    a, b = gaussian(a), gaussian(b)
    expected = by_square_root(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-4)


def test_commuting_covariances_have_a_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((50, 50)))
    deviations = rng.random((2, 50))
    deviations[0, :10] = 0
    deviations[1, 5:20] = 0
    means = rng.standard_normal((2, 50))
    a, b = (
        Gaussian(mean, (basis * s**2) @ basis.T) for mean, s in zip(means, deviations, strict=True)
    )
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_points_and_equal_gaussians():
    rng = np.random.default_rng(0)
    a = gaussian(rng.standard_normal((40, 30)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    point = Gaussian(a.mean + 2, np.zeros((30, 30)))
    other = Gaussian(a.mean, np.zeros((30, 30)))
    assert frechet_distance(point, other) == pytest.approx(4 * 30)
    assert frechet_distance(a, point) == pytest.approx(4 * 30 + np.trace(a.covariance))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_streaming_equals_all_at_once(sizes, seed):
    rng = np.random.default_rng(seed)
    # A mean far from zero is what makes naive sums of squares lose their digits.
    batches = [rng.standard_normal((size, 6)) + 1e6 for size in sizes]
    total = Moments()
    for batch in batches:
        total = total.update(batch)
    parts = [Moments().update(batch) for batch in batches]
    merged = Moments()
    for part in reversed(parts):
        merged = part.merge(merged)
    features = np.concatenate(batches)
    assert total.count == merged.count == len(features)
    if len(features) < 2:
        with pytest.raises(UserError, match=f"got {len(features)}"):
            total.finish()
        return
    for found in (total.finish(), merged.finish()):
        np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(
            found.covariance, np.cov(features, rowvar=False), rtol=1e-8, atol=1e-9
        )


def test_moments_are_of_a_networks_features():
    images = np.random.default_rng(0).standard_normal((5, 4, 2, 2, 3)).astype(np.float32)
    found = moments(jax.jit(lambda x: x.reshape(4, 12)), images).finish()
    expected = gaussian(images.reshape(20, 12).astype(float))
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-14)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-14)


def test_float64_statistics_are_needed_where_covariances_are_singular():
    """Why features leave the device: rounding covariances alone costs more than 1e-4."""
    a, b = two_sets(400)
    a = a[:20]
    exact = frechet_distance(gaussian(a), gaussian(b))
    rounded = [Gaussian(g.mean, g.covariance.astype(np.float32)) for g in map(gaussian, (a, b))]
    streamed = [Moments().update(x.astype(np.float32)).finish() for x in (a, b)]
    assert frechet_distance(*streamed) == pytest.approx(exact, rel=1e-5)
    assert abs(frechet_distance(*rounded) - exact) > 1e-4 * exact


def test_features_that_are_not_finite_stop_the_run():
    total = Moments().update(np.zeros((3, 2)))
    with pytest.raises(RunError, match="pictures 3 to 4 are not finite"):
        total.update(np.array([[0, 0], [0, np.nan]]))
