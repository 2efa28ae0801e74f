"""Distances between orders, parts of speech, and what removing features does."""

import itertools

import numpy as np
import pytest
import rapidfuzz.distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vljax.data.scenes import VOCABULARY, Scenes, words
from vljax.errors import UserError
from vljax.metrics import order
from vljax.metrics.order import (
    CONTENT,
    FUNCTION,
    generation_steps,
    normalised_levenshtein,
    open_tagger,
    order_rank_correlation,
    part_of_speech_statistics,
    precedence,
    removal_distances,
    scene_tagger,
)


def orders(seed, count, n):
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(n) for _ in range(count)])


# ------------------------------------------------------------------------------- distances


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(0, 6))
def test_levenshtein_agrees_with_rapidfuzz(seed, n, kept):
    w, z = orders(seed, 2, n)
    z[:kept] = w[:kept]  # Near orders too; repeats are no order, but a fair sequence to compare.
    expected = rapidfuzz.distance.Levenshtein.distance(w.tolist(), z.tolist()) / n
    assert normalised_levenshtein(w, z) == pytest.approx(expected)


def test_levenshtein_of_padded_rows_is_that_of_their_parts():
    w, z = orders(0, 20, 12), orders(1, 20, 12)
    lengths = np.arange(20) % 13
    for i, n in enumerate(lengths):
        w[i, :n], z[i, :n] = orders(i, 2, n) if n else ((), ())
    found = normalised_levenshtein(w, z, lengths)
    for i, n in enumerate(lengths):
        expected = rapidfuzz.distance.Levenshtein.normalized_distance(
            w[i, :n].tolist(), z[i, :n].tolist()
        )
        assert found[i] == pytest.approx(expected)


def test_levenshtein_broadcasts_and_is_a_metric():
    every = np.array(list(itertools.permutations(range(4))))
    table = normalised_levenshtein(every[:, None], every[None])
    assert table.shape == (24, 24)
    np.testing.assert_array_equal(table, table.T)
    np.testing.assert_array_equal(table == 0, np.eye(24, dtype=bool))
    assert (table[:, None] <= table[:, :, None] + table[None] + 1e-12).all()
    assert table.max() == 1


def test_rotation_costs_a_deletion_and_an_insertion():
    ordered = np.arange(10)
    assert normalised_levenshtein(ordered, np.roll(ordered, 1)) == pytest.approx(0.2)
    assert order_rank_correlation(ordered, np.roll(ordered, 1)) == pytest.approx(1 - 540 / 990)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 40))
def test_rank_correlation_is_spearman_s(seed, n):
    w, z = orders(seed, 2, n)
    expected = stats.spearmanr(w, z).statistic
    assert order_rank_correlation(w, z) == pytest.approx(expected, abs=1e-9)
    assert order_rank_correlation(w, w) == 1
    assert order_rank_correlation(np.arange(n), np.arange(n)[::-1]) == pytest.approx(-1)


def test_rank_correlation_of_padded_rows():
    w, z = orders(0, 30, 11), orders(1, 30, 11)
    lengths = np.arange(30) % 12
    for i, n in enumerate(lengths):
        if n:
            w[i, :n], z[i, :n] = orders(i, 2, n)
    found = order_rank_correlation(w, z, lengths)
    for i, n in enumerate(lengths):
        expected = stats.spearmanr(w[i, :n], z[i, :n]).statistic if n > 1 else 1
        assert found[i] == pytest.approx(expected, abs=1e-9)


def test_rank_correlation_with_left_to_right_is_the_same_of_steps():
    w = orders(3, 50, 9)
    of_places = order_rank_correlation(w, np.arange(9))
    np.testing.assert_allclose(order_rank_correlation(generation_steps(w), np.arange(9)), of_places)


def test_one_token_has_one_order():
    one = np.zeros((3, 1), int)
    np.testing.assert_array_equal(normalised_levenshtein(one, one), 0)
    np.testing.assert_array_equal(order_rank_correlation(one, one), 1)
    nothing = np.zeros((2, 0), int)
    np.testing.assert_array_equal(normalised_levenshtein(nothing, nothing), 0)
    np.testing.assert_array_equal(order_rank_correlation(nothing, nothing), 1)


def test_steps_are_the_inverse_and_leave_padding():
    w = orders(4, 8, 7)
    np.testing.assert_array_equal(np.take_along_axis(generation_steps(w), w, -1), [range(7)] * 8)
    padded = np.array([[2, 0, 1, 9, 9], [0, 1, 5, 5, 5]])
    expected = [[1, 2, 0, 9, 9], [0, 1, 5, 5, 5]]
    np.testing.assert_array_equal(generation_steps(padded, np.array([3, 2])), expected)


def test_orders_of_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="do not pair"):
        normalised_levenshtein(np.arange(3), np.arange(4))


# ------------------------------------------------------------------------- parts of speech


def test_the_lexicon_knows_every_word_of_scenes():
    assert "unknown" not in scene_tagger([*VOCABULARY, ","])
    assert scene_tagger(["red", "Star", " behind", "a", "zebra"]) == [
        "adjective",
        "noun",
        "adposition",
        "determiner",
        "unknown",
    ]


def captions(count):
    return [words(Scenes(fields=("caption",))[i]["caption"]) for i in range(count)]


def test_statistics_by_hand():
    tokens = [["a", "red", "star"], ["a", "star", "on", "a", "circle"]]
    written = [[2, 1, 0], [1, 4, 2, 0, 3]]
    told = {part.name: part for part in part_of_speech_statistics(tokens, written)}
    assert told["noun"].mean == pytest.approx(np.mean([0, 0, 1 / 5]))
    assert told["adjective"].mean == pytest.approx(1 / 3)
    assert told["determiner"].mean == pytest.approx(np.mean([2 / 3, 3 / 5, 4 / 5]))
    assert told["adposition"].mean == pytest.approx(2 / 5)
    assert told["noun"].standard_error == pytest.approx(stats.sem([0, 0, 1 / 5]))
    assert np.isnan(told["adjective"].standard_error)
    names = [part.name for part in part_of_speech_statistics(tokens, written)]
    assert names == ["noun", "adjective", "adposition", "determiner"]


def test_statistics_ignore_padding_and_empty_texts():
    tokens = [["a", "star"], []]
    padded = np.array([[1, 0, 7], [7, 7, 7]])
    assert [part.mean for part in part_of_speech_statistics(tokens, padded)] == [0, 0.5]


def test_any_tagger_serves():
    told = part_of_speech_statistics([["x", "y"]], [[1, 0]], lambda tokens: ["last", "first"])
    assert [part.name for part in told] == ["first", "last"]


def test_what_is_no_order_is_refused():
    with pytest.raises(ValueError, match="is no order of the 2 tokens 'a star'"):
        part_of_speech_statistics([["a", "star"]], [[0, 0]])
    with pytest.raises(ValueError, match="2 texts, but 1 orders"):
        part_of_speech_statistics([["a"], ["a"]], [[0]])


def test_precedence_finds_content_first_and_nothing_by_chance():
    tokens = captions(120)
    content_first = []
    for text in tokens:
        late = [tag in FUNCTION for tag in scene_tagger(text)]
        content_first.append(np.argsort(late, kind="stable"))
    found = precedence(tokens, content_first)
    assert found.p_value < 1e-10
    assert found.difference > 0.3
    assert found.count == len(tokens)
    swapped = precedence(tokens, content_first, earlier=FUNCTION, later=CONTENT)
    assert swapped.difference == pytest.approx(-found.difference)
    assert swapped.p_value > 0.99
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(40):
        by_chance = [generator.permutation(len(text)) for text in tokens]
        p_values.append(precedence(tokens, by_chance).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_precedence_of_too_little():
    assert precedence([["star"]], [[0]]) == order.Precedence(0.0, 1.0, 0)


def test_a_tagger_that_is_not_there_is_told(monkeypatch):
    assert open_tagger("scenes") is scene_tagger
    with pytest.raises(UserError, match="choose 'scenes'"):
        open_tagger("treetagger")

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(order.importlib, "import_module", absent)
    for name in ("spacy", "nltk"):
        with pytest.raises(UserError, match=f"tagger='{name}' is not installed: pip install"):
            open_tagger(name)


@pytest.mark.parametrize("name", ["spacy", "nltk"])
def test_taggers_of_english(name):
    try:
        tagger = open_tagger(name)
    except UserError as error:
        pytest.skip(str(error))
    text = ["the", "red", "dog", "runs", "quickly", "on", "two", "legs", "."]
    expected = ["determiner", "adjective", "noun", "verb", "adverb", "adposition", "numeral"]
    assert list(tagger(text))[:7] == expected
    assert list(tagger(text))[-1] == "punctuation"


def test_the_nltk_tagger_reads_penn_s_tags(monkeypatch):
    """With a stand-in for the download that nltk's own tagger needs."""
    nltk = pytest.importorskip("nltk")
    penn = {"the": "DT", "dog": "NN", "runs": "VBZ", "off": "RP", ".": ".", "?!": ":", "qq": "FW"}
    monkeypatch.setattr(nltk, "pos_tag", lambda tokens: [(t, penn.get(t, "NN")) for t in tokens])
    assert open_tagger("nltk")(list(penn)) == [
        "determiner",
        "noun",
        "verb",
        "particle",
        "punctuation",
        "punctuation",
        "unknown",
    ]


# ---------------------------------------------------------------------------- perturbation


def test_removal_finds_the_feature_that_the_order_depends_on():
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) + 4
    calls = []

    def infer_order(changed, kept):
        calls.append(changed.shape)
        np.testing.assert_array_equal((changed != 0).any(-1), kept)
        turned = changed[:, 2, 0] == 0
        return np.where(turned[:, None], np.arange(6)[::-1], np.arange(6))

    distances = removal_distances(infer_order, features)
    reversal = normalised_levenshtein(np.arange(6), np.arange(6)[::-1])
    np.testing.assert_allclose(distances, [0, 0, reversal, 0, 0])
    assert calls == [(6, 5, 3)]


def test_removal_of_masked_tokens_and_padded_orders():
    ids = np.array([7, 8, 9, 0])
    mask = np.array([True, True, True, False])

    def infer_order(changed, kept):
        # Present tokens first, then what is padding beyond the text's three tokens.
        order = np.argsort(~kept[:, :3], axis=-1, kind="stable")
        return np.concatenate([order, np.full((len(order), 2), 5)], -1)

    distances = removal_distances(infer_order, ids, mask, length=3)
    np.testing.assert_allclose(distances, [2 / 3, 2 / 3, 0, np.nan])


def test_means_by_length():
    told = order.by_length(np.array([0.2, 0.4, 0.9]), np.array([5, 5, 7]))
    assert told == {5: (pytest.approx(0.3), 2), 7: (pytest.approx(0.9), 1)}
