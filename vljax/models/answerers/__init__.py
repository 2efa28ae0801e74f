"""Answerers: from a picture's grid of features and a question to logits over answers.

All have one call, `answerer(features, question, key=key) -> Answer`, and one constructor,
`make_answerer(kind, ...)`:

| kind | method |
|---|---|
| `attention` | PJ-X's answering model (Park et al. 2018, after MCB's); `rounds=2` is SAN |
| `film` | feature-wise linear modulation (Perez et al. 2018) |
| `relation` | relation network (Santoro et al. 2017) |
| `coattention` | hierarchical parallel co-attention (Lu et al. 2016) |
| `bilinear` | bilinear attention network (Kim et al. 2018) |
| `modules` | a neural module network that runs the question's program (Johnson et al. 2017) |

Softmaxes and logits are float32 whatever the features' dtype, in which the rest is computed.
"""

from typing import Any, Protocol

from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.answerers.answer import Answer
from vljax.models.answerers.attention import Attention
from vljax.models.answerers.bilinear import Bilinear
from vljax.models.answerers.coattention import CoAttention
from vljax.models.answerers.film import FiLM
from vljax.models.answerers.modules import ModuleNetwork
from vljax.models.answerers.relation import Relation
from vljax.models.question import Question, QuestionSizes

__all__ = [
    "ANSWERERS",
    "Answer",
    "Answerer",
    "Attention",
    "Bilinear",
    "CoAttention",
    "FiLM",
    "ModuleNetwork",
    "Relation",
    "make_answerer",
]


class Answerer(Protocol):
    """What the classes of `ANSWERERS` have in common."""

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        """Answer a question about each picture; dropout is off without a key."""


ANSWERERS: dict[str, Any] = {
    "attention": Attention,
    "film": FiLM,
    "relation": Relation,
    "coattention": CoAttention,
    "bilinear": Bilinear,
    "modules": ModuleNetwork,
}


def make_answerer(
    kind: str, channels: int, sizes: QuestionSizes, answers: int, *, rngs: nnx.Rngs, **fields: Any
) -> Answerer:
    """The answerer of that kind.

    Args:
        kind: A key of `ANSWERERS`.
        channels: Of the picture's features.
        sizes: Of the question, `QuestionEncoder.sizes`.
        answers: Number of answers.
        rngs: Where the initial weights come from.
        **fields: What that kind has besides.

    Raises:
        UserError: there is no such kind, or a field does not fit.
    """
    if kind not in ANSWERERS:
        raise UserError(f"answerer kind={kind!r}: choose {', '.join(map(repr, ANSWERERS))}")
    return ANSWERERS[kind](channels, sizes, answers, rngs=rngs, **fields)
