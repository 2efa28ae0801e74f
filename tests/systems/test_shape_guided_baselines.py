"""Prompt-to-Prompt: how tokens correspond, and that no map need be stored.

The expected correspondences follow from the rules of Hertz et al.'s published code
(google/prompt-to-prompt): words in the same place, a new word's tokens sharing the old one's map;
or the alignment of both prompts in which a match counts 1, a mismatch −1 and a gap 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.data.scenes import VOCABULARY
from vljax.data.text.tokenizers import train_tokenizer
from vljax.diffusion.editing import guided
from vljax.diffusion.process import Process
from vljax.diffusion.samplers import ddim
from vljax.diffusion.schedules import parse_timesteps, respace, scaled_linear_schedule
from vljax.errors import UserError
from vljax.models.control import Place, plain
from vljax.models.stable_diffusion import with_and_without
from vljax.systems.shape_guided.batch import tokenize_side
from vljax.systems.shape_guided.prompt_to_prompt import (
    TokenMap,
    prompt_to_prompt,
    refinement,
    replacement,
    replacing,
    reweighted,
    token_map,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_SINGLE = ("a", "photo", "of", "house", "in", "winter", "cat", "dog", "red", "the")
WORDS = {word: [token] for token, word in enumerate(_SINGLE, 10)}
WORDS |= {"labradoodle": [40, 41, 42], "squirrel": [43, 44]}
LENGTH, END = 12, 99


def identity(tokens):
    """Every token keeps its place and takes the source's map."""
    ones = np.ones(tokens, np.float32)
    return TokenMap(np.diag(ones), 0 * ones, ones)


def tokenize(texts, length):
    rows = np.full((len(texts), length), END)
    for row, text in zip(rows, texts, strict=True):
        ids = [98] + [token for word in text.split() for token in WORDS[word]]
        row[: len(ids)] = np.minimum(ids, 97)
    return rows


def sources(mapping):
    """Of each edit token, the source tokens that give to it, with their shares."""
    columns = np.asarray(mapping.source).T
    return [{int(i): round(float(c[i]), 4) for i in np.flatnonzero(c)} for c in columns]


def test_replacing_a_word_by_one_of_as_many_tokens():
    mapping = replacement(tokenize, "a photo of a cat", "a photo of a dog", LENGTH)
    assert sources(mapping) == [{i: 1.0} for i in range(LENGTH)]
    assert not mapping.own.any()


def test_replacing_a_word_by_one_of_more_tokens():
    mapping = replacement(tokenize, "the cat in winter", "the labradoodle in winter", LENGTH)
    third = round(1 / 3, 4)
    # Start, the; three tokens share "cat"; what follows keeps its order.
    expected = [{0: 1.0}, {1: 1.0}, *[{2: third}] * 3, {3: 1.0}, {4: 1.0}, {5: 1.0}]
    assert sources(mapping)[:8] == expected


def test_replacing_a_word_by_one_of_fewer_tokens():
    mapping = replacement(tokenize, "the labradoodle in winter", "the squirrel in winter", LENGTH)
    shared = {2: 0.5, 3: 0.5, 4: 0.5}
    assert sources(mapping)[:6] == [{0: 1.0}, {1: 1.0}, shared, shared, {5: 1.0}, {6: 1.0}]


def test_replacement_needs_as_many_words():
    with pytest.raises(UserError, match="has 2 and 'a red cat' 3"):
        replacement(tokenize, "a cat", "a red cat", LENGTH)


def test_refinement_aligns_what_both_prompts_have():
    mapping = refinement(tokenize, "a photo of a house", "a photo of a red house in winter", LENGTH)
    expected = [{i: 1.0} for i in range(5)]
    # red is new, house was fifth; in, winter are new; then the end, and padding place by place.
    expected += [{}, {5: 1.0}, {}, {}, {6: 1.0}, {10: 1.0}, {11: 1.0}]
    assert sources(mapping) == expected
    assert np.flatnonzero(mapping.own).tolist() == [5, 7, 8]
    assert set(mapping.own.tolist()) == {0.0, 1.0}


def test_learnt_words_end_no_prompt():
    """Though their tokens have larger indices than the end's."""
    toys = train_tokenizer(VOCABULARY, 702).with_word("<toy>", 702, 2)
    mapping = token_map(toys, "red star", "red <toy> star", LENGTH, {"star": 3.0})
    assert sources(mapping)[:6] == [{0: 1.0}, {1: 1.0}, {}, {}, {2: 1.0}, {3: 1.0}]
    assert mapping.scale.tolist() == [*[1] * 4, 3, *[1] * 7]
    with pytest.raises(UserError, match="has 7 tokens, but a side of the shape takes 5"):
        tokenize_side(toys, ["<toy> red red red red red"], LENGTH, "edit")


def test_prompts_of_as_many_words_correspond_word_for_word():
    for source, edit, make in (
        ("a cat", "a labradoodle", replacement),
        ("a cat", "a red cat", refinement),
    ):
        expected = make(tokenize, source, edit, LENGTH)
        for one, other in zip(token_map(tokenize, source, edit, LENGTH), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    heavy = token_map(tokenize, "a cat", "a red cat", LENGTH, {"red": 3.0})
    assert heavy.scale.tolist() == [1, 1, 3, *[1] * 9]


def test_a_word_that_only_the_source_has_is_passed_over():
    mapping = refinement(tokenize, "a red cat", "a cat", LENGTH)
    assert sources(mapping)[:4] == [{0: 1.0}, {1: 1.0}, {3: 1.0}, {4: 1.0}]


def test_reweighting_scales_all_tokens_of_a_word():
    mapping = reweighted(
        identity(LENGTH), tokenize, "the labradoodle in winter", {"labradoodle": 3}
    )
    assert mapping.scale.tolist() == [1, 1, 3, 3, 3, *[1] * 7]
    with pytest.raises(UserError, match="'cat' is no word"):
        reweighted(identity(LENGTH), tokenize, "the dog", {"cat": 2.0})


def arrays(*shapes):
    return (jnp.asarray(a) for a in map(np.random.default_rng(0).standard_normal, shapes))


@pytest.mark.parametrize("active", [True, False])
def test_the_control_mixes_maps_as_defined(active):
    """Against the maps themselves, made and mixed as the paper says."""
    mapping = reweighted(
        refinement(tokenize, "a cat", "a red cat in winter", LENGTH),
        tokenize,
        "a red cat in winter",
        {"cat": 2.0},
    )
    query, key, value = arrays((8, 16, 2, 4), (8, LENGTH, 2, 4), (8, LENGTH, 2, 4))
    place = Place("x", "cross", 4, 4)
    attended, _ = replacing(mapping, active, active)(query, key, value, place)
    maps = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2, axis=-1)
    if active:
        ours = maps[0:2] @ mapping.source + maps[2:4] * mapping.own
        maps = maps.at[2:4].set(ours * mapping.scale)
    expected = jnp.einsum("bhqk,bkhe->bqhe", maps, value)
    np.testing.assert_allclose(attended, expected, atol=1e-5)


@pytest.mark.parametrize(("pixels", "replaced"), [(16, True), (32, False)])
def test_self_attention_is_replaced_where_it_is_coarse(pixels, replaced):
    query, key, value = arrays(*[(4, pixels**2, 1, 4)] * 3)
    place = Place("x", "self", pixels, pixels)
    attended, _ = replacing(identity(LENGTH), True, True)(query, key, value, place)
    untouched, _ = plain(query, key, value, place)
    np.testing.assert_allclose(attended[0], untouched[0], atol=1e-6)
    np.testing.assert_allclose(attended[2:], untouched[2:], atol=1e-6)
    borrowed, _ = plain(query[:1], key[:1], value[1:2], place)
    np.testing.assert_allclose(attended[1], borrowed[0] if replaced else untouched[1], atol=1e-6)


def network(x, t, context, /, *, control=plain):
    """One self- and one cross-attention, enough for maps to matter."""
    b, h, w, c = x.shape
    flat = x.reshape(b, h * w, 1, c)
    own, _ = control(flat, flat, flat, Place("own", "self", h, w))
    keys = context[:, :, None]
    other, _ = control(own, 2 * keys, keys, Place("other", "cross", h, w))
    return 0.3 * (own + other).reshape(x.shape) + 0.0001 * t[:, None, None, None]


def test_the_whole_edit():
    """Same prompts change nothing, no replaced steps leave plain generation, kept pixels stay."""
    process = Process(respace(scaled_linear_schedule(), parse_timesteps(1000, "leading5")))
    inverted, source, edit, empty = arrays((6, 2, 4, 4, 4), (2, 12, 4), (2, 12, 4), (1, 12, 4))
    nothing = jnp.zeros((1, 4, 4))
    own = TokenMap(*(jnp.asarray(a) for a in identity(LENGTH)))

    @jax.jit
    def run(edit, keep, cross_share, self_share):
        return prompt_to_prompt(
            process,
            network,
            inverted,
            source,
            edit,
            empty,
            own,
            keep,
            guidance_scale=2.0,
            cross_share=cross_share,
            self_share=self_share,
        )

    @jax.jit
    def generated(context):
        denoiser = guided(with_and_without(network, context, empty), 2.0)
        return ddim(process, denoiser, inverted[-1], clip=False)

    np.testing.assert_allclose(run(source, nothing, 0.8, 0.4), generated(source), atol=1e-4)
    np.testing.assert_allclose(run(edit, nothing, 0.0, 0.0), generated(edit), atol=1e-4)
    controlled = run(edit, nothing, 1.0, 1.0)
    assert np.abs(controlled - generated(edit)).mean() > 0.1
    keep = nothing.at[:, :, 2:].set(1.0)
    kept = run(edit, keep, 0.8, 0.4)
    np.testing.assert_array_equal(kept[:, :, 2:], inverted[0][:, :, 2:])
    assert (kept[:, :, :2] != inverted[0][:, :, :2]).all()
