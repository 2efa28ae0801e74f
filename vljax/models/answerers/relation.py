"""The relation network of Santoro et al. (2017), equation 1."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.models.answerers.answer import Answer, logits, with_coordinates
from vljax.models.layers import Linear, dropout
from vljax.models.question import Question, QuestionSizes


class Relation(nnx.Module):
    """f(mean over all pairs of places of g(oᵢ, oⱼ, question)); the paper's sum is f's first scale.

    g's first layer is kept as its three parts: the pairs' input is never written down.

    Args:
        channels: Of the picture's features.
        sizes: Of the question.
        answers: Number of answers.
        cells: Most places along a side; larger maps are averaged down. Pairs grow with its 4th
            power.
        width: Of every layer of g, and of f.
        layers: Of g, 2 or more.
        rate: Of dropout in f.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        cells: int = 8,
        width: int = 256,
        layers: int = 4,
        rate: float = 0.5,
        rngs: nnx.Rngs,
    ) -> None:
        self.cells, self.rate = cells, rate
        self.first = Linear(channels + 2, width, bias=False, rngs=rngs)
        self.second = Linear(channels + 2, width, bias=False, rngs=rngs)
        self.question = Linear(sizes.vector, width, rngs=rngs)
        self.g = nnx.List[Any]([Linear(width, width, rngs=rngs) for _ in range(layers - 1)])
        self.f = nnx.List[Any](
            [Linear(width, outputs, rngs=rngs) for outputs in (width, width, answers)]
        )

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        b, height, width, channels = features.shape
        sides = min(height, self.cells), min(width, self.cells)
        # Antialiased, so a smaller map holds means.
        x = with_coordinates(jax.image.resize(features, (b, *sides, channels), "linear"))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        asked = self.question(question.vector.astype(x.dtype))
        pairs = jax.nn.relu(
            self.first(x)[:, :, None] + self.second(x)[:, None] + asked[:, None, None]
        )
        for layer in self.g:
            pairs = jax.nn.relu(layer(pairs))
        h = pairs.mean((1, 2), dtype=jnp.float32).astype(x.dtype)
        h = jax.nn.relu(self.f[0](h))
        h = dropout(jax.nn.relu(self.f[1](h)), self.rate, key)
        return Answer(logits(self.f[2](h)), None)
