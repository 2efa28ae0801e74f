"""What every answerer returns, and the few steps that they share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.models.layers import Linear


class Answer(NamedTuple):
    """What an answerer says.

    Attributes:
        logits: Over the answers, float32.
        attention: Where it looked: a distribution over the places, float32; None where the method
            has none.
    """

    logits: Float[Array, "b answers"]
    attention: Float[Array, "b h w"] | None


def with_coordinates(x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    """Two channels more: each place's x and y, from -1 to 1 (0 where there is one place)."""
    b, h, w, _ = x.shape

    def axis(size: int) -> Float[Array, " n"]:
        return (2 * jnp.arange(size) - (size - 1)) / max(size - 1, 1)

    grid = jnp.stack(jnp.meshgrid(axis(w), axis(h)), axis=-1).astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(grid, (b, h, w, 2))], axis=-1)


def classifier(inputs: int, hidden: int, answers: int, rngs: nnx.Rngs) -> nnx.List[Any]:
    """Two linear layers with a ReLU between them."""
    return nnx.List[Any](
        [Linear(inputs, hidden, rngs=rngs), jax.nn.relu, Linear(hidden, answers, rngs=rngs)]
    )


def logits(x: Float[Array, "b answers"]) -> Float[Array, "b answers"]:
    """In float32, whatever they were computed in."""
    return x.astype(jnp.float32)


def split(key: Key[Array, ""] | None, count: int) -> list[Any]:
    """So many keys, or as many times none: dropout without a key is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))
