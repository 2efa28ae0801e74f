"""Permanents against closed forms, brute force and the known bounds."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.errors import UserError
from vljax.ops.permanent import bethe_permanent, log_bethe_permanent, log_permanent

pytestmark = pytest.mark.usefixtures("quick_to_compile")

NO = -np.inf
bethe_converged = jax.jit(partial(log_bethe_permanent, num_iters=2000))


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def every_permutation(n: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(n))))


def brute_force(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The log-permanent by its definition, and the exact marginals, in float64."""
    n = len(x)
    p = every_permutation(n)
    weights = np.float64(x)[np.arange(n), p].sum(-1)
    log = np.logaddexp.reduce(weights)
    return log, np.einsum("p,pij->ij", np.exp(weights - log), np.eye(n)[p])


@pytest.mark.parametrize("n", [1, 8, *slow(2, 3, 16)])
def test_ones_give_a_factorial(n):
    np.testing.assert_allclose(
        jax.jit(log_permanent)(jnp.zeros((n, n))), math.lgamma(n + 1), atol=1e-5
    )


@pytest.mark.parametrize("n", [1, 5, *slow(2, 3, 8)])
def test_brute_force(n):
    run = jax.jit(jax.value_and_grad(log_permanent))
    for scale in (0.3, 3.0, 30.0):
        x = np.random.default_rng(n).standard_normal((n, n)).astype(np.float32) * scale
        log, marginals = brute_force(x)
        got, gradient = run(x)
        np.testing.assert_allclose(got, log, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(gradient, marginals, atol=2e-5)


def test_structured_matrices():
    rng = np.random.default_rng(0)
    n = 16
    permutation = rng.permutation(n)
    x = np.full((n, n), NO, np.float32)
    x[np.arange(n), permutation] = rng.standard_normal(n)
    diagonal = x[np.arange(n), permutation].sum(dtype=np.float64)
    np.testing.assert_allclose(log_permanent(x), diagonal, atol=1e-5)
    # Glynn's terms for ones below the diagonal exceed the result, 1, by 8 orders.
    lower = np.where(np.tri(n, dtype=bool), 0, NO).astype(np.float32)
    np.testing.assert_allclose(log_permanent(lower), 0, atol=1e-6)
    np.testing.assert_allclose(log_permanent(lower[::-1]), 0, atol=1e-6)
    # Upper Hessenberg ones: every row but the first doubles.
    hessenberg = np.where(np.tri(n, k=1, dtype=bool), 0, NO).astype(np.float32)
    np.testing.assert_allclose(log_permanent(hessenberg), (n - 1) * math.log(2), atol=1e-5)
    a, b = rng.standard_normal((2, 7, 7)).astype(np.float32)
    block = np.full((14, 14), NO, np.float32)
    block[:7, :7], block[7:, 7:] = a, b
    expected = brute_force(a)[0] + brute_force(b)[0]
    np.testing.assert_allclose(log_permanent(block[rng.permutation(14)]), expected, atol=1e-5)


@pytest.mark.parametrize("permanent", [log_permanent, log_bethe_permanent])
def test_zero_permanents(permanent):
    assert permanent(jnp.full((4, 4), NO)) == NO
    empty_row = jnp.zeros((4, 4)).at[1].set(NO)
    assert permanent(empty_row) == NO
    one_column_for_two = jnp.zeros((4, 4)).at[:2, 1:].set(NO)
    assert permanent(one_column_for_two) == NO
    assert np.isfinite(jax.jit(jax.grad(permanent))(one_column_for_two)).all()


@pytest.mark.parametrize("permanent", [log_permanent, log_bethe_permanent])
def test_mask_batch_and_dtype(permanent):
    x = np.random.default_rng(0).standard_normal((3, 7, 7), np.float32)
    mask = np.array([[0, 1, 1, 1, 0, 0, 0], [1] * 7, [0] * 7], bool)

    @jax.jit
    def run(x, inside):
        masked = jax.grad(lambda x: permanent(x, mask=mask).sum())
        inner = jax.value_and_grad(permanent)(inside)
        return permanent(x, mask=mask), masked(x), inner, permanent(x), jax.vmap(permanent)(x)

    got, gradient, (value, inner), whole, mapped = run(x, x[0, 1:4, 1:4])
    np.testing.assert_allclose(got[0], value, atol=1e-5)
    np.testing.assert_allclose(got[1], whole[1], atol=1e-5)
    assert got[2] == 0
    np.testing.assert_allclose(gradient[0, 1:4, 1:4], inner, atol=1e-5)
    np.testing.assert_array_equal(gradient[2], 0)
    np.testing.assert_allclose(mapped, whole, atol=1e-5)
    assert jax.eval_shape(permanent, x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("n", [2, 5, *slow(1, 3, 8)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 40.0])
def test_bethe_bounds(n, scale):
    """The bounds perm / (√2)ⁿ ≤ Bethe ≤ perm, on 20 matrices a case."""
    x = np.random.default_rng(n).standard_normal((20, n, n)).astype(np.float32) * scale
    exact = np.array([brute_force(m)[0] for m in x])
    bethe = bethe_converged(jnp.asarray(x))
    rounding = 1e-5 + 1e-6 * n * scale
    assert (bethe <= exact + rounding).all()
    assert (bethe >= exact - n / 2 * math.log(2) - rounding).all()
    if scale <= 4:  # beyond, 30 iterations need not converge
        np.testing.assert_allclose(log_bethe_permanent(jnp.asarray(x)), bethe, atol=0.05)


def test_bethe_closed_forms():
    for n in (3, 100):
        expected = n * math.log(n) + n * (n - 1) * math.log1p(-1 / n)
        np.testing.assert_allclose(log_bethe_permanent(jnp.zeros((n, n))), expected, rtol=1e-5)
    # Of a 2 × 2 matrix it is the larger of the two products.
    x = jax.random.normal(jax.random.key(1), (50, 2, 2))
    larger = jnp.maximum(x[:, 0, 0] + x[:, 1, 1], x[:, 0, 1] + x[:, 1, 0])
    np.testing.assert_allclose(bethe_converged(x), larger, atol=1e-5)
    # Two ones matrices on the diagonal: half the permanent each, the factor (√2)ⁿ attained.
    ones = jnp.kron(jnp.eye(3), jnp.ones((2, 2)))
    np.testing.assert_allclose(log_bethe_permanent(jnp.log(ones)), 0, atol=1e-6)
    np.testing.assert_allclose(log_permanent(jnp.log(ones)), 3 * math.log(2), atol=1e-6)


def test_bethe_is_exact_where_one_permutation_remains():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((12, 12)).astype(np.float32)
    p = rng.permutation(12)
    only = np.full_like(x, NO)
    only[np.arange(12), p] = x[np.arange(12), p]
    expected = x[np.arange(12), p].sum(dtype=np.float64)
    np.testing.assert_allclose(log_bethe_permanent(only), expected, atol=1e-5)
    gaps = []
    for strength in (0.0, 2.0, 4.0, 8.0):
        y = x.copy()
        y[np.arange(12), p] += strength
        gaps.append(float(log_permanent(y) - log_bethe_permanent(y)))
    assert gaps[0] > 1
    assert gaps == sorted(gaps, reverse=True)
    assert abs(gaps[-1]) < 1e-2


def test_gradient_is_the_marginals_and_stops_there():
    x, direction = np.random.default_rng(2).standard_normal((2, 4, 9, 9), np.float32)
    x *= 2

    @jax.jit
    def run(x):
        gradient = jax.grad(lambda x: log_bethe_permanent(x, 300).sum())(x)
        return bethe_permanent(x, 300), gradient, jax.grad(lambda x: bethe_permanent(x)[1].sum())(x)

    (value, marginals), gradient, nothing = run(x)
    np.testing.assert_allclose(marginals.sum(-1), 1, atol=1e-4)
    np.testing.assert_allclose(marginals.sum(-2), 1, atol=1e-4)
    np.testing.assert_allclose(gradient, marginals, atol=1e-6)
    np.testing.assert_array_equal(nothing, 0)
    # They are the true derivative (Bethe's stationarity), and attain the primal free energy.
    step = 1e-2
    ahead, behind = (log_bethe_permanent(x + s * step * direction, 300) for s in (1, -1))
    slope = (marginals * direction).sum((-2, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, atol=5e-3)
    b = np.float64(marginals)
    primal = b * x - b * np.log(b) + (1 - b) * np.log1p(-b)
    np.testing.assert_allclose(value, primal.sum((-2, -1)), atol=2e-3)


@pytest.mark.parametrize("n", [1, 40, *slow(2, 512)])
def test_bethe_at_a_million(n):
    x = np.random.default_rng(n).uniform(-1e6, 1e6, (n, n)).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(log_bethe_permanent))(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert gradient.min() >= 0
    assert gradient.max() <= 1


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"logits.shape=\(17, 17\): .* up to 16"):
        log_permanent(jnp.zeros((17, 17)))
    with pytest.raises(UserError, match="num_iters"):
        log_bethe_permanent(jnp.zeros((3, 3)), 0)
    with pytest.raises(UserError, match="square"):
        log_permanent(jnp.zeros((3, 4)))
