"""Hierarchical co-attention (Lu et al., "Hierarchical Question-Image Co-Attention", 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from vljax.models.answerers.answer import Answer, logits, split
from vljax.models.layers import Linear, dropout
from vljax.models.question import MASKED, Question, QuestionSizes


class _Affinity(nnx.Module):
    """Parallel co-attention at one level (equations 3 to 5)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.affinity = Linear(width, width, bias=False, rngs=rngs)
        self.image = Linear(width, width, rngs=rngs)
        self.words = Linear(width, width, rngs=rngs)
        # A softmax takes no notice of a bias.
        self.image_score = Linear(width, 1, bias=False, rngs=rngs)
        self.word_score = Linear(width, 1, bias=False, rngs=rngs)

    def __call__(
        self,
        image: Float[Array, "b n d"],
        words: Float[Array, "b t d"],
        mask: Bool[Array, "b t"],
    ) -> tuple[Float[Array, "b d"], Float[Array, "b n"]]:
        """The two attended vectors added, and the weights over places."""
        words = jnp.where(mask[..., None], words, 0)
        c = jnp.tanh(jnp.einsum("btd,bnd->btn", self.affinity(words), image))
        # Padding's rows of C are 0, but the bias of its projection would still enter.
        w = jnp.where(mask[..., None], self.words(words), 0)
        v = self.image(image)
        h_image = jnp.tanh(v + jnp.einsum("btn,btd->bnd", c, w))
        h_words = jnp.tanh(w + jnp.einsum("btn,bnd->btd", c, v))
        places = jax.nn.softmax(self.image_score(h_image)[..., 0].astype(jnp.float32))
        scores = self.word_score(h_words)[..., 0].astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask, scores, MASKED))
        seen = jnp.einsum("bn,bnd->bd", places.astype(image.dtype), image)
        read = jnp.einsum("bt,btd->bd", weights.astype(words.dtype), words)
        return seen + read, places


class CoAttention(nnx.Module):
    """Question and picture attend to each other, by words, phrases and the whole question.

    The highest level reads the encoder's states; in the paper an LSTM over the phrases.

    Args:
        channels: Of the picture's features.
        sizes: Of the question.
        answers: Number of answers.
        width: Of everything, 512 as published.
        rate: Of dropout on what each level hands on.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        width: int = 512,
        rate: float = 0.5,
        rngs: nnx.Rngs,
    ) -> None:
        self.rate = rate
        self.image = Linear(channels, width, rngs=rngs)
        self.word = Linear(sizes.embedded, width, rngs=rngs)
        self.sentence = Linear(sizes.words, width, rngs=rngs)
        self.phrases = nnx.List[Any]([Linear(n * width, width, rngs=rngs) for n in (1, 2, 3)])
        self.levels = nnx.List[Any]([_Affinity(width, rngs=rngs) for _ in range(3)])
        self.merge = nnx.List[Any](
            [Linear(inputs * width, width, rngs=rngs) for inputs in (1, 2, 2)]
        )
        self.prediction = Linear(width, answers, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        b, height, width, channels = features.shape
        dtype, mask = features.dtype, question.mask
        image = jnp.tanh(self.image(features.reshape(b, -1, channels)))
        word = jnp.tanh(self.word(question.embedded.astype(dtype)))
        word = jnp.where(mask[..., None], word, 0)
        sentence = jnp.tanh(self.sentence(question.words.astype(dtype)))
        merged: list[Array] = []
        keys = split(key, 3)
        texts = (word, self._phrase(word), sentence)
        for text, level, merge, dropped in zip(texts, self.levels, self.merge, keys, strict=True):
            attended, places = level(image, text, mask)
            inputs = jnp.concatenate([attended, *merged], axis=-1)
            merged = [jnp.tanh(merge(dropout(inputs, self.rate, dropped)))]
        return Answer(logits(self.prediction(merged[0])), places.reshape(b, height, width))

    def _phrase(self, words: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The strongest of one, two and three words at every place (equation 2)."""
        steps = words.shape[1]
        padded = jnp.pad(words, ((0, 0), (1, 1), (0, 0)))
        before, after = padded[:, :steps], padded[:, 2:]
        windows = ([words], [words, after], [before, words, after])
        grams = [
            jnp.tanh(layer(jnp.concatenate(window, axis=-1)))
            for layer, window in zip(self.phrases, windows, strict=True)
        ]
        return jnp.stack(grams).max(0)
