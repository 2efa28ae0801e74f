"""The explainer: its one-step form is its whole-sequence form, and what it must not depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.explainer import Encoded, Explainer

pytestmark = pytest.mark.usefixtures("quick_to_compile")

BATCH, SIDE, CHANNELS, FEATURES, ANSWERS, WORDS = 3, 2, 6, 8, 5, 9
FORMS = {
    "single": {"decoder_features": (1, 7)},
    "double": {"decoder": "double", "decoder_norm": "batch", "decoder_features": (8, 7)},
    "of ACT-X": {
        "decoder": "double",
        "decoder_root": False,
        "asks": False,
        "decoder_features": (8, 7),
    },
    "without attention": {"attention": False, "attended": "raw", "decoder_features": (1, 7)},
}


@functools.cache
def encoded(batch=BATCH):
    rng = np.random.default_rng(0)
    shapes = [(batch, SIDE, SIDE, n) for n in (CHANNELS, FEATURES, FEATURES)]
    arrays = [rng.standard_normal(shape, np.float32) for shape in (*shapes, (batch, FEATURES))]
    return Encoded(*map(jnp.asarray, arrays))


def make(form):
    return Explainer(
        answers=ANSWERS,
        words=WORDS,
        channels=CHANNELS,
        features=FEATURES,
        hidden=4,
        embedding=5,
        bound=0.5,
        rngs=nnx.Rngs(0),
        **FORMS[form],
    )


def seen(form):
    """What a form takes on: where nothing is asked, the picture stands for all three maps."""
    features, _, _, question = given = encoded()
    return Encoded(features, features, features, question) if form == "of ACT-X" else given


@pytest.mark.parametrize("form", FORMS)
def test_word_by_word_is_the_whole_sequence(form):
    model = make(form)
    tokens = np.random.default_rng(1).integers(0, WORDS, (BATCH, 4))

    @jax.jit
    def run(model, encoded, tokens):
        cause, points = model.explain(encoded, jnp.arange(BATCH))
        cache, stepwise = model.start(cause), []
        for t in range(tokens.shape[1]):
            log_p, cache = model.step(cache, tokens[:, t])
            stepwise.append(log_p)
        return points, model(cause, tokens), jnp.stack(stepwise, 1)

    points, whole, stepwise = run(model, seen(form), tokens)
    np.testing.assert_allclose(whole, stepwise, atol=1e-5)
    np.testing.assert_allclose(np.exp(whole).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(points.sum((1, 2)), 1, rtol=1e-5)
    even = np.allclose(points, 1 / SIDE**2, atol=1e-3)
    assert even == (form == "without attention")


def test_an_answer_is_its_own_distribution():
    model = make("single")
    explain = jax.jit(lambda model, answer: model.explain(encoded(), answer))
    by_index = explain(model, jnp.arange(BATCH))
    for one, other in zip(by_index, explain(model, jnp.eye(BATCH, ANSWERS)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    changed = explain(model, jnp.arange(BATCH) + 1)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(by_index, changed, strict=True))


@pytest.mark.parametrize(("form", "mates"), [("single", False), ("double", True)])
def test_words_depend_on_batch_mates_only_in_the_published_norm(form, mates):
    model = make(form)

    @jax.jit
    def log_p(model, encoded):
        cause, _ = model.explain(encoded, jnp.arange(len(encoded.question)))
        return model(cause, jnp.ones((len(cause), 3), int))

    alone = log_p(model, Encoded(*(a[:1] for a in encoded())))
    together = log_p(model, encoded())[:1]
    assert (np.abs(alone - together).max() > 1e-4) == mates


def test_half_precision_points_in_full_and_drops_out_with_a_key():
    model = make("double")
    model.dropout_rate = 0.5
    half = Encoded(*(a.astype(jnp.bfloat16) for a in encoded()))
    tokens = jnp.ones((BATCH, 3), int)

    @jax.jit
    def run(model, key):
        keys = jax.random.split(key)
        cause, points = model.explain(half, jnp.arange(BATCH), keys[0])
        return cause, points, model(cause, tokens, keys[1])

    (cause, points, log_p), (_, other, others) = (run(model, jax.random.key(i)) for i in range(2))
    assert (cause.dtype, points.dtype, log_p.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert np.abs(points - other).max() > 1e-4
    assert np.abs(log_p - others).max() > 1e-4


def test_a_decoder_that_cannot_be_multiplied_is_named():
    FORMS["wrong"] = FORMS["double"] | {"decoder_features": (7, 7)}
    with pytest.raises(UserError, match=r"decoder_features=\(7, 7\) of a double decoder: .* of 8"):
        make("wrong")
    del FORMS["wrong"]
