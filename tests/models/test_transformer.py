"""Transformer layers: masks, shifts, relative places against their definitions, and a peer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax.errors import UserError
from vljax.models.parameters import named_parameters
from vljax.models.transformer import (
    Attention,
    Encoder,
    Layer,
    by_distance,
    sinusoids,
    with_places,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SIZES = {"features": 16, "hidden": 32, "heads": 2}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.lru_cache
def encoder(scheme, norm="pre"):
    """A layer, compiled once; biases of places are not left at zero, where they show nothing."""

    def make():
        made = Encoder(
            1, 16, hidden=32, heads=2, scheme=scheme, norm=norm, max_distance=2, rngs=nnx.Rngs(0)
        )
        if scheme == "xl":
            attention = made.layers[0].self_attention
            attention.content_bias.set_value(jax.random.normal(jax.random.key(1), (2, 8)))
            attention.distance_bias.set_value(jax.random.normal(jax.random.key(2), (2, 8)))
        return made

    run = jax.jit(lambda model, x, mask: model(x, mask))
    return functools.partial(run, make())


def test_scores_by_distance():
    n = 5
    scores = random(2, 3, n, 2 * n - 1)
    found = by_distance(scores)
    for i in range(n):
        for j in range(n):
            np.testing.assert_array_equal(found[..., i, j], scores[..., i, j - i + n - 1])


def test_sinusoids_of_a_shift_are_a_rotation():
    table = np.asarray(sinusoids(jnp.arange(-3, 20), 8))
    sine, cosine = table[:, :4], table[:, 4:]
    angle = np.arctan2(
        sine[1:] * cosine[:-1] - cosine[1:] * sine[:-1],
        cosine[1:] * cosine[:-1] + sine[1:] * sine[:-1],
    )
    np.testing.assert_allclose(angle, np.broadcast_to(angle[0], angle.shape), atol=1e-5)
    np.testing.assert_allclose(angle[0, 0], 1.0, atol=1e-6)
    np.testing.assert_allclose(angle[0, -1], 1e-4, rtol=1e-2)


SCHEMES = ("none", "sinusoid", "sinusoid_attention", "relative", "xl")


@pytest.mark.parametrize(("scheme", "norm"), [*((s, "pre") for s in SCHEMES), ("xl", "post")])
def test_padding_changes_nothing(scheme, norm):
    model = encoder(scheme, norm)
    x, rubbish = random(2, 7, 16), 1e3 * random(2, 7, 16, seed=9)
    mask = np.arange(7)[None] < np.array([[7], [4]])
    whole, changed = model(x, mask), model(np.where(mask[..., None], x, rubbish), mask)
    np.testing.assert_allclose(whole[0], changed[0], atol=1e-5)
    np.testing.assert_allclose(whole[1, :4], changed[1, :4], atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_shift_is_seen_by_absolute_places_only(scheme):
    model, words = encoder(scheme), np.zeros((2, 7, 16), np.float32)
    words[0, :4] = words[1, 3:] = random(4, 16)
    mask = np.stack([np.arange(7) < 4, np.arange(7) >= 3])
    found = model(words, mask)
    same = np.abs(found[0, :4] - found[1, 3:]).max() < 1e-5
    assert same == (scheme in ("none", "relative", "xl"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_sets_ignore_the_order(scheme):
    model, x, mask = encoder(scheme), np.array(random(2, 7, 16)), np.ones((2, 7), bool)
    x[1] = x[0, ::-1]
    found = model(x, mask)
    assert (np.abs(found[0] - found[1, ::-1]).max() < 1e-5) == (scheme == "none")


@pytest.mark.parametrize("scheme", ["relative", "xl", "insertion"])
def test_relative_scores_are_those_of_the_definition(scheme):
    n, heads, size = 5, 2, 4
    made = jax.jit(lambda: Attention(8, heads, rngs=nnx.Rngs(1), scheme=scheme, max_distance=2))()
    if scheme == "xl":
        made.content_bias.set_value(random(heads, size, seed=3))
        made.distance_bias.set_value(random(heads, size, seed=4))
    x, order = np.asarray(random(1, n, 8)), np.random.default_rng(0).permutation(n)
    relation = np.sign(order[:, None] - order[None])[None]
    mask = jnp.tri(n, dtype=bool)[None]
    found = jax.jit(lambda m, x: m(x, m.keys_values(x, x), mask, jnp.asarray(relation)))(made, x)

    weights = {name: np.asarray(value) for name, value in named_parameters(made).items()}
    q, k, v = (
        (x[0] @ weights[f"{name}.weight"] + weights[f"{name}.bias"]).reshape(n, heads, size)
        for name in ("query", "key", "value")
    )
    places = np.asarray(sinusoids(jnp.arange(-n, n + 1), 8))
    mixed = np.zeros((n, heads, size))
    for h in range(heads):
        scores = np.full((n, n), -np.inf)
        for i in range(n):
            for j in range(i + 1):
                if scheme == "xl":
                    place = (places[n + j - i] @ weights["distance.weight"]).reshape(heads, size)
                    scores[i, j] = (q[i, h] + weights["content_bias"][h]) @ k[j, h]
                    scores[i, j] += (q[i, h] + weights["distance_bias"][h]) @ place[h]
                else:
                    label = np.clip(j - i, -2, 2) + 2
                    if scheme == "insertion":
                        label = relation[0, i, j] + 1
                    scores[i, j] = q[i, h] @ (k[j, h] + weights["distances"][label])
        soft = np.exp(scores / size**0.5)
        mixed[:, h] = soft / soft.sum(-1, keepdims=True) @ v[:, h]
    expected = mixed.reshape(1, n, 8) @ weights["out.weight"] + weights["out.bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def linear_into(peer, layer):
    torch = pytest.importorskip("torch")
    peer.weight.data = torch.tensor(np.asarray(layer.weight[...]).T.copy())
    peer.bias.data = torch.tensor(np.asarray(layer.bias[...]))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_decoder_layer_is_torchs(norm):
    torch = pytest.importorskip("torch")
    ours = Layer(**SIZES, rngs=nnx.Rngs(2), norm=norm, cross=True)
    peer = torch.nn.TransformerDecoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm == "pre"
    )
    for theirs, attention in (
        (peer.self_attn, ours.self_attention),
        (peer.multihead_attn, ours.cross_attention),
    ):
        parts = (attention.query, attention.key, attention.value)
        theirs.in_proj_weight.data = torch.tensor(
            np.concatenate([np.asarray(p.weight[...]).T for p in parts])
        )
        theirs.in_proj_bias.data = torch.tensor(
            np.concatenate([np.asarray(p.bias[...]) for p in parts])
        )
        linear_into(theirs.out_proj, attention.out)
    linear_into(peer.linear1, ours.feed_forward.inner)
    linear_into(peer.linear2, ours.feed_forward.outer)
    x, source = random(2, 5, 16), random(2, 6, 16, seed=1)
    seen = np.arange(6)[None] < np.array([[6], [3]])
    causal = np.tri(5, dtype=bool)[None]
    found = jax.jit(lambda m: m(x, causal, m.context(source, jnp.asarray(seen))))(ours)
    with torch.no_grad():
        expected = peer(
            torch.tensor(np.asarray(x)),
            torch.tensor(np.asarray(source)),
            tgt_mask=torch.tensor(~np.tri(5, dtype=bool)),
            memory_key_padding_mask=torch.tensor(~seen),
        )
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(("scheme", "norm"), [("none", "post"), ("relative", "pre"), ("xl", "pre")])
def test_steps_are_the_whole_pass(scheme, norm):
    """A prompt of three positions at once, then one after the other; beside a source, or alone."""
    layer = Layer(
        **SIZES, rngs=nnx.Rngs(4), scheme=scheme, norm=norm, max_distance=2, cross=norm == "post"
    )
    x, source = random(2, 7, 16), random(2, 5, 16, seed=1)
    seen = np.arange(5)[None] < np.array([[5], [2]])

    @jax.jit
    def both(layer, x):
        context = layer.context(source, jnp.asarray(seen)) if norm == "post" else None
        first, cache = layer.step(x[:, :3], layer.start(2, 7), jnp.zeros((), jnp.int32), context)

        def one(cache, place):
            now = jax.lax.dynamic_slice_in_dim(x, place, 1, axis=1)
            found, cache = layer.step(now, cache, place, context)
            return cache, found[:, 0]

        _, others = jax.lax.scan(one, cache, jnp.arange(3, 7))
        stepped = jnp.concatenate([first, jnp.moveaxis(others, 0, 1)], axis=1)
        return stepped, layer(x, np.tri(7, dtype=bool)[None], context)

    stepped, whole = both(layer, x)
    np.testing.assert_allclose(stepped, whole, atol=1e-5)


def test_positional_attention_has_no_steps():
    layer = Layer(**SIZES, rngs=nnx.Rngs(4), scheme="sinusoid_attention")
    with pytest.raises(ValueError, match="no steps"):
        layer.step(random(2, 1, 16), layer.start(2, 7), jnp.zeros((), jnp.int32))


@functools.lru_cache
def decoder_layer(rate=0.0):
    layer = Layer(**SIZES, rngs=nnx.Rngs(3), scheme="insertion", cross=True, dropout_rate=rate)
    mask = np.tri(4, dtype=bool)[None]

    @jax.jit
    def run(layer, x, source, seen, key):
        relation = jnp.broadcast_to(jnp.sign(jnp.arange(4)[:, None] - jnp.arange(4)), (6, 4, 4))
        return layer(x, mask, layer.context(source, seen), relation=relation, key=key)

    return lambda x, source, seen, key=None: np.asarray(run(layer, x, source, seen, key))


def test_an_empty_source_adds_nothing_of_its_padding():
    x, source = random(6, 4, 16), np.array(random(2, 5, 16))
    seen = np.arange(5)[None] < np.array([[5], [0]])
    one = decoder_layer()(x, source, seen)
    source[1] += 100
    np.testing.assert_array_equal(one, decoder_layer()(x, source, seen))


def test_rows_of_queries_share_a_source():
    x, source = random(6, 4, 16), random(2, 5, 16, seed=1)
    seen = np.arange(5)[None] < np.array([[5], [2]])
    repeated = decoder_layer()(x, np.repeat(source, 3, axis=0), np.repeat(seen, 3, axis=0))
    np.testing.assert_allclose(decoder_layer()(x, source, seen), repeated, atol=1e-6)


def test_later_positions_change_nothing():
    x, source, seen = np.array(random(6, 4, 16)), random(2, 5, 16), np.ones((2, 5), bool)
    before = decoder_layer()(x, source, seen)
    x[:, 2, :8] += 5  # not all features alike: a norm would take that away
    after = decoder_layer()(x, source, seen)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before[:, 3] - after[:, 3]).max() > 1e-3


def test_dropout_needs_a_key():
    x, source, seen = random(6, 4, 16), random(2, 5, 16), np.ones((2, 5), bool)
    run = decoder_layer(rate=0.5)
    np.testing.assert_array_equal(run(x, source, seen), decoder_layer()(x, source, seen))
    a, b = (run(x, source, seen, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(a - b).max() > 0.1


def test_bfloat16_stays_and_is_near():
    x, mask = random(2, 7, 16), np.ones((2, 7), bool)
    found = encoder("xl")(x.astype(jnp.bfloat16), mask)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), encoder("xl")(x, mask), atol=0.1)


def test_places_enter_where_the_scheme_has_them():
    x = random(1, 3, 16)
    np.testing.assert_array_equal(with_places(x, "xl"), x)
    np.testing.assert_allclose(
        with_places(x, "sinusoid") - x, sinusoids(jnp.arange(3), 16)[None], atol=1e-6
    )


def test_mistakes_name_their_field():
    with pytest.raises(UserError, match=r"model\.heads=3"):
        Attention(16, 3, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"model\.norm='middle'"):
        Layer(**SIZES, rngs=nnx.Rngs(0), norm="middle")
