"""Sinkhorn normalisation: from a square matrix of logits to a doubly stochastic matrix.

One iteration divides every column of `exp(logits / temperature)` by its sum, then every row
(Sinkhorn, 1964; as an operator on logits Adams & Zemel, 2011; Mena et al., "Learning Latent
Permutations with Gumbel-Sinkhorn Networks", ICLR 2018, section 2). Rows come last, so rows sum
to one exactly and columns in the limit.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from vljax.errors import UserError


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
) -> Float[Array, "*b n n"]:
    """Normalises `exp(logits / temperature)` towards a doubly stochastic matrix.

    The matrix stays as it is and one factor per row and column changes, two matrix-vector products
    an iteration. The factors are folded back into the matrix before they can hide an entry that
    float32 cannot hold, so logits of any finite size and any temperature give what iterations on
    log-sum-exps in float64 give, to 2e-6.

    Args:
        logits: square matrices of any float dtype and any finite size; −inf forbids an entry.
            Every row and column needs one finite logit.
        num_iters: iterations, each columns then rows; static.
        temperature: positive divisor of the logits; traced.
        mask: True where a position takes part. The others become rows and columns of the identity.

    Returns:
        Non-negative matrices in float32 (float64 for float64 input) whose rows sum to one.

    Raises:
        UserError: the matrix is not square, or `num_iters` is not positive.
    """
    if logits.ndim < 2 or logits.shape[-1] != logits.shape[-2]:
        raise UserError(f"logits.shape={logits.shape}: give square matrices, [..., n, n]")
    if num_iters < 1:
        raise UserError(f"num_iters={num_iters}: give at least 1")
    logits = mask_logits(logits, mask)
    return _normalise(logits / jnp.asarray(temperature, logits.dtype), num_iters)


@partial(jax.jit, static_argnums=1)
def _normalise(logits: Array, num_iters: int) -> Array:
    def whole(logits: Array) -> Array:
        return _scaled(logits, num_iters)

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


def _scaled(logits: Array, num_iters: int) -> Array:
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
    period = max(1, int((29 * math.log(10) / math.log(max(n, 2)) - 1) / 2))

    def iterations(kernel: Array, u: Array, v: Array, length: int) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            v = 1 / _columns(kernel, carry[0])
            return (1 / _rows(kernel, v), v), None

        return lax.scan(step, (u, v), length=length)[0]

    def absorb(
        carry: tuple[Array, Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        log, kernel, u, v = carry
        u, v = iterations(kernel, u, v, period)
        log = log + jnp.log(u)[..., :, None] + jnp.log(v)[..., None, :]
        # The product is the more accurate of the two wherever the entry is a normal number.
        scaled = kernel * u[..., :, None] * v[..., None, :]
        kernel = jnp.where(kernel > 1e-30, scaled, jnp.exp(log))
        return (log, kernel, jnp.ones_like(u), jnp.ones_like(v)), None

    # The last iterations, at least one and at most `period`, leave their factors outside.
    blocks = max(0, num_iters - 2) // period
    _, kernel, u, v = lax.scan(absorb, (log, kernel, u, v), length=blocks)[0]
    u, v = iterations(kernel, u, v, num_iters - 1 - blocks * period)
    return kernel * u[..., :, None] * v[..., None, :]


def _rows(kernel: Array, v: Array) -> Array:
    return jnp.matmul(kernel, v[..., :, None], precision=lax.Precision.HIGHEST)[..., 0]


def _columns(kernel: Array, u: Array) -> Array:
    return jnp.matmul(u[..., None, :], kernel, precision=lax.Precision.HIGHEST)[..., 0, :]
