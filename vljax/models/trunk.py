"""A small trunk that is trained from scratch: pictures to a grid of features."""

import itertools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from vljax.models.answerers.answer import with_coordinates
from vljax.models.layers import Conv, GroupNorm


class Convolutions(nnx.Module):
    """Four convolutions with group norms, the first two of stride 2; then every place's x and y.

    Args:
        width: Channels of the last; its features have two more.
        rngs: Where the initial weights come from.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        widths = (3, width // 2, width, width, width)
        self.convs = nnx.List[Any](
            [
                Conv(before, after, 3, stride=2 if i < 2 else 1, rngs=rngs)
                for i, (before, after) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.norms = nnx.List[Any]([GroupNorm(after, 8) for after in widths[1:]])

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h/4 w/4 c"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return with_coordinates(x)
