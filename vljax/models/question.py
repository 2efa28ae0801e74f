"""A question as networks read it: its words, a vector of the whole, and a program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.errors import UserError
from vljax.models.layers import Embedding, Linear, dropout, next_key
from vljax.models.recurrent import LSTM, LSTMState

# PJ-X's words and LSTM weights start uniform between minus and plus this.
BOUND = 0.08

# Under a softmax; finite, so that a question without words gives an even map and not NaN.
MASKED = -1e30


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


class StepTable:
    """The steps of which programs are made, as numbers.

    A step is a text, what it does and then what it does it with: `filter red`, `count`. Steps are
    numbered from 1 in the order given, and so are their first words and the rests of them; 0 is no
    step, or nothing.

    Args:
        steps: All steps there are (of scenes, `vljax.data.scenes.STEPS`).
    """

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = tuple(steps)
        parts = [step.partition(" ") for step in self.steps]
        self.ops = tuple(dict.fromkeys(op for op, _, _ in parts))
        self.arguments = tuple(dict.fromkeys(rest for _, _, rest in parts if rest))
        self._ops = np.array([0, *(self.ops.index(op) + 1 for op, _, _ in parts)])
        self._arguments = np.array(
            [0, *(self.arguments.index(rest) + 1 if rest else 0 for _, _, rest in parts)]
        )

    def encode(self, program: Sequence[str], length: int) -> Int[np.ndarray, " length"]:
        """The numbers of a program's steps, filled up with 0.

        Raises:
            UserError: a step is unknown, or there are more than `length`.
        """
        if unknown := [step for step in program if step not in self.steps]:
            raise UserError(f"program step {unknown[0]!r}: choose one of {', '.join(self.steps)}")
        if len(program) > length:
            raise UserError(
                f"a program of {len(program)} steps is longer than {length}: give a longer length"
            )
        numbers = [self.steps.index(step) + 1 for step in program]
        return np.array(numbers + [0] * (length - len(program)), np.int32)

    def chain(self, numbers: Int[Array, "b t"]) -> Program:
        """The program in which every step takes what the one before it left."""
        before = jnp.arange(numbers.shape[1]) - 1
        inputs = jnp.stack([before, jnp.full_like(before, -1)], axis=-1)
        return Program(
            ops=jnp.asarray(self._ops)[numbers],
            arguments=jnp.asarray(self._arguments)[numbers],
            inputs=jnp.broadcast_to(inputs, (numbers.shape[0], *inputs.shape)),
        )


class WordVectors(nnx.Module):
    """tanh(table[word] + bias), the embedding of PJ-X's questions, answers and explanations.

    Args:
        count: Words.
        features: Length of a vector.
        bound: The table starts uniform on ±bound.
        rngs: Where it comes from.
    """

    def __init__(self, count: int, features: int, *, bound: float = BOUND, rngs: nnx.Rngs) -> None:
        table = jax.random.uniform(next_key(rngs), (count, features), minval=-bound, maxval=bound)
        self.weight = nnx.Param(table)
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, index: Int[Array, "*b"]) -> Float[Array, "*b f"]:
        return jnp.tanh(self.weight[...][index] + self.bias[...])

    def mix(self, shares: Float[Array, "*b n"]) -> Float[Array, "*b f"]:
        """The same of a distribution over the words: the table's rows are weighed by it."""
        return jnp.tanh(shares @ self.weight[...] + self.bias[...])


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


class ProgramWriter(nnx.Module):
    """Writes a question's program, step by step (Johnson et al. 2017, section 3.1).

    An LSTM that begins with the question's vector reads the step it wrote last, looks at the words
    by its state, and scores all steps.

    Args:
        steps: Number of steps there are, `len(StepTable.steps)`.
        length: Steps that are written, the last ones 0.
        sizes: Of the question.
        hidden: Of the LSTM.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self, steps: int, length: int, sizes: QuestionSizes, *, hidden: int = 256, rngs: nnx.Rngs
    ) -> None:
        self.length = length
        self.begin = Linear(sizes.vector, hidden, rngs=rngs)
        self.embedding = Embedding(steps + 1, hidden, rngs=rngs)
        self.lstm = LSTM(hidden, hidden, rngs=rngs)
        self.look = Linear(hidden, sizes.words, bias=False, rngs=rngs)
        self.score = Linear(hidden + sizes.words, steps + 1, rngs=rngs)

    def __call__(self, question: Question, steps: Int[Array, "b t"]) -> Float[Array, "b t n"]:
        """Logits of each step (0 is none) given those before it, for training."""
        before = jnp.pad(steps, ((0, 0), (1, 0)))[:, :-1]
        states, _ = self.lstm(self._embed(question, before), state=self._start(question))
        return self._logits(question, states)

    def write(self, question: Question) -> Int[Array, "b t"]:
        """The likeliest step, one after the other, as `StepTable.chain` takes them."""

        def step(carry: Any, _: None) -> tuple[Any, Array]:
            state, last = carry
            state = self.lstm.step(self._embed(question, last), state)
            last = self._logits(question, state[0][:, None])[:, 0].argmax(-1).astype(jnp.int32)
            return (state, last), last

        first = jnp.zeros(question.vector.shape[0], jnp.int32)
        _, steps = lax.scan(step, (self._start(question), first), length=self.length)
        return steps.T

    def _start(self, question: Question) -> LSTMState:
        h = jnp.tanh(self.begin(question.vector))
        return h, jnp.zeros(h.shape, jnp.float32)

    def _embed(self, question: Question, steps: Int[Array, "*b"]) -> Float[Array, "*b h"]:
        return self.embedding(steps).astype(question.vector.dtype)

    def _logits(self, question: Question, states: Float[Array, "b t h"]) -> Float[Array, "b t n"]:
        scores = jnp.einsum("bth,bwh->btw", self.look(states), question.words)
        scores = jnp.where(question.mask[:, None], scores.astype(jnp.float32), MASKED)
        weights = jax.nn.softmax(scores).astype(states.dtype)
        read = jnp.einsum("btw,bwh->bth", weights, question.words)
        return self.score(jnp.concatenate([states, read], axis=-1)).astype(jnp.float32)
