"""In which order a text was written: distances between orders, and what comes first.

Park (2023), section 3.6. An *order* `z` is a permutation: `z[t]` is the place in the text,
counted from 0, of the token that step `t` writes. Rows of a batch are padded; of a row only the
first `lengths` entries count, which are a permutation of 0 … length − 1.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy  # its parts load when they are first used
from jaxtyping import Bool, Float, Int, Shaped

from vljax.data.scenes import PARTS_OF_SPEECH
from vljax.errors import UserError
from vljax.metrics.statistics import standard_error

Orders = Int[np.ndarray, "*b n"]
Tagger = Callable[[Sequence[str]], Sequence[str]]
"""From the tokens of a text to the part of speech of each."""

# ------------------------------------------------------------------------------- distances


def _lengths(orders: Orders, lengths: Int[np.ndarray, "*b"] | None) -> Int[np.ndarray, "*b"]:
    if lengths is None:
        return np.full(orders.shape[:-1], orders.shape[-1])
    return np.broadcast_to(np.asarray(lengths), orders.shape[:-1])


def _paired(a: Orders, b: Orders) -> tuple[Orders, Orders]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape[-1:] != b.shape[-1:] or not a.ndim:
        raise ValueError(f"orders of shapes {a.shape} and {b.shape} do not pair")
    a, b = np.broadcast_arrays(a, b)
    return a, b


def normalised_levenshtein(
    w: Orders, z: Orders, lengths: Int[np.ndarray, "*b"] | None = None
) -> Float[np.ndarray, "*b"]:
    """Fewest insertions, deletions and substitutions from one order to another, over its length.

    Equation 3.5; 3.6 is the recursion for unlike first entries, like ones costing nothing.

    Args:
        w: Orders.
        z: Other orders of the same texts; leading axes broadcast.
        lengths: Length of each row; by default all of it.

    Returns:
        Numbers from 0 (equal) to 1; 0 for empty rows.
    """
    w, z = _paired(w, z)
    count = _lengths(w, lengths)
    n = w.shape[-1]
    places = np.arange(n + 1)
    row = np.broadcast_to(places, (*w.shape[:-1], n + 1))
    # The distance between the first `length` entries lies at that row and column of the table.
    distance = np.zeros(w.shape[:-1], np.int64)
    for i in range(n):
        substituted = row[..., :-1] + (w[..., i : i + 1] != z)
        best = np.minimum(substituted, row[..., 1:] + 1)
        best = np.concatenate([np.full((*w.shape[:-1], 1), i + 1), best], -1)
        # Insertions chain along a row: each step right costs one.
        row = np.minimum.accumulate(best - places, -1) + places
        distance = np.where(count == i + 1, row[..., i + 1], distance)
    return distance / np.maximum(count, 1)


def order_rank_correlation(
    w: Orders, z: Orders, lengths: Int[np.ndarray, "*b"] | None = None
) -> Float[np.ndarray, "*b"]:
    """Spearman's rank correlation of two orders: 1 − 6 Σ (wₜ − zₜ)² / (n³ − n).

    Equation 3.7, whose square got lost in print. It compares the places written at equal steps;
    to compare the steps at which equal places are written, give `generation_steps` of each. The
    two agree where one order is left-to-right.

    Args:
        w: Orders.
        z: Other orders of the same texts; leading axes broadcast.
        lengths: Length of each row; by default all of it.

    Returns:
        Numbers from −1 (reversed) to 1 (equal); 1 for rows of one entry or none, which have only
        one order.
    """
    w, z = _paired(w, z)
    count = _lengths(w, lengths).astype(np.float64)
    counts = np.arange(w.shape[-1]) < count[..., None]
    squares = np.where(counts, (w.astype(np.float64) - z) ** 2, 0).sum(-1)
    return 1 - 6 * squares / np.maximum(count**3 - count, 1)


def generation_steps(orders: Orders, lengths: Int[np.ndarray, "*b"] | None = None) -> Orders:
    """The step at which each place is written: the inverse permutation.

    Args:
        orders: Orders.
        lengths: Length of each row; what lies beyond stays as it is.
    """
    orders = np.asarray(orders)
    inside = np.arange(orders.shape[-1]) < _lengths(orders, lengths)[..., None]
    # Padding sorts behind all places, in its own order.
    steps = np.argsort(np.where(inside, orders, orders.shape[-1]), -1, kind="stable")
    return np.where(inside, steps, orders)


# -------------------------------------------------------------------------- parts of speech

_LEXICON = {word: part for part, words in PARTS_OF_SPEECH.items() for word in words}
_LEXICON |= dict.fromkeys(",.?", "punctuation")

CONTENT = ("noun", "adjective", "numeral", "verb", "adverb")
FUNCTION = ("determiner", "adposition", "conjunction", "pronoun", "particle", "punctuation")


def scene_tagger(tokens: Sequence[str]) -> list[str]:
    """Parts of speech of the words of scenes; `"unknown"` for others."""
    return [_LEXICON.get(token.strip().lower(), "unknown") for token in tokens]


_UNIVERSAL = {
    "NOUN": "noun",
    "PROPN": "noun",
    "VERB": "verb",
    "AUX": "verb",
    "ADJ": "adjective",
    "ADV": "adverb",
    "PRON": "pronoun",
    "DET": "determiner",
    "ADP": "adposition",
    "CCONJ": "conjunction",
    "SCONJ": "conjunction",
    "NUM": "numeral",
    "PART": "particle",
    "PUNCT": "punctuation",
    "SYM": "punctuation",
}
# The Penn Treebank's tags by their first two letters.
_PENN = {
    "NN": "noun",
    "VB": "verb",
    "MD": "verb",
    "JJ": "adjective",
    "RB": "adverb",
    "WR": "adverb",
    "PR": "pronoun",
    "WP": "pronoun",
    "EX": "pronoun",
    "DT": "determiner",
    "PD": "determiner",
    "WD": "determiner",
    "IN": "adposition",
    "TO": "particle",
    "RP": "particle",
    "PO": "particle",
    "CC": "conjunction",
    "CD": "numeral",
}


def open_tagger(name: str) -> Tagger:
    """A part-of-speech tagger.

    Args:
        name: `"scenes"`, the built-in lexicon; `"spacy"`, its model `en_core_web_sm`; or `"nltk"`,
            its averaged perceptron. The last two give the parts of speech of English at large.

    Raises:
        UserError: The name is unknown, or the tagger or its model is not installed.
    """
    if name == "scenes":
        return scene_tagger
    if name == "spacy":
        return _spacy_tagger()
    if name == "nltk":
        return _nltk_tagger()
    raise UserError(f"tagger={name!r}: choose 'scenes', 'spacy' or 'nltk'")


def _spacy_tagger() -> Tagger:
    try:
        spacy = importlib.import_module("spacy")
        model = spacy.load("en_core_web_sm", exclude=["ner", "parser"])
    except (ImportError, OSError) as error:
        raise UserError(
            "tagger='spacy' is not installed: pip install spacy, then python -m spacy download "
            "en_core_web_sm"
        ) from error

    def tag(tokens: Sequence[str]) -> list[str]:
        told = spacy.tokens.Doc(model.vocab, words=[token.strip() or "_" for token in tokens])
        return [_UNIVERSAL.get(token.pos_, "unknown") for token in model(told)]

    return tag


def _nltk_tagger() -> Tagger:
    try:
        nltk = importlib.import_module("nltk")
        nltk.pos_tag(["a"])
    except (ImportError, LookupError) as error:
        raise UserError(
            "tagger='nltk' is not installed: pip install nltk, then python -m nltk.downloader "
            "averaged_perceptron_tagger_eng"
        ) from error

    def tag(tokens: Sequence[str]) -> list[str]:
        tags = nltk.pos_tag([token.strip() or "_" for token in tokens])
        return [
            _PENN.get(tag[:2], "unknown" if tag[:1].isalpha() else "punctuation") for _, tag in tags
        ]

    return tag


@dataclasses.dataclass(frozen=True, slots=True)
class PartOfSpeech:
    """When the words of one part of speech are written.

    Attributes:
        name: such as `"noun"`.
        mean: mean normalised generation index: the step, from 0, over the text's length.
        standard_error: of that mean; not a number for a single word.
        count: how many words.
    """

    name: str
    mean: float
    standard_error: float
    count: int


def part_of_speech_statistics(
    tokens: Sequence[Sequence[str]],
    orders: Sequence[Sequence[int]] | Orders,
    tagger: Tagger = scene_tagger,
) -> list[PartOfSpeech]:
    """When each part of speech is written, the earliest first (figure 3.7).

    Args:
        tokens: Texts as their tokens, without start and end.
        orders: The order of each; what lies beyond its text's length is ignored.
        tagger: Tells parts of speech.
    """
    found: dict[str, list[float]] = {}
    for tags, index in _tagged(tokens, orders, tagger):
        for tag, when in zip(tags, index, strict=True):
            found.setdefault(tag, []).append(when)
    told = []
    for name, values in found.items():
        mean, error = float(np.mean(values)), standard_error(values)
        told.append(PartOfSpeech(name, mean, error, len(values)))
    return sorted(told, key=lambda part: (part.mean, part.name))


@dataclasses.dataclass(frozen=True, slots=True)
class Precedence:
    """Whether some parts of speech are written before others.

    Attributes:
        difference: mean over texts of the mean index of the later parts less that of the earlier.
        p_value: one-sided, of Wilcoxon's signed-rank test over texts, that it is not above 0.
        count: texts that have both.
    """

    difference: float
    p_value: float
    count: int


def precedence(
    tokens: Sequence[Sequence[str]],
    orders: Sequence[Sequence[int]] | Orders,
    tagger: Tagger = scene_tagger,
    *,
    earlier: Sequence[str] = CONTENT,
    later: Sequence[str] = FUNCTION,
) -> Precedence:
    """Test whether some parts of speech are written before others.

    Texts, not words, are the samples: the words of one text depend on each other.

    Args:
        tokens: Texts as their tokens.
        orders: The order of each.
        tagger: Tells parts of speech.
        earlier: Parts of speech thought to come first.
        later: Those thought to come after.
    """
    differences = []
    for tags, index in _tagged(tokens, orders, tagger):
        first = [when for tag, when in zip(tags, index, strict=True) if tag in earlier]
        last = [when for tag, when in zip(tags, index, strict=True) if tag in later]
        if first and last:
            differences.append(np.mean(last) - np.mean(first))
    if not np.any(differences):
        return Precedence(0.0, 1.0, len(differences))
    p_value = scipy.stats.wilcoxon(differences, alternative="greater").pvalue
    return Precedence(float(np.mean(differences)), float(p_value), len(differences))


def _tagged(
    tokens: Sequence[Sequence[str]], orders: Sequence[Sequence[int]] | Orders, tagger: Tagger
) -> list[tuple[Sequence[str], Float[np.ndarray, " n"]]]:
    """For each text, parts of speech and normalised generation indices of its tokens."""
    if len(tokens) != len(orders):
        raise ValueError(f"{len(tokens)} texts, but {len(orders)} orders")
    told = []
    for text, order in zip(tokens, orders, strict=True):
        n = len(text)
        if not n:
            continue
        own = np.asarray(order)[:n]
        if sorted(own.tolist()) != list(range(n)):
            raise ValueError(f"{own.tolist()} is no order of the {n} tokens {' '.join(text)!r}")
        tags = tagger(text)
        told.append((tags, generation_steps(own) / n))
    return told


# ----------------------------------------------------------------------------- perturbation


def removal_distances(
    infer_order: Callable[[Any, Bool[np.ndarray, "k r"]], Any],
    features: Shaped[np.ndarray, "r ..."],
    mask: Bool[np.ndarray, " r"] | None = None,
    length: int | None = None,
) -> Float[np.ndarray, " r"]:
    """How much the order of a fixed text changes when each feature of its source is removed.

    Section 3.6.3: one region at a time is taken away, an order of the same text inferred anew,
    and its normalised Levenshtein distance to the first order taken.

    Args:
        infer_order: `infer_order(features, mask) -> orders`, from [k, r, …] and [k, r] to [k, n],
            without chance; called once, with the whole source first. Removed features are zeros
            and not in the mask.
        features: Regions [r, d], or token ids [r], of one source.
        mask: Which of them there are; by default all.
        length: Length of the text; by default n.

    Returns:
        Distance for each feature; not a number where the mask has none.
    """
    features = np.asarray(features)
    count = len(features)
    there = np.ones(count, bool) if mask is None else np.asarray(mask, bool)
    kept = np.concatenate([there[None], there & ~np.eye(count, dtype=bool)])
    shape = (count + 1, count, *(1,) * (features.ndim - 1))
    changed = np.where(kept.reshape(shape), features, np.zeros_like(features))
    orders = np.asarray(infer_order(changed, kept))
    lengths = None if length is None else np.full(count, length)
    distances = normalised_levenshtein(orders[:1], orders[1:], lengths)
    return np.where(there, distances, np.nan)


def by_length(
    values: Float[np.ndarray, " b"], lengths: Int[np.ndarray, " b"]
) -> Mapping[int, tuple[float, int]]:
    """Mean and number of values for each length of text (figure 3.6)."""
    values, lengths = np.asarray(values), np.asarray(lengths)
    return {
        int(n): (float(values[lengths == n].mean()), int((lengths == n).sum()))
        for n in np.unique(lengths)
    }
