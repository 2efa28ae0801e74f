"""Softmax attention, exact and linear in memory, one function for every platform.

Scores are computed for a block of queries at a time against all the keys, so the softmax needs
no running maximum (that of Dao et al., "FlashAttention", 2022, sec. 3.1, blocks the keys too)
and the N×N matrix is never stored; the backward pass computes each block's scores again.

Two algebraic steps make a block cheap to compile and to differentiate:

- The values carry one extra column of ones, so that one product gives both the numerator and the
  denominator of the softmax. The scores then have a single consumer, and XLA's CPU compiler turns
  product → maximum → exponential → product into one kernel.
- The division by the denominator comes after the loop, outside what is recomputed. A block is
  then linear in its values, and its gradient takes the five products of FlashAttention's.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

#: What `jax.checkpoint` may know the result by.
ATTENTION = "attention"

# Scores held at once. On CPU: near the caches, and below the size from which the C library maps
# and clears fresh pages for every block. On accelerators (where cuDNN does not serve): few, large
# blocks, counted before any sharding.
_CPU_BYTES = 16 * 2**20
_ACCELERATOR_BYTES = 2**30

# Stands for a score of −∞.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    *,
    mask: Bool[Array, "#b #h #q k"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "b q h e"]:
    """Softmax attention: softmax(scale · Q Kᵀ) V per head.

    Vaswani et al., "Attention Is All You Need", 2017, eq. 1. Lengths are free, and queries and
    keys may differ in number. Differentiable in both modes and to any order, with memory linear
    in the lengths throughout; the exception is cuDNN, which knows only the first derivative in
    reverse mode.

    The path is chosen while compiling: cuDNN's fused kernel on CUDA for 16-bit inputs that it
    accepts, else blocks of queries. On accelerators a block spans batch and heads, so both may
    stay sharded; on CPU heads go one after the other when their scores are many.

    Args:
        query: queries, any float dtype; softmax and sums are float32 whatever it is.
        key: keys, of the queries' dtype.
        value: values, of the queries' dtype; their width may differ.
        mask: true where a query may see a key; axes but the last may be 1. A query that may see
            none gets a finite result without meaning.
        causal: whether query i sees keys 0 … i only.
        scale: factor on the scores; 1/√d if None.

    Returns:
        The weighted values, of the queries' dtype.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], *mask.shape[1:]))

    def cpu(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        # 16-bit inputs are widened: the float32 product is the faster one on most CPUs.
        q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
        return _attend_by_head(q, k, v, mask, causal, scale).astype(query.dtype)

    def accelerator(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return _attend_by_block(query, key, value, mask, causal, scale)

    def cudnn(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return _attend_by_cudnn(query, key, value, mask, causal, scale)

    cuda = cudnn if cudnn_serves(query, key, value, mask, causal=causal) else accelerator
    attended = lax.platform_dependent(
        query, key, value, mask, cpu=cpu, cuda=cuda, default=accelerator
    )
    return checkpoint_name(attended, ATTENTION)


def attention_reference(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    *,
    mask: Bool[Array, "#b #h #q k"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "b q h e"]:
    """What `attention` computes, as the two products of its definition, all scores stored.

    Arguments and result are those of `attention`.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    if causal:
        scores = jnp.where(jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool), scores, MASKED)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhqk,bkhe->bqhe", weights.astype(value.dtype), value)


def cuda_capability() -> tuple[int, int] | None:
    """Compute capability of the CUDA device that programs run on, as (9, 0); None without one."""
    if jax.default_backend() != "gpu":
        return None
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return None
    major, minor = str(device.compute_capability).split(".")
    return int(major), int(minor)


def cudnn_serves(
    query: Array | jax.ShapeDtypeStruct,
    key: Array | jax.ShapeDtypeStruct,
    value: Array | jax.ShapeDtypeStruct,
    mask: Array | jax.ShapeDtypeStruct | None = None,
    *,
    causal: bool = False,
) -> bool:
    """Whether `attention` on CUDA hands arrays like these to cuDNN's fused kernel.

    It needs an Ampere device or later, and heads above 128 a Hopper one (later devices cannot
    differentiate those, as of cuDNN 9.10). What else there is to know (dtypes, widths, lengths,
    versions) JAX checks while tracing: so it is asked, for a value and its gradient.
    """
    capability = cuda_capability()
    if capability is None or capability < (8, 0):
        return False
    if query.shape[-1] > 128 and capability[0] != 9:
        return False
    arrays = tuple(None if x is None else (x.shape, x.dtype) for x in (query, key, value, mask))
    return _jax_lets_cudnn(arrays, causal, capability)


@functools.cache
def _jax_lets_cudnn(
    arrays: tuple[tuple[tuple[int, ...], jnp.dtype] | None, ...],
    causal: bool,
    capability: tuple[int, int],
) -> bool:
    """Whether JAX traces cuDNN's attention and its gradient; `capability` keeps answers apart."""
    query, key, value, mask = (None if x is None else jax.ShapeDtypeStruct(*x) for x in arrays)

    def total(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
        return _attend_by_cudnn(query, key, value, mask, causal, 1.0).sum()

    try:
        jax.eval_shape(jax.grad(total, argnums=(0, 1, 2)), query, key, value, mask)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _attend_by_cudnn(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "#b #h #q k"] | None,
    causal: bool,
    scale: float,
) -> Float[Array, "b q h d"]:
    """Attention by cuDNN's fused kernel.

    A mask that says the same to all heads and queries is padding, and becomes numbers of keys:
    the softmax does not ask for their order, so those that count go first. (As scores to add, it
    would be written out for all queries, and have a gradient.) Any other mask is spread over the
    queries, since the kernel broadcasts over batch and heads only. Lengths are made even, as JAX
    wants them for a gradient (0.10 even where there is no mask).
    """
    (rows, queries), keys = query.shape[:2], key.shape[1]
    lengths = None
    if mask is not None and mask.shape[1:3] == (1, 1) and not causal:
        seen = jnp.broadcast_to(mask[:, 0, 0], (rows, keys))
        first = jnp.argsort(~seen, axis=1, stable=True)
        key, value = _reordered(key, first), _reordered(value, first)
        # A length of 0 would leave the softmax without a sum; its result has no meaning anyway.
        lengths = jnp.maximum(seen.sum(1, dtype=jnp.int32), 1)
        mask = None
    elif keys % 2 and mask is None:
        lengths = jnp.full(rows, keys, jnp.int32)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, keys))
        mask = jnp.pad(mask, [(0, 0)] * 2 + [(0, queries % 2), (0, keys % 2)])
    more_queries, more_keys = ([(0, 0), (0, n % 2), (0, 0), (0, 0)] for n in (queries, keys))
    attended = jax.nn.dot_product_attention(
        jnp.pad(query, more_queries),
        jnp.pad(key, more_keys),
        jnp.pad(value, more_keys),
        mask=mask,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        scale=scale,
        implementation="cudnn",
    )
    return attended[:, :queries]


@jax.vmap
def _reordered(rows: Float[Array, "k h d"], order: Int[Array, " k"]) -> Float[Array, "k h d"]:
    """Rows in another order; nothing is added up in the gradient either."""
    return rows.at[order].get(unique_indices=True, mode="promise_in_bounds")


def _attend_by_block(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    mask: Bool[Array, "#b #h #q k"] | None,
    causal: bool,
    scale: float,
) -> Float[Array, "b q h e"]:
    """Attention with all batches and heads at once, in blocks of queries if all are too many."""
    block = _ACCELERATOR_BYTES // (4 * math.prod(key.shape[:3]))
    if block >= query.shape[1]:
        return attention_reference(query, key, value, mask=mask, causal=causal, scale=scale)
    dtype = query.dtype
    query, key, value = _head_major(query, key, value, scale)
    return _normalised(_sums(query, key, value, mask, causal, block), dtype)


def _attend_by_head(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    mask: Bool[Array, "#b #h #q k"] | None,
    causal: bool,
    scale: float,
) -> Float[Array, "b q h e"]:
    """Attention one head after the other, each in blocks of queries, unless all fit at once."""
    query, key, value = _head_major(query, key, value, scale)
    batch, heads, queries, _ = query.shape
    block = _CPU_BYTES // (4 * key.shape[2])
    if batch * heads * queries <= block:
        return _normalised(_sums(query, key, value, mask, causal, queries), query.dtype)

    def head(index: Int[Array, ""], query: Array, key: Array, value: Array) -> Array:
        seen = None if mask is None else mask[index // heads, index % mask.shape[1]]
        return _sums(query, key, value, seen, causal, block, remat=True)

    each = (x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value))
    sums = lax.map(lambda each: head(*each), (jnp.arange(batch * heads), *each))
    return _normalised(sums.reshape(batch, heads, *sums.shape[1:]), query.dtype)


def _head_major(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    scale: float,
) -> tuple[Float[Array, "b h q d"], Float[Array, "b h k d"], Float[Array, "b h k f"]]:
    """Scaled queries, keys, and values with their column of ones, heads before positions."""
    value = jnp.concatenate([value, jnp.ones_like(value[..., :1])], axis=-1)
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    return query.swapaxes(1, 2), key.swapaxes(1, 2), value.swapaxes(1, 2)


def _normalised(sums: Float[Array, "b h q f"], dtype: jnp.dtype) -> Float[Array, "b q h e"]:
    """Numerators over denominators, positions before heads."""
    return (sums[..., :-1] / sums[..., -1:]).swapaxes(1, 2).astype(dtype)


def _sums(
    query: Float[Array, "*n q d"],
    key: Float[Array, "*n k d"],
    value: Float[Array, "*n k f"],
    mask: Bool[Array, "*#n #q k"] | None,
    causal: bool,
    block: int,
    remat: bool = False,
) -> Float[Array, "*n q f"]:
    """Exponentials of the scores times the values, at most `block` queries at a time."""
    queries = query.shape[-2]
    blocks = math.ceil(queries / max(1, block))
    if blocks == 1:
        whole = jax.checkpoint(_block_sums, static_argnums=(5,)) if remat else _block_sums
        return whole(query, key, value, mask, 0, causal)

    block = math.ceil(queries / blocks)

    def split(x: Array) -> Array:
        padding = [(0, 0)] * (x.ndim - 2) + [(0, blocks * block - queries), (0, 0)]
        x = jnp.pad(x, padding).reshape(*x.shape[:-2], blocks, block, x.shape[-1])
        return jnp.moveaxis(x, -3, 0)

    @jax.checkpoint
    def step(part: tuple[Array, Int[Array, ""], Array | None]) -> Array:
        query, start, rows = part
        return _block_sums(query, key, value, mask if rows is None else rows, start, causal)

    rows = split(mask) if mask is not None and mask.shape[-2] > 1 else None
    sums = jnp.moveaxis(lax.map(step, (split(query), jnp.arange(blocks) * block, rows)), 0, -3)
    return sums.reshape(*sums.shape[:-3], blocks * block, -1)[..., :queries, :]


def _block_sums(
    query: Float[Array, "*n q d"],
    key: Float[Array, "*n k d"],
    value: Float[Array, "*n k f"],
    mask: Bool[Array, "*#n #q k"] | None,
    start: int | Int[Array, ""],
    causal: bool,
) -> Float[Array, "*n q f"]:
    """Exponentials of the scores times the values, for the queries from `start` on."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    if causal:
        row, column = (lax.broadcasted_iota(jnp.int32, scores.shape[-2:], axis) for axis in (0, 1))
        scores = jnp.where(start + row >= column, scores, MASKED)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    # The softmax does not depend on the shift, so neither does the gradient.
    scores -= lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores).astype(value.dtype)
    return jnp.einsum("...qk,...kf->...qf", weights, value, preferred_element_type=jnp.float32)
