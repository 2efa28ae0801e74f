"""PixelCNN: who sees whom, exact likelihoods, and drawing value by value."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.pixelcnn import PixelCNN, from_few_levels, to_few_levels

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {"features": 6, "layers": 3, "kernel": 3, "first_kernel": 3}
SMALL |= {"value_features": 2, "head_features": 6, "context_features": 3}


def network(seed=0, **fields):
    """Random weights large enough that nothing is nearly constant."""
    model = PixelCNN(**{**SMALL, **fields}, rngs=nnx.Rngs(seed))
    return with_parameters(model, {n: 2 * v for n, v in named_parameters(model).items()})


def sees(model, side):
    """Whether the logits of value i depend on the vector of value j, both in drawing order.

    At any of several pictures, as a rectifier may be shut at one.
    """
    count = side * side * model.channels
    pictures = jax.random.normal(jax.random.key(1), (8, count, 2))

    def logits(vectors):
        found = model.logits(vectors.reshape(1, side, side, -1), jnp.ones((1, 3)))
        return found.reshape(count, -1) @ jnp.arange(1.0, model.levels + 1)

    return np.abs(np.asarray(jax.jit(jax.vmap(jax.jacrev(logits)))(pictures))).max((0, -1)) > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_value_sees_all_before_it_and_nothing_else(channels):
    """Neither its own value nor later ones, no blind spot, and the channels in their order."""
    side = 4
    wide = {"kernel": 5, "first_kernel": 5, "features": 12, "head_features": 24}
    model = network(channels=channels, levels=3, **wide)
    count = side * side * channels
    expected = np.tril(np.ones((count, count), bool), -1)
    np.testing.assert_array_equal(sees(model, side), expected)


def test_a_layer_sees_so_far_and_no_farther():
    """One layer of a 3×3 kernel: the neighbours above and the one on the left."""
    seen = sees(network(channels=1, levels=2, layers=1), 4).reshape(4, 4, 4, 4)[2, 1]
    expected = np.zeros((4, 4), bool)
    expected[1, 0:3] = expected[2, 0] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(("channels", "size"), [(1, (2, 3)), (2, (1, 3)), (3, (2, 1))])
def test_the_likelihood_is_a_probability(channels, size):
    """Of all pictures of 6 binary values; their bits are those of the chain rule."""
    model = network(channels=channels, levels=2)
    every = np.array(list(itertools.product(range(2), repeat=6))).reshape(-1, *size, channels)
    context = jnp.tile(jnp.array([[1.0, -2.0, 0.5]]), (len(every), 1))
    bits = np.asarray(jax.jit(PixelCNN.bits_per_dimension)(model, every, context), np.float64)
    p = 2 ** (-6 * bits)
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert p.max() > 3 * p.min()
    # A value's own conditional, from the sums over all pictures that begin alike.
    logits = np.asarray(model(every, context))
    told = np.asarray(jax.nn.softmax(logits)).reshape(len(every), 6, 2)
    flat = every.reshape(-1, 6)
    for place in (0, 3, 5):
        begins = (flat[:, :place] == flat[0, :place]).all(1)
        one = p[begins & (flat[:, place] == 1)].sum() / p[begins].sum()
        assert told[0, place, 1] == pytest.approx(one, abs=1e-5)


def test_the_condition_counts():
    model, values = network(levels=3), jnp.zeros((2, 2, 2, 3), jnp.int32)
    bits = model.bits_per_dimension(values, jnp.array([[0.0, 0, 0], [1, -2, 1]]))
    assert abs(bits[0] - bits[1]) > 1e-3


def test_values_are_drawn_as_often_as_they_are_likely(compilations):
    """Of pictures of four values; each row's own key; no program for another temperature."""
    model, rows = network(channels=2, levels=2), 4000
    context = jnp.ones((rows, 3))
    draw = jax.jit(PixelCNN.draw, static_argnames="size")
    keys = jax.random.split(jax.random.key(0), rows)
    how = {"size": (2, 1), "temperature": jnp.float32(1), "top_k": jnp.int32(0)}
    drawn = np.asarray(draw(model, context, keys, **how))
    every = np.array(list(itertools.product(range(2), repeat=4))).reshape(-1, 2, 1, 2)
    p = 2.0 ** (-4 * np.asarray(model.bits_per_dimension(every, context[:16])))
    counts = np.bincount(drawn.reshape(rows, 4) @ [8, 4, 2, 1], minlength=16)
    error = np.sqrt(p * (1 - p) / rows)
    assert (np.abs(counts / rows - p) < 4.5 * error + 1e-6).all()
    compilations()
    likeliest = np.asarray(draw(model, context, keys, **{**how, "temperature": jnp.float32(0)}))
    assert compilations() == 0
    assert (likeliest == likeliest[0]).all()
    swapped = np.asarray(draw(model, context, keys[::-1], **how))
    np.testing.assert_array_equal(swapped[::-1], drawn)


def test_what_drawing_remembers_is_what_a_pass_has():
    """The same noise on the whole network's log p gives the same values, past a layer's reach."""
    model, size = network(channels=2, levels=3), (3, 5)
    context = jnp.array([[1.0, -1, 2], [0, 2, -1]])
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = jax.jit(PixelCNN.draw, static_argnames="size")(model, context, keys, size=size)
    log_p = jax.nn.log_softmax(jax.jit(PixelCNN.__call__)(model, drawn, context))
    noise = jax.vmap(
        lambda key: jax.vmap(lambda n: jax.random.gumbel(jax.random.fold_in(key, n), (3,)))(
            jnp.arange(30)
        )
    )(keys)
    expected = (log_p.reshape(2, 30, 3) + noise).argmax(-1)
    np.testing.assert_array_equal(drawn.reshape(2, 30), expected)


def test_what_cannot_be_is_told():
    for fields, message in (
        ({"features": 7}, "features=7 do not divide by the 3 channels"),
        ({"kernel": 4}, "kernel=4: give an odd number"),
        ({"levels": 1}, "levels=1"),
    ):
        with pytest.raises(UserError, match=message):
            network(**{"levels": 2, **fields})


@pytest.mark.parametrize("levels", [2, 5, 8, 256])
def test_levels_are_the_middles_of_equal_ranges(levels):
    values = np.arange(levels)
    pixels = np.asarray(from_few_levels(values, levels))
    np.testing.assert_array_equal(to_few_levels(pixels, levels), values)
    counts = np.bincount(np.asarray(to_few_levels(np.arange(256), levels)))
    assert counts.max() - counts.min() <= 1
    assert np.abs(pixels + 0.5 - (values + 0.5) * 256 / levels).max() <= 0.5
