"""Greedy, sampling and beam search: against enumeration, and against transformers on a GPT-2."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.models.decoding import beam_search, draw, greedy, sample, truncated
from vljax.models.layers import Embedding, LayerNorm
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.transformer import Layer

pytestmark = pytest.mark.usefixtures("quick_to_compile")

# A decoder small enough to enumerate -----------------------------------------------------------

END, WORDS, ROOM = 0, (1, 2, 3), 4


@functools.cache
def table():
    """Log p of the next token after the last one and the place, of two sources."""
    scores = np.random.default_rng(0).normal(size=(2, ROOM, 4, 4)) * 1.5
    return np.asarray(jax.nn.log_softmax(jnp.asarray(scores, jnp.float32), axis=-1))


def start(sources):
    """A leaf with rows, and one without."""
    return {"table": jnp.asarray(table())[np.asarray(sources)], "place": jnp.zeros((), jnp.int32)}


def step(cache, token):
    scores = jnp.take(cache["table"], cache["place"], axis=1)
    scores = scores[jnp.arange(len(token)), token]
    return scores, {**cache, "place": cache["place"] + 1}


FIRST = 1


def log_prob(source, tokens):
    before = (FIRST, *tokens[:-1])
    return sum(
        table()[source, i, a, b] for i, (a, b) in enumerate(zip(before, tokens, strict=True))
    )


@functools.cache
def every(source):
    """Log p of all sequences: those that end in the room, and those that it cuts."""
    ended = [(*words, END) for n in range(ROOM) for words in itertools.product(WORDS, repeat=n)]
    cut = list(itertools.product(WORDS, repeat=ROOM))
    return {tokens: log_prob(source, tokens) for tokens in (*ended, *cut)}


def told(tokens, length):
    return tuple(int(token) for token in tokens[:length])


@jax.jit
@chex.assert_max_traces(n=1)
def wide(cache, penalty):
    first = jnp.full(2, FIRST)
    return beam_search(step, cache, first, ROOM, 27, end=END, pad=-7, length_penalty=penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -2.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(penalty):
    found = jax.tree.map(np.asarray, wide(start([0, 1]), np.float32(penalty)))
    for row in range(2):
        # Of 27 beams none that could win is pushed out: so many prefixes of three words there are.
        expected = {
            tokens: value / ((5 + len(tokens)) / 6) ** penalty
            for tokens, value in every(row).items()
        }
        ranked = sorted(expected, key=expected.get, reverse=True)
        beams = [
            told(tokens, length)
            for tokens, length in zip(found.tokens[row], found.length[row], strict=True)
        ]
        assert beams[0] == ranked[0]
        values = [expected[tokens] for tokens in beams]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(
            found.log_prob[row], [every(row)[tokens] for tokens in beams], atol=1e-5
        )
        np.testing.assert_array_equal(found.finished[row], [END in tokens for tokens in beams])
        beyond = np.arange(ROOM) >= found.length[row][:, None]
        assert (found.tokens[row][beyond] == -7).all()
        if penalty == 0:
            assert beams[:10] == ranked[:10]


def narrow_by_hand(source, beams):
    """The same beam in words: lists of tokens, sorted."""
    kept = [((), 0.0)]
    for _ in range(ROOM):
        further = []
        for tokens, value in kept:
            if END in tokens:
                further.append((tokens, value))
                continue
            for token in range(4):
                whole = (*tokens, token)
                further.append((whole, log_prob(source, whole)))
        kept = sorted(further, key=lambda one: -one[1])[:beams]
    return [tokens for tokens, _ in kept]


def test_a_narrow_beam_keeps_what_it_should():
    run = jax.jit(lambda cache: beam_search(step, cache, jnp.full(2, FIRST), ROOM, 3, end=END))
    found = run(start([0, 1]))
    for row in range(2):
        beams = zip(found.tokens[row], found.length[row], strict=True)
        assert [told(*one) for one in beams] == narrow_by_hand(row, 3)


@jax.jit
@chex.assert_max_traces(n=1)
def drawn(cache, keys, temperature, top_k, top_p):
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return sample(step, cache, jnp.full(len(keys), FIRST), ROOM, keys, end=END, pad=-7, **knobs)


def draws(seed, temperature=1.0, top_k=0, top_p=1.0, rows=4000):
    """Rows in turn of both sources; their table first, for one program serves all of them."""
    keys = jax.random.split(jax.random.key(seed), rows)
    knobs = np.float32(temperature), np.int32(top_k), np.float32(top_p)
    return jax.tree.map(np.asarray, drawn(start(np.arange(rows) % 2), keys, *knobs))


def test_samples_follow_the_decoder():
    """χ² over whole sequences of each source."""
    found = draws(0)
    for row in range(2):
        counts = dict.fromkeys(every(row), 0)
        for tokens, length in zip(found.tokens[row::2], found.length[row::2], strict=True):
            counts[told(tokens, length)] += 1
        expected = {tokens: 2000 * np.exp(value) for tokens, value in every(row).items()}
        common = [tokens for tokens in counts if expected[tokens] > 5]
        rest = 2000 - sum(expected[t] for t in common), 2000 - sum(counts[t] for t in common)
        cells = [(expected[t], counts[t]) for t in common] + [rest]
        surprise = sum((count - mean) ** 2 / mean for mean, count in cells)
        freedom = len(cells) - 1
        # Five standard deviations above its mean: the seed is fixed, other orders of sums are not.
        assert surprise < freedom + 5 * (2 * freedom) ** 0.5
    np.testing.assert_allclose(
        found.log_prob[:50],
        [log_prob(i % 2, told(found.tokens[i], found.length[i])) for i in range(50)],
        atol=1e-5,
    )


def test_a_row_depends_on_its_own_key_only():
    whole, other = draws(1), draws(1, temperature=0.8)
    assert (whole.tokens != other.tokens).any()
    keys = jax.random.split(jax.random.key(1), 4000)[2:4]
    few = sample(step, start([0, 1]), jnp.full(2, FIRST), ROOM, keys, end=END, pad=-7)
    np.testing.assert_array_equal(few.tokens, whole.tokens[2:4])


def test_greedy_is_sampling_without_chance_and_a_beam_of_one():
    first = jnp.full(2, FIRST)
    found = jax.jit(lambda cache: greedy(step, cache, first, ROOM, end=END, pad=-7))(start([0, 1]))
    one = jax.jit(lambda cache: beam_search(step, cache, first, ROOM, 1, end=END, pad=-7))
    for field, again in zip(found, one(start([0, 1])), strict=True):
        np.testing.assert_allclose(field, again[:, 0], atol=1e-6)
    for knobs in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}):
        np.testing.assert_array_equal(draws(2, **knobs).tokens[:2], found.tokens)
    # It follows the largest entries, by hand.
    for row in range(2):
        tokens, last = [], FIRST
        while END not in tokens and len(tokens) < ROOM:
            last = int(table()[row, len(tokens), last].argmax())
            tokens.append(last)
        assert told(found.tokens[row], found.length[row]) == tuple(tokens)


def test_a_search_without_an_end_fills_its_room():
    run = jax.jit(lambda cache: beam_search(step, cache, jnp.full(2, FIRST), ROOM, 256, end=-1))
    found = run(start([0, 1]))
    assert not found.finished.any()
    everything = {
        tokens: log_prob(0, tokens) for tokens in itertools.product(range(4), repeat=ROOM)
    }
    ranked = sorted(everything, key=everything.get, reverse=True)
    assert [told(tokens, ROOM) for tokens in found.tokens[0, :20]] == ranked[:20]


def test_truncation():
    log_probs = jnp.log(jnp.asarray([0.1, 0.4, 0.2, 0.3]))
    run = jax.jit(lambda top_k, top_p: truncated(log_probs, top_k, top_p))

    def kept(**limits):
        return run(**limits).tolist()

    assert kept(top_k=0, top_p=1.0) == [True] * 4
    assert kept(top_k=2, top_p=1.0) == [False, True, False, True]
    assert kept(top_k=0, top_p=0.69) == [False, True, False, True]
    assert kept(top_k=0, top_p=0.71) == [False, True, True, True]
    assert kept(top_k=3, top_p=0.5) == [False, True, False, True]
    assert kept(top_k=0, top_p=0.0) == [False, True, False, False]


# A GPT-2 of transformers' ----------------------------------------------------------------------


class Gpt2(nnx.Module):
    """A decoder over `Layer.step`, with a prompt."""

    def __init__(self, vocabulary=23, places=16, features=16, layers=2, heads=2):
        rngs = nnx.Rngs(0)
        self.words = Embedding(vocabulary, features, rngs=rngs)
        self.places = Embedding(places, features, rngs=rngs)
        self.layers = nnx.List(
            Layer(features, 4 * features, heads, rngs=rngs) for _ in range(layers)
        )
        self.norm = LayerNorm(features)
        self.room = places

    def start(self, prompt):
        """Reads all of the prompts but their last token."""
        empty = tuple(layer.start(len(prompt), self.room) for layer in self.layers)
        cache = {"place": jnp.zeros((), jnp.int32), "layers": empty}
        return self.read(cache, prompt[:, :-1])[1]

    def read(self, cache, tokens):
        x = self.words(tokens) + self.places(cache["place"] + jnp.arange(tokens.shape[1]))
        layers = []
        for layer, seen in zip(self.layers, cache["layers"], strict=True):
            x, seen = layer.step(x, seen, cache["place"])
            layers.append(seen)
        return x, {"place": cache["place"] + tokens.shape[1], "layers": tuple(layers)}

    def step(self, cache, token):
        x, cache = self.read(cache, token[:, None])
        logits = self.norm(x[:, 0]) @ self.words.weight[...].T
        return jax.nn.log_softmax(logits, axis=-1), cache


@pytest.fixture(scope="module")
def gpt2():
    """(ours, theirs), with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=23,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        activation_function="relu",
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    values = {"words.weight": state["transformer.wte.weight"]}
    values["places.weight"] = state["transformer.wpe.weight"]
    names = {
        "self_attention_norm": "ln_1",
        "self_attention.out": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.inner": "mlp.c_fc",
        "feed_forward.outer": "mlp.c_proj",
    }
    for kind in ("weight", "bias"):
        values[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for i in range(2):
            of = f"transformer.h.{i}"
            for own, name in names.items():
                values[f"layers.{i}.{own}.{kind}"] = state[f"{of}.{name}.{kind}"]
            parts = np.split(state[f"{of}.attn.c_attn.{kind}"], 3, axis=-1)
            for own, part in zip(("query", "key", "value"), parts, strict=True):
                values[f"layers.{i}.self_attention.{own}.{kind}"] = part
    ours = Gpt2()
    assert set(values) == set(named_parameters(ours))
    return with_parameters(ours, values), theirs


PROMPT = np.array([[5, 3, 8], [1, 1, 2], [9, 4, 4], [12, 20, 7]], np.int32)
NEW = 9


def generated(theirs, **options):
    import torch

    told = theirs.generate(
        torch.tensor(PROMPT, dtype=torch.long),
        attention_mask=torch.ones(PROMPT.shape, dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return told.sequences[:, PROMPT.shape[1] :].numpy(), told


def test_greedy_is_transformers_greedy(gpt2):
    ours, theirs = gpt2
    # Ends that come soon: what greedy writes at its third step for two of the rows.
    end = int(generated(theirs, eos_token_id=-1)[0][0, 3])
    expected, _ = generated(theirs, eos_token_id=end, pad_token_id=22)

    @jax.jit
    def run(model):
        cache = model.start(PROMPT)
        return greedy(model.step, cache, jnp.asarray(PROMPT[:, -1]), NEW, end=end, pad=22)

    found = run(ours)
    assert found.finished[0]
    assert not found.finished.all()
    np.testing.assert_array_equal(found.tokens[:, : expected.shape[1]], expected)


def test_beams_are_transformers_beams(gpt2):
    """Without an end, of which they keep a list apart from the beam."""
    ours, theirs = gpt2
    expected, told = generated(
        theirs, num_beams=3, num_return_sequences=3, eos_token_id=-1, length_penalty=0.0
    )

    @jax.jit
    def run(model):
        cache = model.start(PROMPT)
        return beam_search(model.step, cache, jnp.asarray(PROMPT[:, -1]), NEW, 3, end=-1)

    found = run(ours)
    np.testing.assert_array_equal(found.tokens.reshape(-1, NEW), expected)
    np.testing.assert_allclose(found.log_prob.reshape(-1), told.sequences_scores.numpy(), atol=1e-4)


def test_truncation_is_transformers(gpt2):
    import torch
    from transformers.generation import logits_process

    scores = np.random.default_rng(1).normal(size=(64, 30)).astype(np.float32) * 2
    for temperature, k, p in ((1.0, 5, 1.0), (0.6, 0, 0.8), (1.7, 12, 0.5), (1.0, 0, 1.0)):
        told = torch.tensor(scores) / temperature
        if k:
            told = logits_process.TopKLogitsWarper(k)(None, told)
        if p < 1:
            told = logits_process.TopPLogitsWarper(p)(None, told)
        expected = np.isfinite(told.numpy())
        np.testing.assert_array_equal(truncated(scores / temperature, k, p), expected)
        keys = jax.random.split(jax.random.key(k), 64)
        assert expected[np.arange(64), draw(scores, keys, temperature, k, p)].all()
