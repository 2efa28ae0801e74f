"""Sinkhorn against float64 alternation, ott-jax, and its own promises."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.errors import UserError
from vljax.ops.sinkhorn import sinkhorn

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def alternation(x: np.ndarray, num_iters: int) -> np.ndarray:
    """Columns then rows, in float64, one log-sum-exp at a time."""
    x = x.astype(np.float64)
    for _ in range(num_iters):
        for axis in (-2, -1):
            top = x.max(axis, keepdims=True)
            x = x - top - np.log(np.exp(x - top).sum(axis, keepdims=True))
    return np.exp(x)


def contended(n: int, gap: float, rng: np.random.Generator) -> np.ndarray:
    """All rows but one want the one column: the case that drives factors apart fastest."""
    x = rng.standard_normal((n, n))
    x[:-1, 0] += gap
    return x


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Of 64 rows the factors are taken in after every 7 iterations: none, some, several times.
@pytest.mark.parametrize("num_iters", [1, 8, 20, *slow(2, 7, 9, 50)])
def test_equals_the_float64_alternation_at_every_count(num_iters):
    x = normal(num_iters, 5, 64, 64) * 3
    np.testing.assert_allclose(sinkhorn(x, num_iters), alternation(x, num_iters), atol=1e-6)


def test_contention_beyond_float32s_range():
    """Entries far below 1e-38 come back within 20 iterations; a plain kernel would lose them."""
    for gap in (30.0, 90.0, 130.0, 400.0):
        x = contended(64, gap, np.random.default_rng(0)).astype(np.float32)
        np.testing.assert_allclose(sinkhorn(x), alternation(x, 20), atol=2e-6, err_msg=str(gap))


def test_absorption_is_what_saves_the_contended_case():
    x = contended(64, 130.0, np.random.default_rng(0)).astype(np.float32)
    kernel = np.exp(x - x.max(-1, keepdims=True))
    v = np.ones(64, np.float32)
    for _ in range(20):
        u = 1 / (kernel @ v)
        with np.errstate(all="ignore"):
            v = 1 / (u @ kernel)
    with np.errstate(all="ignore"):
        plain = u[:, None] * kernel * v
    error = np.abs(plain - alternation(x, 20)).max()
    assert not error < 1e-3


@pytest.mark.parametrize("n", [2, 17, *slow(1, 3, 512)])
def test_finite_and_stochastic_at_any_scale(n):
    """Up to logits of a million, which is a temperature of a millionth."""
    for scale in (1.0, 1e3, 1e6):
        x = np.round(np.random.default_rng(n).uniform(-1, 1, (n, n)) * scale).astype(np.float32)
        found = np.asarray(sinkhorn(x))
        np.testing.assert_allclose(found.sum(-1), 1, atol=2e-6)
        np.testing.assert_allclose(found, alternation(x, 20), atol=2e-6)


def test_small_temperatures():
    x = normal(12, 2, 64, 64)
    run = jax.jit(lambda x, temperature: sinkhorn(x, 20, temperature))
    for temperature in (1.0, 0.1, 0.03125, 2.0**-10):
        expected = alternation(x / np.float32(temperature), 20)
        np.testing.assert_allclose(run(x, temperature), expected, atol=2e-6)


def test_rows_and_columns_sum_to_one():
    p = sinkhorn(normal(0, 4, 20, 20), 100)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(p.sum(-2), 1, atol=1e-6)


def test_agrees_with_ott():
    geometry = pytest.importorskip("ott.geometry.geometry")
    problems = pytest.importorskip("ott.problems.linear.linear_problem")
    solvers = pytest.importorskip("ott.solvers.linear.sinkhorn")
    x, ones = jnp.asarray(normal(1, 32, 32)) * 2, jnp.ones(32)
    costs = geometry.Geometry(cost_matrix=-x, epsilon=0.5)
    solver = solvers.Sinkhorn(threshold=1e-7, max_iterations=2000)
    theirs = solver(problems.LinearProblem(costs, a=ones, b=ones)).matrix
    np.testing.assert_allclose(sinkhorn(x, 500, 0.5), theirs, atol=1e-6)


def test_padding_is_identity_and_changes_nothing_inside():
    x = normal(2, 3, 9, 9)
    mask = np.arange(9)[None] < np.array([[5], [0], [9]])
    mask[0, 0] = False  # a start token inside

    def loss(x):
        p = sinkhorn(x, mask=mask)
        return jnp.sin(p * 3).sum(), p

    g, p = jax.jit(jax.grad(loss, has_aux=True))(x)
    np.testing.assert_allclose(p[0, 1:5, 1:5], sinkhorn(x[0, 1:5, 1:5]), atol=1e-6)
    np.testing.assert_array_equal(p[1], np.eye(9))
    np.testing.assert_allclose(p[2], sinkhorn(x[2]), atol=1e-6)
    still = np.array([0, 5, 6, 7, 8])
    np.testing.assert_array_equal(p[0][still], np.eye(9)[still])
    assert np.isfinite(g).all()
    np.testing.assert_array_equal(g[0][still], 0)
    np.testing.assert_array_equal(g[1], 0)


def test_the_gradient_is_that_of_the_alternation():
    def plain(x):
        for _ in range(6):
            x = jax.nn.log_softmax(jax.nn.log_softmax(x, -2), -1)
        return jnp.exp(x)

    x, weight = normal(3, 2, 4, 8, 8) * 2

    @jax.jit
    def both(x):
        return [
            jax.grad(lambda x, f=f: (f(x) * weight).sum())(x)
            for f in (lambda x: sinkhorn(x, 6), plain)
        ]

    np.testing.assert_allclose(*both(x), atol=2e-6)


@pytest.mark.parametrize("scale", [1e6, *slow(1e2)])
def test_gradients_stay_finite(scale):
    x = np.random.default_rng(5).uniform(-scale, scale, (2, 33, 33)).astype(np.float32)
    weight = normal(6, *x.shape)
    g = jax.jit(jax.grad(lambda x: (sinkhorn(x) * weight).sum()))(x)
    assert np.isfinite(g).all()
    assert np.abs(g).max() < 1e3


def test_bfloat16_is_computed_in_float32():
    x = normal(8, 16, 16).astype(jnp.bfloat16)
    p = sinkhorn(jnp.asarray(x))
    assert p.dtype == jnp.float32
    np.testing.assert_array_equal(p, sinkhorn(x.astype(np.float32)))


def test_large_batches_are_cut_up_without_effect():
    x = normal(9, 3, 3, 64, 64)
    weight = normal(10, *x.shape)

    @jax.jit
    def run(x):
        def loss(x):
            p = sinkhorn(x)
            return (p * weight).sum(), p

        return jax.grad(loss, has_aux=True)(x)

    @jax.jit
    def alone(x, weight):
        return jax.grad(lambda x: (sinkhorn(x) * weight).sum())(x), sinkhorn(x)

    g, whole = run(x)
    one, single = alone(x[2, 2], weight[2, 2])
    np.testing.assert_allclose(whole[2, 2], single, atol=2e-7)
    np.testing.assert_allclose(whole[0, 0], alternation(x[0, 0], 20), atol=1e-6)
    np.testing.assert_allclose(g[2, 2], one, atol=1e-6)


def test_temperature_and_mask_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, temperature, mask):
        return sinkhorn(x, 20, temperature, mask)

    x = normal(11, 8, 8)
    for k in (3, 5, 8):
        run(x, 1.0 / k, np.arange(8) < k)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"logits": np.zeros((2, 3))}, "logits"), ({"num_iters": 0}, "num_iters")],
)
def test_mistakes_are_named(arguments, field):
    with pytest.raises(UserError, match=field):
        sinkhorn(**{"logits": np.zeros((3, 3))} | arguments)
