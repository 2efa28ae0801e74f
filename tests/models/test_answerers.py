"""Answerers: the published one against its layers in numpy; all of them learn, by small tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.answerers import ANSWERERS, Attention, make_answerer
from vljax.models.parameters import named_parameters
from vljax.models.question import Program, QuestionEncoder
from vljax.pretrained.caffemodel import by_path

pytestmark = pytest.mark.usefixtures("quick_to_compile")

EXAMPLES, STEPS, CHANNELS, ANSWERS, WORDS = 16, 5, 6, 4, 11
OPS, ARGUMENTS = 3, 2
SMALL = {
    "attention": {"features": 24, "hidden": 8, "rounds": 2, "glimpses": 2},
    "film": {"width": 8, "blocks": 2, "groups": 2, "head": 16, "hidden": 16},
    "relation": {"cells": 3, "width": 16, "layers": 2},
    "coattention": {"width": 12},
    "bilinear": {"width": 8, "glimpses": 2},
    "modules": {"ops": OPS, "arguments": ARGUMENTS, "width": 8, "hidden": 16},
}


class Model(nnx.Module):
    """A question's encoder and an answerer."""

    def __init__(self, kind, rngs, **fields):
        self.question = QuestionEncoder(WORDS, embedding=8, hidden=8, bound=0.5, rngs=rngs)
        self.answer = make_answerer(
            kind, CHANNELS, self.question.sizes, ANSWERS, rngs=rngs, **(SMALL[kind] | fields)
        )

    def __call__(self, batch, key=None):
        keys = (None, None) if key is None else jax.random.split(key)
        question = self.question(
            batch["tokens"], batch["mask"], program=batch["program"], key=keys[0]
        )
        return self.answer(batch["features"], question, key=keys[1])


@functools.cache
def small(kind):
    return Model(kind, nnx.Rngs(0))


@functools.cache
def batch(side="right"):
    """Random questions and programs with random answers; padding on one side."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, STEPS + 1, EXAMPLES)
    mask = np.arange(STEPS) < lengths[:, None]
    tokens = rng.integers(1, WORDS, (EXAMPLES, STEPS))
    ops = rng.integers(1, OPS + 1, (EXAMPLES, STEPS))
    arguments = rng.integers(0, ARGUMENTS + 1, (EXAMPLES, STEPS))
    # Each step takes the one before it, and any earlier one.
    steps = np.arange(STEPS)
    inputs = np.stack([np.tile(steps - 1, (EXAMPLES, 1)), rng.integers(-1, steps, (16, 5))], -1)
    features = rng.standard_normal((EXAMPLES, 4, 5, CHANNELS), np.float32)
    answers = rng.integers(0, ANSWERS, EXAMPLES)
    if side == "left":
        shift = STEPS - lengths
        moved = (steps - shift[:, None]) % STEPS
        mask, tokens, ops, arguments = (
            np.take_along_axis(a, moved, 1) for a in (mask, tokens, ops, arguments)
        )
        inputs = np.take_along_axis(inputs, moved[..., None], 1)
        inputs = np.where(inputs < 0, -1, inputs + shift[:, None, None])
    program = Program(np.where(mask, ops, 0), arguments, inputs)
    return {"tokens": np.where(mask, tokens, 0), "mask": mask, "features": features,
            "answers": answers, "program": program}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERERS)
def test_sixteen_questions_are_learnt_by_all_parameters(kind):
    model = small(kind)
    optimizer = optax.adam(5e-3)

    def loss(model, batch):
        answer = model(batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(answer.logits, batch["answers"])
        return losses.mean(), answer

    @jax.jit
    def step(model, state, batch):
        (value, answer), gradient = jax.value_and_grad(loss, has_aux=True)(model, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, updates), state, value, answer, gradient

    state = optimizer.init(model)
    *_, before, answer, gradient = step(model, state, batch())
    assert answer.logits.shape == (EXAMPLES, ANSWERS)
    if answer.attention is None:
        assert kind in ("film", "relation")
    else:
        assert answer.attention.shape == (EXAMPLES, 4, 5)
        np.testing.assert_allclose(answer.attention.sum((1, 2)), 1, rtol=1e-5)
    # Padding has no part in an answer, wherever it stands.
    *_, moved, _ = step(model, state, batch("left"))
    np.testing.assert_allclose(moved.logits, answer.logits, atol=1e-5)
    for name, value in named_parameters(gradient).items():
        # A softmax takes no notice of its scores' bias; module networks do not read.
        still = name.endswith("att_conv2.bias") or (
            kind == "modules" and name.startswith("question.")
        )
        assert (np.abs(value).max() > 1e-7) != still, name
    for _ in range(100):
        model, state, value, *_ = step(model, state, batch())
    assert value < 0.25 < 1 < before


def test_dropout_needs_a_key_and_has_an_effect():
    model = small("attention")
    run = jax.jit(lambda model, batch, key: model(batch, key).logits)
    first, second = (run(model, batch(), jax.random.key(i)) for i in range(2))
    assert np.abs(first - second).max() > 1e-4


def test_the_published_answerer_by_its_caffe_layers():
    """Rows of facts: words, two LSTMs, product, signed root, norm over the map, two 1×1, ..."""
    rng = np.random.default_rng(1)
    e, h, c, o = 4, 6, 12, 12

    def blob(*shape):
        return rng.uniform(-0.5, 0.5, shape).astype(np.float32)

    blobs = {"embed_ba": [blob(WORDS, e), blob(e)]}
    blobs["lstm1"] = [blob(4 * h, e), blob(4 * h), blob(4 * h, h)]
    blobs["lstm2"] = [blob(4 * h, h), blob(4 * h), blob(4 * h, h)]
    blobs["i_emb"] = [blob(o, c, 1, 1), blob(o)]
    blobs["att_conv1"] = [blob(5, o, 1, 1), blob(5)]
    blobs["att_conv2"] = [blob(1, 5, 1, 1), blob(1)]
    blobs["i_emb2"] = [blob(o, c), blob(o)]
    blobs["prediction"] = [blob(ANSWERS, o), blob(ANSWERS)]
    flat = {f"{name}.{i}": b for name, layer in blobs.items() for i, b in enumerate(layer)}

    encoder = QuestionEncoder(WORDS, embedding=e, hidden=h, rngs=nnx.Rngs(0))
    answerer = Attention(c, encoder.sizes, ANSWERS, features=o, hidden=5, rngs=nnx.Rngs(0))
    loaded = []
    for part in (encoder, answerer):
        own = {n: t for n, t in flat.items() if n.partition(".")[0] in part.caffe_layers}
        loaded.append(pretrained.assign(part, by_path(own, part.caffe_layers), origin="blobs"))
    assert sum(len(p.caffe_layers) for p in loaded) == len(blobs)

    tokens = rng.integers(1, WORDS, (2, 3))
    mask = np.array([[True] * 3, [False, True, True]])
    f = rng.standard_normal((2, 3, 4, c)).astype(np.float32)

    def recur(x, begins, w, b, u):
        state = out = np.zeros((1, h))
        outputs = []
        for step, row in enumerate(x):
            if begins[step]:
                state = out = np.zeros((1, h))
            gates = row @ w.T + b + out @ u.T
            i, forget, o_ = (1 / (1 + np.exp(-gates[:, n * h : n * h + h])) for n in range(3))
            state = forget * state + i * np.tanh(gates[:, 3 * h :])
            out = o_ * np.tanh(state)
            outputs.append(out)
        return np.concatenate(outputs)

    def unit(z):
        z = np.sign(z) * np.sqrt(np.abs(z))
        return z / np.sqrt((z**2).sum() + 1e-7)

    def linear(x, name):
        weight, bias = blobs[name]
        return x @ weight.reshape(weight.shape[:2]).T + bias

    expected, maps = [], []
    for i in range(2):
        begins = np.arange(3) <= np.argmax(mask[i])
        words = np.tanh(blobs["embed_ba"][0][tokens[i]] + blobs["embed_ba"][1])
        first = recur(words, begins, *blobs["lstm1"])
        q = np.concatenate([first[-1], recur(first, begins, *blobs["lstm2"])[-1]])
        fused = unit(q * linear(f[i], "i_emb"))
        scores = linear(np.maximum(linear(fused, "att_conv1"), 0), "att_conv2")[..., 0]
        alpha = np.exp(scores) / np.exp(scores).sum()
        seen = (alpha[..., None] * f[i]).sum((0, 1))
        expected.append(linear(unit(q * linear(seen, "i_emb2")), "prediction"))
        maps.append(alpha)
    encoder, answerer = loaded
    answer = jax.jit(lambda e, a, *x: a(x[0], e(*x[1:])))(encoder, answerer, f, tokens, mask)
    np.testing.assert_allclose(answer.logits, expected, atol=1e-5)
    np.testing.assert_allclose(answer.attention, maps, atol=1e-6)


def test_a_step_that_is_none_hands_on_and_arguments_matter():
    model = small("modules").answer
    features = jnp.asarray(batch()["features"][:1])
    run = jax.jit(lambda model, features, program: model.run(features, program))

    def result(ops, arguments, inputs):
        return run(model, features, Program(*(jnp.array([a]) for a in (ops, arguments, inputs))))

    none = [-1, -1]
    plain = result([1, 2, 0], [1, 0, 0], [none, [0, -1], none])
    np.testing.assert_allclose(
        result([0, 1, 2], [0, 1, 0], [none, none, [1, -1]]), plain, atol=1e-6
    )
    # Another argument, another order of the inputs, and a step that is not used.
    assert np.abs(result([1, 2, 0], [2, 0, 0], [none, [0, -1], none]) - plain).max() > 1e-3
    assert np.abs(result([1, 2, 0], [1, 0, 0], [none, [-1, 0], none]) - plain).max() > 1e-3
    unused = result([1, 3, 2], [1, 2, 0], [none, none, [0, -1]])
    np.testing.assert_allclose(unused, plain, atol=1e-6)


def test_mistakes_are_named():
    rngs = nnx.Rngs(0)
    for kind, fields, problem in (
        ("memory", {}, "answerer kind='memory': choose 'attention', 'film'"),
        ("attention", {"over": "picture"}, "over='picture'"),
        ("attention", {"rounds": -1}, "rounds=-1"),
        ("attention", {"fusion": "cat"}, "fusion='cat'"),
        ("film", {"width": 8, "groups": 3}, "groups=3 of FiLM"),
    ):
        sizes = QuestionEncoder(3, embedding=2, hidden=2, rngs=rngs).sizes
        with pytest.raises(UserError, match=problem):
            make_answerer(kind, 4, sizes, 2, rngs=rngs, **fields)
    with pytest.raises(UserError, match="layers=3 of the question's encoder"):
        QuestionEncoder(3, layers=3, rngs=rngs)
    model = small("modules")
    with pytest.raises(ValueError, match="needs questions with a program"):
        model(batch() | {"program": None})
