"""What does the attention of a network that lets its caller do it.

A network that takes a `Control` sends every query, key and value through it, and holds no state of
its own: plain attention, attention that loses keys, Inside-Outside Attention (here),
Prompt-to-Prompt and pictures of attention maps are such functions.
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vljax.ops.attention import attention
from vljax.ops.inside_outside import (
    SPLIT,
    TOKENS,
    inside_outside_attention,
    inside_outside_weights,
    pixel_mask,
    resize_nearest,
    token_mask,
)


class Place(NamedTuple):
    """Where in the network an attention happens; known while compiling.

    Attributes:
        name: Path of the attention's parameters, as
            `"down_blocks.0.attentions.0.transformer_blocks.0.attn1"`.
        kind: `"self"`: keys are the layer's own pixels; `"cross"`: they are the context's tokens.
        height: Rows of the layer's pixels; queries are these pixels, row after row.
        width: Columns of them.
    """

    name: str
    kind: Literal["self", "cross"]
    height: int
    width: int


Control = Callable[[Array, Array, Array, Place], tuple[Array, Any]]
"""Does the attention: `(query, key, value, place) -> (attended, record)`.

`query` [b n heads d], `key` and `value` [b m heads d] give `attended` [b n heads d]; `record` is
any pytree of arrays to hand out of the network, or None.
"""


def plain(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, None]:
    """The `Control` that changes nothing."""
    return attention(query, key, value), None


class Network(Protocol):
    """A text-conditional denoiser whose attention can be taken over, as `ConditionalUNet`."""

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        context: Float[Array, "b n d"],
        /,
        *,
        control: Control = plain,
    ) -> Float[Array, "b h w c"]:
        """Predict from `x` at times `t` under the embedded texts `context`."""


def drop_keys(key: Key[Array, ""], batch: int, share: float) -> Control:
    """Attention that loses keys, for training (Zehui et al., "DropAttention", 2019, of columns).

    What is lost after the softmax is not made up for, as in Inside-Outside Attention; there up to
    nine tenths of a map go. So an example keeps each key with a probability of its own, drawn
    from 0 to 1, in every layer anew.

    Args:
        key: Where the randomness comes from.
        batch: Number of examples.
        share: Of them, how many lose keys in self-attention; drawn again for cross-attention.
    """
    who, how, which = jax.random.split(key, 3)
    kinds = (2, batch)
    loses = jax.random.bernoulli(who, share, kinds)
    kept = jnp.where(loses, jax.random.uniform(how, kinds), 1.0)

    def control(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, None]:
        here = jax.random.fold_in(which, zlib.crc32(place.name.encode()))
        probability = kept[0 if place.kind == "self" else 1]
        stays = jax.random.bernoulli(here, probability[:, None], value.shape[:2])
        return attention(query, key, value * stays[..., None, None].astype(value.dtype)), None

    return control


def inside_outside(
    shape: Float[Array, "#b h w"],
    *,
    strength: Float[Array, ""] | float = 1.0,
    split: tuple[int, int] | None = SPLIT,
    tokens: int = TOKENS,
    token_scale: Float[Array, "#b tokens"] | float = 1.0,
    token_strength: Float[Array, ""] | float = 1.0,
    rule: Literal["corner", "centre"],
    record: Callable[[Place], bool] = lambda place: False,
) -> Control:
    """Inside-Outside Attention in every layer (Park et al. 2024, algorithm 3).

    Args:
        shape: 1 inside the object, 0 outside; at the picture's resolution or any other of its
            aspect. Brought to each layer's resolution by picking the nearest pixel.
        strength: Of the mask on self-attention, see `pixel_mask`.
        split: How many tokens belong to the inside and to the outside, see `token_mask`; None
            leaves cross-attention as it is.
        tokens: Length of the context.
        token_scale: Factor on each token's column, see `token_mask`; may differ by example.
        token_strength: Of the mask on cross-attention, see `token_mask`.
        rule: See `resize_nearest`.
        record: Says at which places the masked maps of all heads are handed out, [b heads n m]
            float32.
    """

    def control(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, Any]:
        here = resize_nearest(shape, (place.height, place.width), rule=rule)
        here = here.reshape(here.shape[0], -1)
        if place.kind == "self":
            mask = pixel_mask(here, strength)
        elif split is not None:
            mask = token_mask(
                here, split=split, tokens=tokens, scale=token_scale, strength=token_strength
            )
        else:
            weights = inside_outside_weights(query, key) if record(place) else None
            return attention(query, key, value), weights
        weights = inside_outside_weights(query, key, mask) if record(place) else None
        return inside_outside_attention(query, key, value, mask), weights

    return control
