"""Captioners: the papers' equations in PyTorch, word by word as a whole, and their penalty."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models import decoding
from vljax.models.captioner import (
    ShowAndTell,
    ShowAttendAndTell,
    doubly_stochastic_penalty,
    make_captioner,
    word_loss,
)
from vljax.models.parameters import variables

pytestmark = pytest.mark.usefixtures("quick_to_compile")

BATCH, SIDE, CHANNELS, WORDS, TIME = 2, 3, 6, 9, 5
SIZES = {"embedding": 5, "hidden": 7, "attention": 4}
RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((BATCH, SIDE, SIDE, CHANNELS), np.float32)
TOKENS = RNG.integers(0, WORDS, (BATCH, TIME))


def make(kind, **more):
    model = make_captioner(kind, WORDS, CHANNELS, rngs=nnx.Rngs(0), **SIZES, **more)
    for variable in variables(model).values():  # attention and gates that matter
        variable[...] = 2 * variable[...]
    return model


def transcribed(torch, kind, model):
    """The papers' equations: log p of the next words [b t v], α [b t n], β [b t]."""
    weights = {name: torch.from_numpy(np.array(one[...])) for name, one in variables(model).items()}

    def linear(name, x):
        bias = weights.get(f"{name}.bias")
        return x @ weights[f"{name}.weight"] + (0 if bias is None else bias)

    cell = torch.nn.LSTMCell(weights["lstm.weight_ih"].shape[0], SIZES["hidden"])
    with torch.no_grad():
        for field, theirs in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh")):
            i, f, o, g = weights[f"lstm.{field}"].T.chunk(4)
            getattr(cell, theirs)[:] = torch.cat([i, f, g, o])
        i, f, o, g = weights["lstm.bias"].chunk(4)
        cell.bias_ih[:] = torch.cat([i, f, g, o])
        cell.bias_hh[:] = 0
    places = torch.from_numpy(FEATURES).flatten(1, 2)
    words = weights["embedding.weight"][torch.from_numpy(TOKENS)]
    mean = places.mean(1)
    told = []
    if kind == "none":  # Show and Tell, equations 10 to 12
        state = cell(linear("picture", mean))
        for t in range(TIME):
            state = cell(words[:, t], state)
            told.append((torch.log_softmax(linear("out", state[0]), -1),))
        return [torch.stack(one, 1) for one in zip(*told, strict=True)]
    mean = torch.relu(linear("init", mean))
    h, c = torch.tanh(linear("init_h", mean)), torch.tanh(linear("init_c", mean))
    for t in range(TIME):
        e = torch.tanh(torch.tanh(linear("key", places)) + linear("query", h)[:, None])
        alpha = torch.softmax(linear("score", e)[..., 0], -1)  # equations 4, 5
        beta = torch.sigmoid(linear("gate", h))
        z = beta * (alpha[..., None] * places).sum(1)  # equation 13, section 4.2.1
        h, c = cell(torch.cat([words[:, t], z], -1), (h, c))  # equations 1 to 3
        joint = words[:, t] + linear("out_h", h) + linear("out_z", z)  # equation 7
        told.append((torch.log_softmax(linear("out", joint), -1), alpha, beta[:, 0]))
    return [torch.stack(one, 1) for one in zip(*told, strict=True)]


@pytest.mark.parametrize("kind", ["soft", "none"])
def test_the_papers_equations_in_pytorch(kind):
    torch = pytest.importorskip("torch")
    model = make(kind)
    with torch.no_grad():
        theirs = [one.numpy() for one in transcribed(torch, kind, model)]
    told = jax.jit(lambda model: model(FEATURES, TOKENS))(model)
    assert np.ptp(theirs[0]) > 1
    np.testing.assert_allclose(told.log_probs, theirs[0], atol=1e-5)
    if kind == "none":
        assert told.attention is None
        assert told.gate is None
        return
    assert np.ptp(theirs[1]) > 0.1
    assert np.ptp(theirs[2]) > 0.1
    np.testing.assert_allclose(told.attention.reshape(theirs[1].shape), theirs[1], atol=1e-5)
    np.testing.assert_allclose(told.gate, theirs[2], atol=1e-5)


@pytest.mark.parametrize("kind", ["soft", "none"])
def test_word_by_word_is_the_whole_caption_and_beams_share_a_picture(kind):
    model, beams = make(kind), 2

    @jax.jit
    def run(model):
        seen = model.look(FEATURES)
        state = jax.tree.map(lambda a: jnp.repeat(a, beams, 0), model.start(seen))
        stepwise = []
        for t in range(TIME):
            log_p, state = model.step(seen, state, jnp.repeat(TOKENS[:, t], beams))
            stepwise.append(log_p)
        return model(FEATURES, TOKENS).log_probs, jnp.stack(stepwise, 1)

    whole, stepwise = run(model)
    np.testing.assert_allclose(np.repeat(whole, beams, 0), stepwise, atol=1e-5)
    np.testing.assert_allclose(np.exp(whole).sum(-1), 1, rtol=1e-5)


def test_a_wide_beam_finds_the_likeliest_of_all_captions():
    """Of two words each, all are scored."""
    model, end = make("soft"), 2

    @jax.jit
    def run(model):
        seen = model.look(FEATURES)
        step = functools.partial(model.step, seen)
        first = jnp.ones(BATCH, jnp.int32)
        found = decoding.beam_search(step, model.start(seen), first, 2, 32, end=end)
        every = jnp.stack(jnp.meshgrid(*[jnp.arange(WORDS)] * 2, indexing="ij"), -1).reshape(-1, 2)
        read = jnp.stack([jnp.ones_like(every[:, 0]), every[:, 0]], 1)
        features = jnp.repeat(FEATURES, len(every), 0)
        log_p = model(features, jnp.tile(read, (BATCH, 1))).log_probs
        picked = jnp.take_along_axis(log_p, jnp.tile(every, (BATCH, 1))[..., None], -1)[..., 0]
        ended = jnp.tile(every[:, 0] == end, BATCH)
        total = picked[:, 0] + jnp.where(ended, 0, picked[:, 1])
        return found.log_prob[:, 0], total.reshape(BATCH, -1).max(1)

    np.testing.assert_allclose(*run(model), atol=1e-5)


def test_the_penalty_is_none_where_every_place_gets_its_share():
    counts = np.array([[True, True, False], [True, False, False]])
    attention = np.zeros((2, 3, 1, 2), np.float32)
    attention[0, 0], attention[0, 1] = [0.3, 0.7], [0.7, 0.3]
    attention[1, 0] = [1, 0]
    attention[:, 2] = 9  # after the end: does not count
    # The second caption leaves one place out, by 1.
    assert float(doubly_stochastic_penalty(attention, counts)) == pytest.approx(0.5)
    log_probs = np.log(np.full((2, 3, 4), 0.25, np.float32))
    loss = word_loss(log_probs, np.zeros((2, 3), int), counts)
    assert float(loss) == pytest.approx(1.5 * np.log(4), rel=1e-6)


def test_half_precision_looks_in_full_and_drops_out_with_a_key():
    model = make("soft", dropout_rate=0.5)
    half = FEATURES.astype(jnp.bfloat16)
    run = jax.jit(lambda model, key: model(half, TOKENS, key))
    told, other = (run(model, jax.random.key(i)) for i in range(2))
    assert (told.log_probs.dtype, told.attention.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(told.attention.sum((2, 3)), 1, rtol=1e-5)
    assert np.abs(told.log_probs - other.log_probs).max() > 1e-2


def test_kinds_of_attention():
    assert isinstance(make("soft"), ShowAttendAndTell)
    assert isinstance(make("none"), ShowAndTell)
    with pytest.raises(UserError, match="attention='hard': choose one of 'soft', 'none'"):
        make("hard")
