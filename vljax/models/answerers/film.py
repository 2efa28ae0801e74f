"""Feature-wise linear modulation (Perez et al., "FiLM", 2018, sections 2 and 3)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.answerers.answer import Answer, classifier, logits, with_coordinates
from vljax.models.clip_towers import adapt
from vljax.models.layers import Conv, Linear, apply
from vljax.models.question import Question, QuestionSizes


def standardise(x: Float[Array, "b h w c"], groups: int) -> Float[Array, "b h w c"]:
    """Group normalisation without scale and shift of its own."""
    b, h, w, c = x.shape
    y = x.astype(jnp.float32).reshape(b, h * w, groups, c // groups)
    y = y - y.mean((1, 3), keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean((1, 3), keepdims=True) + 1e-5)
    return y.reshape(x.shape).astype(x.dtype)


class FiLM(nnx.Module):
    """Residual blocks whose maps the question scales and shifts.

    Each block: 1×1, ReLU, 3×3, a norm without scale and shift of its own (group norm here, batch
    norm in the paper, whose statistics would have to move), the question's, ReLU; added to what the
    first ReLU left. Coordinates are joined at the stem, at every block and before the head.

    Args:
        channels: Of the picture's features.
        sizes: Of the question.
        answers: Number of answers.
        width: Maps.
        blocks: Residual blocks.
        groups: Of the norm; divides `width`.
        head: Maps that are pooled by their maximum.
        hidden: Features of the classifier.
        rngs: Where the initial weights come from.

    Raises:
        UserError: `groups` does not divide `width`.
    """

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        width: int = 128,
        blocks: int = 4,
        groups: int = 8,
        head: int = 512,
        hidden: int = 1024,
        rngs: nnx.Rngs,
    ) -> None:
        if width % groups:
            raise UserError(f"groups={groups} of FiLM: choose a divisor of width={width}")
        self.groups = groups
        self.stem = Conv(channels + 2, width, 3, rngs=rngs)
        self.film = Linear(sizes.vector, 2 * width * blocks, rngs=rngs)
        self.inner = nnx.List[Any]([Conv(width + 2, width, 1, rngs=rngs) for _ in range(blocks)])
        # A bias would be taken off again by the norm that follows.
        self.outer = nnx.List[Any](
            [Conv(width, width, 3, bias=False, rngs=rngs) for _ in range(blocks)]
        )
        self.head = Conv(width + 2, head, 1, rngs=rngs)
        self.classifier = classifier(head, hidden, answers, rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        x = jax.nn.relu(self.stem(with_coordinates(features)))
        film = self.film(question.vector.astype(x.dtype))
        by_block = film.reshape(x.shape[0], len(self.inner), 2, -1)
        for i, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            h = jax.nn.relu(inner(with_coordinates(x)))
            z = standardise(outer(h), self.groups)
            x = h + jax.nn.relu(adapt(z, (by_block[:, i, 0], by_block[:, i, 1])))
        top = jax.nn.relu(self.head(with_coordinates(x))).max((1, 2))
        return Answer(logits(apply(self.classifier, top)), None)
