"""Bilinear attention networks (Kim et al. 2018)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vljax.models.answerers.answer import Answer, classifier, logits, split
from vljax.models.layers import Linear, dropout
from vljax.models.question import MASKED, Question, QuestionSizes


class Bilinear(nnx.Module):
    """Bilinear attention: a distribution over all pairs of word and place, several times.

    Each glimpse's joint feature is added to every word for the next (equations 5 to 9 of the
    paper, without its counting module); the words' sum is classified.

    Args:
        channels: Of the picture's features.
        sizes: Of the question.
        answers: Number of answers.
        width: Of the joint features, 1,280 as published.
        glimpses: 8 as published.
        rank: Of the attention's form, in widths.
        rate: Of dropout on joint features and in the classifier.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        width: int = 1280,
        glimpses: int = 8,
        rank: int = 3,
        rate: float = 0.2,
        rngs: nnx.Rngs,
    ) -> None:
        self.rate = rate
        self.words = Linear(sizes.words, width, rngs=rngs)
        self.attend_words = Linear(width, rank * width, rngs=rngs)
        self.attend_places = Linear(channels, rank * width, rngs=rngs)
        self.attend = Linear(rank * width, glimpses, bias=False, rngs=rngs)
        self.read = nnx.List[Any]([Linear(width, width, rngs=rngs) for _ in range(glimpses)])
        self.see = nnx.List[Any]([Linear(channels, width, rngs=rngs) for _ in range(glimpses)])
        self.join = nnx.List[Any]([Linear(width, width, rngs=rngs) for _ in range(glimpses)])
        self.classifier = classifier(width, 2 * width, answers, rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        b, height, width, channels = features.shape
        relu = jax.nn.relu
        places = features.reshape(b, -1, channels)
        words = relu(self.words(question.words.astype(features.dtype)))
        maps = self._maps(words, places, question.mask)
        keys = split(key, len(self.join) + 1)
        for i, (read, see, join) in enumerate(zip(self.read, self.see, self.join, strict=True)):
            weights = maps[:, i].astype(features.dtype)
            # Σ over pairs of Aᵢⱼ (Uᵀxᵢ ∘ Vᵀyⱼ), places first.
            seen = jnp.einsum("btn,bnd->btd", weights, relu(see(places)))
            joint = (relu(read(words)) * seen).sum(1)
            words = words + dropout(join(joint), self.rate, keys[i])[:, None]
        total = jnp.where(question.mask[..., None], words, 0).sum(1)
        hidden = dropout(relu(self.classifier[0](total)), self.rate, keys[-1])
        answers = logits(self.classifier[2](hidden))
        return Answer(answers, maps.sum(2).mean(1).reshape(b, height, width))

    def _maps(
        self,
        words: Float[Array, "b t d"],
        places: Float[Array, "b n c"],
        mask: Bool[Array, "b t"],
    ) -> Float[Array, "b g t n"]:
        """The glimpses' distributions over pairs, float32 (equation 7)."""
        left = jax.nn.relu(self.attend_words(words))
        right = jax.nn.relu(self.attend_places(places))
        weight = self.attend.weight[...].astype(left.dtype)
        # One factor takes the glimpse's weights, so that no triple of word, place and rank exists.
        left = left[:, None] * weight.T[:, None]
        scores = jnp.einsum("bgtd,bnd->bgtn", left, right, preferred_element_type=jnp.float32)
        scores = jnp.where(mask[:, None, :, None], scores, MASKED)
        return jax.nn.softmax(scores, axis=(-2, -1))
