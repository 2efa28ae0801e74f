"""Sinkhorn normalisation: from a square matrix of logits to a doubly stochastic matrix.

One iteration divides every column of `exp(logits / temperature)` by its sum, then every row
(Sinkhorn, 1964; as an operator on logits Adams & Zemel, 2011; Mena et al., "Learning Latent
Permutations with Gumbel-Sinkhorn Networks", ICLR 2018, section 2). Rows come last, so rows sum
to one exactly and columns in the limit.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from vljax.errors import UserError

Method = Literal["scaling", "log"]
Carry = tuple[Array, ...]


def mask_logits(logits: Float[Array, "*b n n"], mask: Bool[Array, "*#b n"] | None) -> Array:
    """Ties every position outside `mask` to itself.

    Args:
        logits: square matrices, any float dtype.
        mask: True where a position may move. A position that is False keeps its place: its
            diagonal logit becomes 0 and the rest of its row and column −inf, so that it is a
            fixed point of every permutation of positive weight. None moves everything.

    Returns:
        The logits in at least float32.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mask is None:
        return logits
    fixed = jnp.where(jnp.eye(logits.shape[-1], dtype=bool), 0.0, -jnp.inf)
    return jnp.where(mask[..., :, None] & mask[..., None, :], logits, fixed)


def sinkhorn(
    logits: Float[Array, "*b n n"],
    num_iters: int = 20,
    temperature: float | Float[Array, ""] = 1.0,
    mask: Bool[Array, "*#b n"] | None = None,
    *,
    method: Method = "scaling",
    gradient: Literal["unrolled", "implicit"] = "unrolled",
    tolerance: float | Float[Array, ""] | None = None,
) -> Float[Array, "*b n n"]:
    """Normalises `exp(logits / temperature)` towards a doubly stochastic matrix.

    Args:
        logits: square matrices of any float dtype and any finite size; −inf forbids an entry.
            Every row and column needs one finite logit.
        num_iters: iterations, each columns then rows; static.
        temperature: positive divisor of the logits; traced.
        mask: True where a position takes part. The others become rows and columns of the identity.
        method: "scaling" keeps the matrix fixed and updates one factor per row and column, two
            matrix-vector products an iteration. The factors are folded back into the matrix
            before they can hide an entry that float32 cannot hold, so it is as stable as "log",
            which works on log-sum-exps throughout. Both give the same matrix to 1e-6.
        gradient: "unrolled" differentiates the iterations that were run. "implicit"
            differentiates the fixed point by one linear solve per matrix (Eisenberger et al.,
            "A Unified Framework for Implicit Sinkhorn Differentiation", CVPR 2022), with memory
            that does not grow with `num_iters`; it is right to the extent that they converged.
        tolerance: stop as soon as every column of every matrix in the batch sums to one within
            this; traced. Under `vmap` the result is the same but no time is saved.

    Returns:
        Non-negative matrices in float32 (float64 for float64 input) whose rows sum to one.

    Raises:
        UserError: the matrix is not square, `num_iters` is not positive, or `method` or
            `gradient` is unknown.
    """
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise UserError(f"logits: shape {logits.shape} is not square; give [..., n, n]")
    if num_iters < 1:
        raise UserError(f"num_iters: {num_iters} is not positive; give at least 1")
    if method not in ("scaling", "log"):
        raise UserError(f"method: {method!r} is unknown; give 'scaling' or 'log'")
    if gradient not in ("unrolled", "implicit"):
        raise UserError(f"gradient: {gradient!r} is unknown; give 'unrolled' or 'implicit'")
    logits = mask_logits(logits, mask)
    logits = logits / jnp.asarray(temperature, logits.dtype)
    normalise = _implicit if gradient == "implicit" else _normalise
    return normalise(logits, tolerance, num_iters, method)


@partial(jax.jit, static_argnums=(2, 3))
def _normalise(
    logits: Array, tolerance: float | Array | None, num_iters: int, method: Method
) -> Array:
    form = _scaling_form if method == "scaling" else _log_form

    def whole(logits: Array) -> Array:
        return form(logits, tolerance, num_iters)

    def pieces(logits: Array) -> Array:
        batch = logits.reshape(-1, *logits.shape[-2:])
        full = len(batch) // size * size
        chunks = batch[:full].reshape(-1, size, *batch.shape[-2:])
        done = lax.map(whole, chunks).reshape(batch[:full].shape)
        if full < len(batch):
            done = jnp.concatenate([done, whole(batch[full:])])
        return done.reshape(logits.shape)

    # A processor core reads the matrices num_iters times: a piece is what its cache holds.
    size = max(1, 2**17 // (logits.shape[-1] ** 2 * logits.dtype.itemsize))
    if math.prod(logits.shape[:-2]) <= size:
        return whole(logits)
    return lax.platform_dependent(logits, cpu=pieces, default=whole)


def _repeat(
    step: Callable[[Carry], Carry], carry: Carry, length: int, tolerance: float | Array | None
) -> Carry:
    """Applies `step` up to `length` times, while the error, the carry's last part, is too large."""

    # A scan of conditionals, not a while loop, because reverse mode needs a bounded length.
    def body(carry: Carry, _: None) -> tuple[Carry, None]:
        if tolerance is None:
            return step(carry), None
        return lax.cond(carry[-1] > tolerance, step, lambda c: c, carry), None

    return lax.scan(body, carry, length=length)[0]


def _scaling_form(logits: Array, tolerance: float | Array | None, num_iters: int) -> Array:
    """Sinkhorn by scaling factors, after Schmitzer (2019), section 3.1 ("absorption")."""
    n = logits.shape[-1]
    # The first iteration shifts by column and row maxima. From there on every row and column sum
    # lies in [1/n, n], hence so does every update of a factor: m iterations move an entry by at
    # most n^2m. An entry below float32's range therefore stays negligible (1e-9) for
    # n^(2m+1) <= 1e29, and m is how long the matrix may go without taking the factors in.
    log = logits - lax.stop_gradient(logits.max(-2, keepdims=True))
    v = 1 / jnp.exp(log).sum(-2)
    log = log - lax.stop_gradient(log.max(-1, keepdims=True))
    kernel = jnp.exp(log)
    u = 1 / _rows(kernel, v)
    error = jnp.asarray(jnp.inf, u.dtype)
    period = max(1, int((29 * math.log(10) / math.log(max(n, 2)) - 1) / 2))

    def iterations(kernel: Array, carry: Carry, length: int) -> Carry:
        def step(carry: Carry) -> Carry:
            u, v, _ = carry
            column = _columns(kernel, u)
            error = jnp.abs(column * v - 1).max()
            v = 1 / column
            return 1 / _rows(kernel, v), v, error

        return _repeat(step, carry, length, tolerance)

    def absorb(carry: Carry) -> Carry:
        log, kernel, *factors = carry
        u, v, error = iterations(kernel, tuple(factors), period)
        log = log + jnp.log(u)[..., :, None] + jnp.log(v)[..., None, :]
        # The product is the more accurate of the two wherever the entry is a normal number.
        scaled = kernel * u[..., :, None] * v[..., None, :]
        kernel = jnp.where(kernel > 1e-30, scaled, jnp.exp(log))
        return log, kernel, jnp.ones_like(u), jnp.ones_like(v), error

    # The last iterations, at least one and at most `period`, leave their factors outside.
    blocks = max(0, num_iters - 2) // period
    carry = _repeat(absorb, (log, kernel, u, v, error), blocks, tolerance)
    _, kernel, *factors = carry
    u, v, _ = iterations(kernel, tuple(factors), num_iters - 1 - blocks * period)
    return kernel * u[..., :, None] * v[..., None, :]


def _rows(kernel: Array, v: Array) -> Array:
    return jnp.matmul(kernel, v[..., :, None], precision=lax.Precision.HIGHEST)[..., 0]


def _columns(kernel: Array, u: Array) -> Array:
    return jnp.matmul(u[..., None, :], kernel, precision=lax.Precision.HIGHEST)[..., 0, :]


def _log_form(logits: Array, tolerance: float | Array | None, num_iters: int) -> Array:
    """Sinkhorn on log potentials: logits + f (rows) + g (columns)."""

    def step(carry: Carry) -> Carry:
        f, g, _ = carry
        column = -jax.nn.logsumexp(log + f[..., :, None], axis=-2)
        error = jnp.abs(jnp.expm1(g - column)).max()
        return -jax.nn.logsumexp(log + column[..., None, :], axis=-1), column, error

    # The first iteration is taken in, so that large logits leave small, exact potentials.
    log = jax.nn.log_softmax(jax.nn.log_softmax(logits, axis=-2), axis=-1)
    zeros = jnp.zeros_like(log[..., 0])
    start = (zeros, zeros, jnp.asarray(jnp.inf, log.dtype))
    f, g, _ = _repeat(step, start, num_iters - 1, tolerance)
    return jnp.exp(log + f[..., :, None] + g[..., None, :])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _implicit(
    logits: Array, tolerance: float | Array | None, num_iters: int, method: Method
) -> Array:
    return _normalise(logits, tolerance, num_iters, method)


def _implicit_forward(
    logits: Array, tolerance: float | Array | None, num_iters: int, method: Method
) -> tuple[Array, tuple[Array, float | Array | None]]:
    p = _normalise(logits, tolerance, num_iters, method)
    return p, (p, tolerance)


def _implicit_backward(
    num_iters: int, method: Method, residuals: tuple[Array, float | Array | None], cotangent: Array
) -> tuple[Array, float | Array | None]:
    # With W = cotangent ∘ P and c = Pᵀ 1, the potentials' adjoints solve a + P b = W 1 and
    # Pᵀ a + c ∘ b = Wᵀ 1, where c, one at convergence, keeps the system semidefinite before. The
    # constants (1, −1) are in its kernel and drop out of a ⊕ b; the ridge covers the further
    # kernels of a P that is (nearly) block-diagonal, padding among them.
    p, tolerance = residuals
    n = p.shape[-1]
    weighted = cotangent * p
    rows, columns = weighted.sum(-1), weighted.sum(-2)
    high = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    transposed = jnp.swapaxes(p, -1, -2)
    ridge = 4 * n * jnp.finfo(p.dtype).eps
    diagonal = (p.sum(-2) + ridge)[..., None] * jnp.eye(n, dtype=p.dtype)
    schur = diagonal - high(transposed, p) + 1 / n
    factor = jax.scipy.linalg.cho_factor(schur, lower=True)
    rhs = columns - _columns(p, rows)
    b = jax.scipy.linalg.cho_solve(factor, rhs[..., None])[..., 0]
    a = rows - _rows(p, b)
    grad = weighted - p * (a[..., :, None] + b[..., None, :])
    return grad, None if tolerance is None else jnp.zeros_like(tolerance)


_implicit.defvjp(_implicit_forward, _implicit_backward)
