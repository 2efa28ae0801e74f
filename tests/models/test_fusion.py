"""Every fusion joins a question with a map, by its formula, and learns in all its parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.fusion import FUSIONS, fusion
from vljax.models.parameters import named_parameters
from vljax.ops.fusion import signed_unit, tucker

pytestmark = pytest.mark.usefixtures("quick_to_compile")

X, Y, OUT = 5, 7, 12
FIELDS = {
    "concat": {"hidden": 9},
    "mlb": {"hidden": 9},
    "mfb": {"rank": 3, "rate": 0.5},
    "mutan": {"hidden": 4, "rank": 3},
    "block": {"hidden": 8, "blocks": 2, "rank": 3},
}


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, X), np.float32)
    return jnp.asarray(x), jnp.asarray(rng.standard_normal((2, 1, 1, Y), np.float32))


def make(kind, **fields):
    return fusion(kind, X, Y, OUT, rngs=nnx.Rngs(0), **(FIELDS.get(kind, {}) | fields))


def test_both_sides_and_all_parameters_count():
    models = {kind: make(kind) for kind in sorted({*FUSIONS} - {"picture"})}
    x, y = inputs()

    @jax.jit
    def run(models, x, y):
        def loss(model, x, y):
            z = model(x, y, "map")
            return (z * jnp.arange(z.size).reshape(z.shape)).sum(), z

        derive = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return {kind: derive(model, x, y) for kind, model in models.items()}

    for kind, ((_, z), (to_model, to_x, to_y)) in run(models, x, y).items():
        assert z.shape == (2, 3, 4, OUT), kind
        parameters = named_parameters(to_model)
        for name, gradient in {"x": to_x, "y": to_y, **parameters}.items():
            assert np.isfinite(gradient).all(), (kind, name)
            assert np.abs(gradient).max() > 1e-6, (kind, name)
        assert bool(parameters) == (kind != "mcb")


def test_formulas_by_hand():
    x, y = inputs()
    product = make("product")
    np.testing.assert_allclose(product.join(x, y), product.x(x) * product.y(y), rtol=1e-6)
    np.testing.assert_allclose(
        product(x, y, "map"), signed_unit(product.join(x, y), "map"), rtol=1e-6
    )
    # A question of the map's size enters as it is, as published.
    assert fusion("product", X, OUT, OUT, rngs=nnx.Rngs(0)).y is None
    concat = make("concat")
    both = jnp.concatenate([x, jnp.broadcast_to(y, (2, 3, 4, Y))], axis=-1)
    weight = jnp.concatenate([concat.x.weight[...], concat.y.weight[...]])
    hidden = jax.nn.relu(both @ weight + concat.y.bias[...])
    np.testing.assert_allclose(concat(x, y), concat.out(hidden), atol=1e-5)
    added = make("sum")
    np.testing.assert_allclose(added(x, y), jnp.tanh(added.x(x) + added.y(y)), atol=1e-6)
    mlb = make("mlb")
    joint = jnp.tanh(mlb.x(x)) * jnp.tanh(mlb.y(y))
    np.testing.assert_allclose(mlb(x, y), mlb.out(joint), atol=1e-5)


def test_one_block_is_mutans_pooling_before_its_norm():
    x, y = inputs()
    block = make("block", blocks=1)
    pooled = tucker(block.x(x), block.y(y), block.left[...][0], block.right[...][0])
    joint, finished, halves = jax.jit(
        lambda one, two: (one.join(x, y), one(x, y), two(x, y).reshape(2, 3, 4, 2, -1))
    )(block, make("block"))
    np.testing.assert_allclose(joint, pooled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(finished, signed_unit(pooled), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((halves**2).sum(-1), 1, atol=1e-3)


def test_dropout_falls_on_factors_before_their_sum():
    x, y = inputs()
    model = make("mfb")
    dropped = model.join(x, y, jax.random.key(0))
    products = (model.x(x) * model.y(y)).reshape(2, 3, 4, OUT, 3)
    # Each of three products is gone or doubled.
    kept = jnp.array(np.unravel_index(np.arange(8), (2, 2, 2)))
    possible = 2 * products @ kept
    assert jnp.abs(possible - dropped[..., None]).min(-1).max() < 1e-5
    np.testing.assert_allclose(model.join(x, y), products.sum(-1), rtol=1e-4, atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"fusion='cat': choose 'product', 'concat'"):
        make("cat")
    with pytest.raises(UserError, match=r"blocks=5 of a block fusion: choose a divisor of"):
        make("block", blocks=5)
