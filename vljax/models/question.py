"""A question as networks read it: its words, a vector of the whole, and a program."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.errors import UserError
from vljax.models.layers import dropout
from vljax.models.recurrent import LSTM

# PJ-X's words and LSTM weights start uniform between minus and plus this.
BOUND = 0.08


class Program(NamedTuple):
    """What a question asks to be done, step by step; the last step's result answers it.

    Attributes:
        ops: What a step does, from 1 on; 0 is no step: it hands on what the one before left.
        arguments: What it does it with (a colour, a relation), from 1 on; 0 is nothing.
        inputs: The places of the two earlier steps whose results it takes; -1 is none.
    """

    ops: Int[Array, "b t"]
    arguments: Int[Array, "b t"]
    inputs: Int[Array, "b t 2"]


class Question(NamedTuple):
    """An encoded question.

    Attributes:
        vector: Of the whole question.
        words: The encoder's state after every word.
        embedded: The words themselves, without their neighbours.
        mask: False where there is padding.
        program: For a network that runs one.
    """

    vector: Float[Array, "b q"]
    words: Float[Array, "b t w"]
    embedded: Float[Array, "b t e"]
    mask: Bool[Array, "b t"]
    program: Program | None = None


class QuestionSizes(NamedTuple):
    """The numbers of features of a `Question`'s three parts."""

    vector: int
    words: int
    embedded: int


class WordVectors(nnx.Module):
    """tanh(table[word] + bias), the embedding of PJ-X's questions, answers and explanations.

    Args:
        count: Words.
        features: Length of a vector.
        bound: The table starts uniform on ±bound.
        rngs: Where it comes from.
    """

    def __init__(self, count: int, features: int, *, bound: float = BOUND, rngs: nnx.Rngs) -> None:
        table = jax.random.uniform(rngs.params(), (count, features), minval=-bound, maxval=bound)
        self.weight = nnx.Param(table)
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, index: Int[Array, "*b"]) -> Float[Array, "*b f"]:
        return jnp.tanh(self.weight[...][index] + self.bias[...])


def uniform_lstm(in_features: int, features: int, *, bound: float = BOUND, rngs: nnx.Rngs) -> LSTM:
    """An LSTM that starts as PJ-X's: weights uniform on ±bound, biases zero."""
    lstm = LSTM(in_features, features, rngs=rngs)
    for weight in (lstm.weight_ih, lstm.weight_hh):
        weight[...] = weight[...] * (bound * features**0.5)
    lstm.bias[...] = jnp.zeros(4 * features)
    return lstm


class QuestionEncoder(nnx.Module):
    """Words through one or two LSTMs (Fukui et al. 2016, section 3.3; PJ-X's answering model).

    The vector is the last state of every LSTM, side by side; dropout falls on what enters the
    second LSTM, on the words' states and, drawn anew, on the vector.

    Args:
        vocabulary_size: Words.
        embedding: Features of a word, 300 as published.
        hidden: Of each LSTM, 1,024 as published.
        layers: LSTMs, 1 or 2.
        rate: Of dropout.
        bound: Words and LSTMs start uniform on ±bound. 0.08, as published, is for LSTMs of a
            thousand features; narrow ones need 2.5 / √hidden to start as lively.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.

    Raises:
        UserError: another number of layers.
    """

    # Layers of the published caffemodel, and where they are here.
    caffe_layers = {"embed_ba": "embed_ba", "lstm1": "lstm1", "lstm2": "lstm2"}  # noqa: RUF012

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding: int = 300,
        hidden: int = 1024,
        layers: int = 2,
        rate: float = 0.3,
        bound: float = BOUND,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        if layers not in (1, 2):
            raise UserError(f"layers={layers} of the question's encoder: choose 1 or 2")
        self.rate, self.dtype = rate, dtype
        self.embed_ba = WordVectors(vocabulary_size, embedding, bound=bound, rngs=rngs)
        self.lstm1 = uniform_lstm(embedding, hidden, bound=bound, rngs=rngs)
        self.lstm2 = uniform_lstm(hidden, hidden, bound=bound, rngs=rngs) if layers == 2 else None
        self.sizes = QuestionSizes(layers * hidden, hidden, embedding)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        *,
        program: Program | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Question:
        """Encode questions; padding may stand on either side.

        Args:
            tokens: Words.
            mask: False where there is none.
            program: Handed on.
            key: For dropout, off without one.
        """
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        embedded = self.embed_ba(tokens).astype(self.dtype)
        words, state = self.lstm1(embedded, mask)
        last = [state[0]]
        if self.lstm2 is not None:
            words, state = self.lstm2(dropout(words, self.rate, keys[0]), mask)
            last.append(state[0])
        return Question(
            vector=dropout(jnp.concatenate(last, axis=-1), self.rate, keys[1]),
            words=dropout(words, self.rate, keys[2]),
            embedded=embedded,
            mask=mask,
            program=program,
        )
