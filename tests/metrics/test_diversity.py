"""Diversity: which pairs are compared, with what distance, and how that is summed up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.metrics.diversity import (
    Distance,
    diversity,
    embedding_distance,
    lpips_distance,
)
from vljax.models.perceptual import LPIPS

ABSOLUTE = Distance("absolute", lambda x: x, lambda a, b: jnp.abs(a - b).mean((1, 2, 3)))


def plain(*values):
    return np.stack([np.full((2, 2, 3), value, np.float32) for value in values])


def test_mean_and_spread_over_guidances():
    found = diversity([plain(0, 1, 3), plain(5, 5)], ABSOLUTE)
    assert found.label == "absolute"
    assert found.pairs == 4
    assert found.mean == pytest.approx((2 + 0) / 2)
    assert found.spread == pytest.approx(1)


def test_batches_of_pairs_do_not_change_the_result():
    group = np.random.default_rng(0).random((7, 2, 2, 3), dtype=np.float32)
    whole = diversity([group], ABSOLUTE, batch_size=21)
    assert whole.pairs == 21
    assert diversity([group], ABSOLUTE, batch_size=4).mean == pytest.approx(whole.mean, rel=1e-6)


def test_stand_in_is_labelled_and_measures_angles():
    distance = embedding_distance(lambda x: x.reshape(len(x), -1), "CLIP of this run")
    a, b, c = plain(1, 2, -1)
    found = diversity([np.stack([a, b]), np.stack([a, c])], distance)
    assert found.label == "1 − cosine of CLIP of this run (stand-in for LPIPS)"
    assert found.mean == pytest.approx((0 + 2) / 2, abs=1e-6)


def test_lpips_of_all_pairs_equals_pair_by_pair():
    rng = np.random.default_rng(0)
    model = jax.tree.map(
        lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: LPIPS("alex", rngs=nnx.Rngs(0))),
    )
    images = rng.uniform(-1, 1, (3, 33, 33, 3)).astype(np.float32)
    found = diversity([images], lpips_distance(model))
    assert found.label == "LPIPS (alex)"
    i, j = zip(*itertools.combinations(range(3), 2), strict=True)
    expected = jax.jit(lambda model, x, y: model(x, y))(model, images[[*i]], images[[*j]])
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-5)


def test_too_few_pictures_are_refused():
    with pytest.raises(UserError, match="got 1"):
        diversity([plain(0)], ABSOLUTE)
    with pytest.raises(UserError, match="got none"):
        diversity([], ABSOLUTE)
