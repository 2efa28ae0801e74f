"""Programs as numbers, and their writer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vljax.data.scenes import STEPS, program
from vljax.errors import UserError
from vljax.models.question import ProgramWriter, QuestionEncoder, StepTable

pytestmark = pytest.mark.usefixtures("quick_to_compile")

QUESTIONS = (
    "what color is the star?",
    "what shape is the red object?",
    "how many objects are there?",
    "is there a blue heart?",
    "is the red star left of the blue heart?",
    "is the blue heart above the red star?",
    "is the background light or dark?",
)
LENGTH = 8


def test_a_chain_of_steps_as_numbers():
    table = StepTable(STEPS)
    assert table.ops == ("filter", "unique", "relate", "count", "exist", "query")
    numbers = np.stack([table.encode(program(question), LENGTH) for question in QUESTIONS])
    chain = table.chain(numbers)
    for question, ops, arguments in zip(QUESTIONS, chain.ops, chain.arguments, strict=True):
        said = [
            " ".join(filter(None, (table.ops[op - 1], ("", *table.arguments)[argument])))
            for op, argument in zip(ops, arguments, strict=True)
            if op
        ]
        assert tuple(said) == program(question)
    np.testing.assert_array_equal(chain.inputs[3], [[t - 1, -1] for t in range(LENGTH)])
    with pytest.raises(UserError, match="program step 'filter pink': choose one of filter gray"):
        table.encode(["filter pink"], LENGTH)
    with pytest.raises(UserError, match="7 steps is longer than 3"):
        table.encode(program(QUESTIONS[4]), 3)


def test_programs_are_learnt_and_written():
    table = StepTable(STEPS)
    steps = np.stack([table.encode(program(question), LENGTH) for question in QUESTIONS])
    split = [question.strip("?").split() for question in QUESTIONS]
    vocabulary = sorted({word for words in split for word in words})
    tokens = np.zeros((len(split), 10), np.int32)
    for row, words in zip(tokens, split, strict=True):
        row[: len(words)] = [vocabulary.index(word) + 1 for word in words]
    rngs = nnx.Rngs(0)
    encoder = QuestionEncoder(len(vocabulary) + 1, embedding=12, hidden=12, bound=0.5, rngs=rngs)
    model = (encoder, ProgramWriter(len(STEPS), LENGTH, encoder.sizes, hidden=16, rngs=rngs))
    optimizer = optax.adam(0.02)

    def loss(model):
        logits = model[1](model[0](tokens, tokens > 0), steps)
        return optax.softmax_cross_entropy_with_integer_labels(logits, steps).mean()

    @jax.jit
    def train(model):
        def step(carry, _):
            model, state = carry
            gradient = jax.grad(loss)(model)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(model, updates), state), None

        (model, _), _ = jax.lax.scan(step, (model, optimizer.init(model)), length=120)
        # Padding on the other side, and words that are none.
        moved = jnp.pad(tokens, ((0, 0), (2, 0)))
        return [model[1].write(model[0](t, t > 0)) for t in (tokens, moved)]

    for written in train(model):
        np.testing.assert_array_equal(written, steps)
