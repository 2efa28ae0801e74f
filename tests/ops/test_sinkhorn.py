"""Sinkhorn against float64 alternation, ott-jax, and its own promises."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.sinkhorn import Sinkhorn

from vljax.errors import UserError
from vljax.ops.sinkhorn import sinkhorn

METHODS = ("scaling", "log")


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_iters", [1, 2, 7, 8, 9, 20, 50])
def test_equals_the_float64_alternation_at_every_count(method, num_iters):
    x = np.random.default_rng(num_iters).standard_normal((5, 64, 64)).astype(np.float32) * 3
    got = sinkhorn(jnp.asarray(x), num_iters, method=method)
    np.testing.assert_allclose(got, alternation(x, num_iters), atol=1e-6)


@pytest.mark.parametrize("gap", [30.0, 90.0, 130.0, 400.0])
def test_contention_beyond_float32s_range(gap):
    """Entries far below 1e-38 come back within 20 iterations; a plain kernel would lose them."""
    x = contended(64, gap, np.random.default_rng(0)).astype(np.float32)
    expected = alternation(x, 20)
    for method in METHODS:
        got = sinkhorn(jnp.asarray(x), method=method)
        np.testing.assert_allclose(got, expected, atol=2e-6, err_msg=method)


def test_absorption_is_what_saves_the_contended_case():
    x = contended(64, 130.0, np.random.default_rng(0)).astype(np.float32)
    kernel = jnp.exp(x - x.max(-1, keepdims=True))
    v = jnp.ones(64)
    for _ in range(20):
        u = 1 / (kernel @ v)
        v = 1 / (u @ kernel)
    plain = u[:, None] * kernel * v
    error = np.abs(np.asarray(plain) - alternation(x, 20)).max()
    assert not error < 1e-3


@pytest.mark.parametrize("n", [1, 2, 3, 17, 512])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_finite_and_stochastic_at_any_scale(n, scale):
    x = np.round(np.random.default_rng(n).uniform(-1, 1, (n, n)) * scale).astype(np.float32)
    scaling, log = (np.asarray(sinkhorn(jnp.asarray(x), method=m)) for m in METHODS)
    expected = alternation(x, 20)
    np.testing.assert_allclose(scaling.sum(-1), 1, atol=2e-6)
    np.testing.assert_allclose(log.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(scaling, expected, atol=2e-6)
    np.testing.assert_allclose(log, expected, atol=1e-5)


def test_rows_and_columns_sum_to_one():
    x = jax.random.normal(jax.random.key(0), (4, 20, 20))
    p = sinkhorn(x, 100)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(p.sum(-2), 1, atol=1e-6)


def test_agrees_with_ott():
    x = jax.random.normal(jax.random.key(1), (32, 32)) * 2
    solver = Sinkhorn(threshold=1e-7, max_iterations=2000)
    ones = jnp.ones(32)
    theirs = solver(LinearProblem(Geometry(cost_matrix=-x, epsilon=0.5), a=ones, b=ones)).matrix
    np.testing.assert_allclose(sinkhorn(x, 500, 0.5), theirs, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_identity_and_changes_nothing_inside(method):
    x = jax.random.normal(jax.random.key(2), (3, 9, 9))
    mask = jnp.arange(9)[None] < jnp.array([[5], [0], [9]])
    mask = mask.at[0, 0].set(False)  # a start token inside
    p = sinkhorn(x, mask=mask, method=method)
    np.testing.assert_allclose(p[0, 1:5, 1:5], sinkhorn(x[0, 1:5, 1:5], method=method), atol=1e-6)
    np.testing.assert_array_equal(p[1], np.eye(9))
    np.testing.assert_allclose(p[2], sinkhorn(x[2], method=method), atol=1e-6)
    still = np.array([0, 5, 6, 7, 8])
    np.testing.assert_array_equal(p[0][still], np.eye(9)[still])
    for gradient in ("unrolled", "implicit"):
        relaxed = partial(sinkhorn, num_iters=50, mask=mask, method=method, gradient=gradient)
        g = jax.jit(jax.grad(lambda x, relaxed=relaxed: jnp.sin(relaxed(x) * 3).sum()))(x)
        assert np.isfinite(g).all()
        np.testing.assert_array_equal(g[0][still], 0)
        np.testing.assert_array_equal(g[1], 0)


@pytest.mark.parametrize("method", METHODS)
def test_unrolled_gradient_is_that_of_the_alternation(method):
    def plain(x):
        for _ in range(6):
            x = jax.nn.log_softmax(jax.nn.log_softmax(x, -2), -1)
        return (jnp.exp(x) * weight).sum()

    x, weight = jax.random.normal(jax.random.key(3), (2, 4, 8, 8)) * 2
    got = jax.grad(lambda x: (sinkhorn(x, 6, method=method) * weight).sum())(x)
    np.testing.assert_allclose(got, jax.grad(plain)(x), atol=2e-6)


def test_implicit_gradient_is_the_limit_of_the_unrolled():
    x, weight = jax.random.normal(jax.random.key(4), (2, 4, 12, 12))

    def loss(x, temperature, gradient):
        return (sinkhorn(x, 400, temperature, gradient=gradient) * weight).sum()

    for argument in (0, 1):
        unrolled, implicit = (
            jax.jit(jax.grad(loss, argument), static_argnums=2)(x, 0.7, gradient)
            for gradient in ("unrolled", "implicit")
        )
        np.testing.assert_allclose(implicit, unrolled, atol=5e-6)


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_gradients_stay_finite(gradient, scale):
    x = jax.random.uniform(jax.random.key(5), (2, 33, 33), minval=-scale, maxval=scale)
    weight = jax.random.normal(jax.random.key(6), x.shape)
    loss = jax.jit(jax.grad(lambda x: (sinkhorn(x, gradient=gradient) * weight).sum()))
    g = loss(x)
    assert np.isfinite(g).all()
    assert np.abs(g).max() < 1e3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
def test_tolerance_stops_early_and_keeps_gradients(method, gradient):
    x = jax.random.normal(jax.random.key(7), (3, 16, 16))

    def run(x, tolerance, num_iters=300):
        return sinkhorn(x, num_iters, tolerance=tolerance, method=method, gradient=gradient)

    loose = run(x, 1e-2)
    error = np.abs(loose.sum(-2) - 1).max()
    assert 1e-6 < error <= 1e-2  # it did stop, and not before it could
    np.testing.assert_allclose(run(x, -1.0, 20), sinkhorn(x, 20), atol=1e-6)
    tight = jax.grad(lambda x: (run(x, 1e-6) ** 2).sum())(x)
    full = jax.grad(lambda x: (sinkhorn(x, 300) ** 2).sum())(x)
    np.testing.assert_allclose(tight, full, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(8), (16, 16), jnp.bfloat16)
    p = sinkhorn(x)
    assert p.dtype == jnp.float32
    np.testing.assert_array_equal(p, sinkhorn(x.astype(jnp.float32)))


def test_large_batches_are_cut_up_without_effect():
    x = jax.random.normal(jax.random.key(9), (3, 7, 64, 64))
    whole = sinkhorn(x)
    np.testing.assert_allclose(whole[2, 3], sinkhorn(x[2, 3]), atol=2e-7)
    np.testing.assert_allclose(whole, jax.vmap(jax.vmap(sinkhorn))(x), atol=2e-7)
    weight = jax.random.normal(jax.random.key(10), x.shape)
    g = jax.jit(jax.grad(lambda x: (sinkhorn(x) * weight).sum()))(x)
    one = jax.grad(lambda x: (sinkhorn(x) * weight[2, 3]).sum())(x[2, 3])
    np.testing.assert_allclose(g[2, 3], one, atol=1e-6)


def test_temperature_tolerance_and_mask_do_not_recompile():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x, temperature, mask, tolerance):
        return sinkhorn(x, 20, temperature, mask, tolerance=tolerance)

    x = jax.random.normal(jax.random.key(11), (8, 8))
    for k in (3, 5, 8):
        run(x, 1.0 / k, jnp.arange(8) < k, 1e-3 * k)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"logits": jnp.zeros((2, 3))}, "logits"),
        ({"num_iters": 0}, "num_iters"),
        ({"method": "fast"}, "method"),
        ({"gradient": "none"}, "gradient"),
    ],
)
def test_mistakes_are_named(arguments, field):
    with pytest.raises(UserError, match=field):
        sinkhorn(**{"logits": jnp.zeros((3, 3))} | arguments)
