"""The permutation network: padding, what stays in place, and both heads."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.permutation_network import PermutationNetwork

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def text_batch():
    """Two targets of three and one words, and their sources of four and none."""
    return {
        "source": np.array([[4, 5, 6, 7], [0, 0, 0, 0]], np.int32),
        "source_mask": np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool),
        "target": np.array([[1, 8, 9, 4, 2, 0], [1, 5, 2, 0, 0, 0]], np.int32),
        "target_mask": np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], bool),
    }


@functools.lru_cache
def network(distribution="gumbel_matching", region_features=0):
    return PermutationNetwork(
        10,
        region_features,
        layers=1,
        features=16,
        heads=2,
        hidden=16,
        distribution=distribution,
        rngs=nnx.Rngs(0),
    )


logits = jax.jit(lambda model, batch: model(batch))


@pytest.mark.parametrize("distribution", ["gumbel_matching", "plackett_luce"])
def test_marks_and_padding_stay_in_place(distribution):
    @jax.jit
    def draw(model, batch, key):
        posterior = model.distribution(batch)
        return posterior.logits, posterior.sample(key, (16,))

    made, samples = draw(network(distribution), text_batch(), jax.random.key(0))
    assert made.shape == ((2, 6, 6) if distribution == "gumbel_matching" else (2, 6))
    samples = np.asarray(samples)
    np.testing.assert_array_equal(np.sort(samples, -1), np.broadcast_to(np.arange(6), (16, 2, 6)))
    np.testing.assert_array_equal(samples[:, 0, [0, 4, 5]], [[0, 4, 5]] * 16)
    np.testing.assert_array_equal(samples[:, 1], [list(range(6))] * 16)
    assert len(np.unique(samples[:, 0], axis=0)) > 2


def test_padding_changes_nothing_and_the_order_of_the_words_counts():
    batch = text_batch()
    expected = logits(network(), batch)
    batch["target"][0, 5], batch["target"][1, 3:] = 7, 9
    batch["source"][1] = 3
    found = logits(network(), batch)
    np.testing.assert_allclose(found[0, :5, :5], expected[0, :5, :5], atol=1e-5)
    np.testing.assert_allclose(found[1, :3, :3], expected[1, :3, :3], atol=1e-5)
    batch["target"][0, 1:4] = batch["target"][0, 3:0:-1]
    found = logits(network(), batch)
    assert np.abs(found[0, 1:4, 1:4] - expected[0, 3:0:-1, 3:0:-1]).max() > 1e-3


def test_the_logits_are_queries_on_keys_over_all_heads():
    """Σ over heads of Q Kᵀ / √d: linear in the keys, so twice the keys give twice the logits."""
    batch, model = text_batch(), network()
    names = named_parameters(model)
    doubled = {name: 2 * value for name, value in names.items() if name.startswith("key.")}
    assert len(doubled) == 2
    found = logits(with_parameters(model, doubled), batch)
    np.testing.assert_allclose(found, 2 * logits(model, batch), rtol=1e-4, atol=1e-5)
    assert "score.weight" in named_parameters(network("plackett_luce"))


def test_regions_are_a_set():
    model = network(region_features=3)
    generator = np.random.default_rng(0)
    batch = text_batch() | {
        "regions": generator.standard_normal((2, 5, 3)).astype(np.float32),
        "boxes": generator.random((2, 5, 4)).astype(np.float32),
        "regions_mask": np.arange(5)[None] < np.array([[5], [2]]),
    }
    expected = logits(model, batch)
    shuffled = batch | {
        name: batch[name][:, [1, 0, 4, 3, 2]] for name in ("regions", "boxes", "regions_mask")
    }
    np.testing.assert_allclose(logits(model, shuffled), expected, atol=1e-4)
    batch["boxes"][0, 0] += 0.5
    assert np.abs(logits(model, batch)[0] - expected[0]).max() > 1e-4


def test_mistakes_name_their_field():
    sizes = {"layers": 1, "features": 16, "heads": 2, "hidden": 16, "rngs": nnx.Rngs(0)}
    with pytest.raises(UserError, match=r"scheme='absolute'"):
        PermutationNetwork(10, 0, scheme="absolute", **sizes)
    with pytest.raises(UserError, match=r"distribution='uniform'"):
        PermutationNetwork(10, 0, distribution="uniform", **sizes)
