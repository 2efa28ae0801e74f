"""Inside-Outside Attention: attention that keeps an object and its surroundings apart.

Park et al., "Shape-Guided Diffusion with Inside-Outside Attention", 2024, algorithm 3. The mask
multiplies the attention map *after* the softmax and nothing is normalised again, so a query that
loses part of its map gets a shorter output.

Every mask of the algorithm has the form

    M[i, j] = mᵢ · uⱼ + (1 − mᵢ) · wⱼ,

where mᵢ says how far query i lies inside the shape, and u and w are the weights that queries
inside and outside it give to key j. So the masked map need not exist:

    Σⱼ A[i, j] M[i, j] vⱼ = mᵢ Σⱼ A[i, j] (uⱼ vⱼ) + (1 − mᵢ) Σⱼ A[i, j] (wⱼ vⱼ),

two products under one softmax, which any fused attention kernel computes in memory linear in the
lengths. The schedule of the published code (shape-guided-diffusion on GitHub) and its scaling of
tokens keep that form. Everything here but sizes and the schedule's name is traced: a changed mask,
strength or scale compiles nothing.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.ops.attention import attention, cudnn_serves

# Stable Diffusion's 77 tokens are the start, then as many for the object as for its surroundings.
TOKENS = 77
SPLIT = (38, 38)

StrengthSchedule = Literal["constant", "linear", "cosine", "exponential"]


class SideMask(NamedTuple):
    """A mask on attention maps in its factors: M[i, j] = mᵢ uⱼ + (1 − mᵢ) wⱼ, float32.

    Attributes:
        query: m, how far each query lies inside the shape, in [0, 1].
        inside: u, the factor on each key's weight for queries inside.
        outside: w, the same for queries outside.
    """

    query: Float[Array, "#b q"]
    inside: Float[Array, "#b k"]
    outside: Float[Array, "#b k"]


def pixel_mask(shape: Float[Array, "b n"], strength: Float[Array, ""] | float = 1.0) -> SideMask:
    """The mask of self-attention: pixels see their own side of the shape (algorithm 3, line 5).

    Args:
        shape: 1 inside, 0 outside. Where a mask is soft, values between act on queries as they
            are, while as keys only pixels fully inside count as inside (the published code).
        strength: s of `schedule_strength`: the mask is (M − 1) s + 1; 1 is algorithm 3, 0 plain
            attention.
    """
    shape = shape.astype(jnp.float32)
    key = (shape >= 1.0).astype(jnp.float32)
    return SideMask(shape, 1.0 + strength * (key - 1.0), 1.0 - strength * key)


def token_mask(
    shape: Float[Array, "b n"],
    *,
    split: tuple[int, int] = SPLIT,
    tokens: int = TOKENS,
    scale: Float[Array, " tokens"] | float = 1.0,
    strength: Float[Array, ""] | float = 1.0,
) -> SideMask:
    """The mask of cross-attention: tokens act on their own side (algorithm 3, line 2).

    Token 0 (the start) and those after both parts act nowhere.

    Args:
        shape: 1 inside, 0 outside, or between.
        split: How many tokens, counted from 1, belong to the inside, and then to the outside.
        tokens: Length of the context.
        scale: Factor on each token's column. The published code takes 2.5 for tokens that are
            new in the edit prompt and 1 for the others (2.5 for all during inversion).
        strength: s: the mask is (M − 1) s + 1; 1 is algorithm 3, 0 plain attention.

    Raises:
        UserError: the parts do not fit into the context.
    """
    inside, outside = split
    if min(split) < 0 or inside + outside >= tokens:
        raise UserError(
            f"split={split}: of {tokens} tokens the first starts the text; choose parts of at most "
            f"{tokens - 1} together"
        )
    index = np.arange(tokens)
    of_inside = jnp.asarray((index >= 1) & (index <= inside), jnp.float32)
    of_outside = jnp.asarray((index > inside) & (index <= inside + outside), jnp.float32)
    inner, outer = (1.0 + strength * (part[None] * scale - 1.0) for part in (of_inside, of_outside))
    return SideMask(shape.astype(jnp.float32), inner, outer)


def schedule_strength(
    schedule: StrengthSchedule, progress: Float[Array, "*b"] | float
) -> Float[Array, "*b"]:
    """How strongly self-attention is masked at a moment of the generation (published code).

    Args:
        schedule: `"constant"` 1, `"linear"` 1 − p, `"cosine"` (1 + cos πp) / 2, or
            `"exponential"` 0.95^(50p).
        progress: p, the share of the steps that is done, in [0, 1]. Inversion stays at 0.

    Raises:
        UserError: the schedule has another name.
    """
    p = jnp.asarray(progress, jnp.float32)
    if schedule == "constant":
        return jnp.ones_like(p)
    if schedule == "linear":
        return 1.0 - p
    if schedule == "cosine":
        return (1.0 + jnp.cos(math.pi * p)) / 2.0
    if schedule == "exponential":
        return 0.95 ** (50.0 * p)
    raise UserError(
        f"schedule={schedule!r}: choose 'constant', 'linear', 'cosine' or 'exponential'"
    )


def join_prompts(
    inside: Float[Array, "b tokens d"],
    outside: Float[Array, "b tokens d"],
    empty: Float[Array, "#b tokens d"],
    *,
    split: tuple[int, int] = SPLIT,
) -> Float[Array, "b tokens d"]:
    """One context of two prompts, as `token_mask` splits it.

    Args:
        inside: Embedding of the prompt for the object, encoded by itself.
        outside: Embedding of the prompt for the surroundings.
        empty: Embedding of the empty prompt: it keeps the start and what follows both parts.
        split: How many tokens after the start each of the two prompts gives.
    """
    rest = jnp.broadcast_to(empty, inside.shape)
    parts = (
        rest[:, :1],
        inside[:, 1 : split[0] + 1],
        outside[:, 1 : split[1] + 1],
        rest[:, sum(split) + 1 :],
    )
    return jnp.concatenate(parts, axis=1)


def resize_nearest(
    mask: Float[Array, "*b h w"],
    size: tuple[int, int],
    *,
    rule: Literal["corner", "centre"],
) -> Float[Array, "*b h2 w2"]:
    """Bring a mask to a layer's resolution by picking pixels.

    Args:
        mask: Height and width are its last two axes.
        size: The height and width to bring it to.
        rule: Which pixel of a cell is picked: `"corner"` as PyTorch's `nearest`, `"centre"` as
            its `nearest-exact` and as Pillow, which the published code resizes with.
    """
    for axis, (old, new) in enumerate(zip(mask.shape[-2:], size, strict=True), start=-2):
        # In float32, as PyTorch does, so that rounding falls the same way.
        ratio = np.float32(old) / np.float32(new)
        place = np.arange(new, dtype=np.float32) + np.float32(0.5 if rule == "centre" else 0.0)
        mask = jnp.take(mask, np.minimum(np.floor(place * ratio).astype(int), old - 1), axis=axis)
    return mask


def inside_outside_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h e"],
    mask: SideMask,
    *,
    scale: float | None = None,
) -> Float[Array, "b q h e"]:
    """Attention with its map masked after the softmax: (softmax(scale · Q Kᵀ) ⊙ M) V per head.

    Memory is linear in the lengths. A query that the mask leaves no key gets zeros.

    Args:
        query: queries, any float dtype; softmax and sums are float32 whatever it is.
        key: keys, of the queries' dtype.
        value: values, of the queries' dtype.
        mask: of `pixel_mask` or `token_mask`; the same for all heads.
        scale: factor on the scores; 1/√d if None.

    Returns:
        The weighted values, of the queries' dtype.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    factors = jnp.stack(jnp.broadcast_arrays(mask.inside, mask.outside), axis=-1)
    values = (value[..., None, :] * factors[:, :, None, :, None]).astype(value.dtype)
    products = _two_products(query, key, values, scale)
    share = mask.query[..., None, None]
    return (share * products[..., 0, :] + (1.0 - share) * products[..., 1, :]).astype(query.dtype)


def inside_outside_weights(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    mask: SideMask | None = None,
    *,
    scale: float | None = None,
) -> Float[Array, "b h q k"]:
    """The attention map of each head, float32; masked as in algorithm 3 if there is a mask.

    Args:
        query: queries.
        key: keys.
        mask: which keys each query may see, see `token_mask`; None for all.
        scale: factor on the scores; 1/√d if None.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * scale, axis=-1)
    if mask is None:
        return weights
    row = mask.query[..., None]
    dense = row * mask.inside[:, None] + (1.0 - row) * mask.outside[:, None]
    return weights * dense[:, None]


def _two_products(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    values: Float[Array, "b k h 2 e"],
    scale: float,
) -> Float[Array, "b q h 2 e"]:
    """Attention to two sets of values: side by side under one softmax, where a kernel can."""
    both = 2 * values.shape[-1]
    # cuDNN wants one width for queries, keys and values: zeros widen the former, or, where that
    # is too wide, there is a call for each set.
    wide = [jax.ShapeDtypeStruct((*x.shape[:3], both), x.dtype) for x in (query, key, values)]
    if both > query.shape[-1] and cudnn_serves(*wide):
        padding = [(0, 0)] * 3 + [(0, both - query.shape[-1])]
        query, key = jnp.pad(query, padding), jnp.pad(key, padding)
    elif cudnn_serves(query, key, values[..., 0, :]):
        each = (attention(query, key, values[..., i, :], scale=scale) for i in range(2))
        return jnp.stack(list(each), axis=-2)
    together = attention(query, key, values.reshape(*values.shape[:3], both), scale=scale)
    return together.reshape(*together.shape[:3], 2, -1)
