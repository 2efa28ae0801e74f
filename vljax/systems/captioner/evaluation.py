"""Captioners judged: the papers' scores, and on scenes what is true and where was looked.

Where the world behind a picture is known (scenes), the kinds of objects that a caption names
("red circle") are looked up in it, and the attention with which an object's words are written is
laid on its mask.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.scenes import Scene
from vljax.data.scenes.truth import is_true, named_pairs
from vljax.data.scenes.world import masks
from vljax.data.source import readable, stacked
from vljax.data.text.captions import caption_words
from vljax.data.text.vocabulary import Vocabulary
from vljax.metrics import pointing
from vljax.metrics.report import Report, Row
from vljax.metrics.statistics import share_of, standard_error
from vljax.metrics.text import MissingToolError, cider_scores, text_scores
from vljax.models.captioner import ATTENTIONS
from vljax.ops.fusion import l2_normalise
from vljax.request import option
from vljax.systems.captioner.method import (
    Arrays,
    Written,
    attention_strip,
    open_examples,
    read_example,
    words_of,
    write_all,
)
from vljax.systems.captioner.model import Captioners, features_of
from vljax.systems.captioner.paper import coco
from vljax.systems.captioner.words import open_words


@dataclass(frozen=True)
class Judging:
    """How much to judge."""

    num_examples: int = option(500, low=2, help="held-out pictures to judge")
    batch_size: int = option(100, low=1, help="how many at a time")
    beams: int = option(3, low=1, high=64, help="width of the search, beside the likeliest words")
    copied: int = option(
        2000, low=0, help="training pictures, of whose captions the nearest one's is copied"
    )
    seed: int = option(0, seed=True, help="of drawing words")


# What tables call the metrics.
_NAMES = {
    **{f"coco_bleu{n}": f"BLEU-{n}" for n in (1, 2, 3)},
    "coco_bleu": "BLEU-4",
    "meteor": "METEOR",
    "coco_rougeL": "ROUGE-L",
    "cider": "CIDEr",
}
_WHO = {"soft": "soft attention", "none": "without attention"}


class Judged(NamedTuple):
    """The examples that are judged.

    Attributes:
        arrays: As the model takes them.
        references: People's captions of each, split into words as the model's are.
        scenes: The worlds behind them, or None.
    """

    arrays: list[Arrays]
    references: list[list[str]]
    scenes: list[Scene] | None


def judge(model: Captioners, config: ConfigDict, judging: Judging) -> Report:
    """Scores, truth and, of soft attention, where was looked.

    Raises:
        UserError: the data is not there.
    """
    words, benchmark = open_words(config), open_benchmark(config.data)
    judged = _open_judged(config, benchmark, judging.num_examples)
    notes: dict[str, Any] = {"pictures": len(judged.arrays), "data": benchmark.label}
    writes = [kind for kind in ATTENTIONS if getattr(model, kind) is not None]
    ways: list[tuple[str, str, dict[str, Any]]] = [(_WHO[kind], kind, {}) for kind in writes]
    if judging.beams > 1:
        wide = f", beam of {judging.beams}"
        ways += [(_WHO[kind] + wide, kind, {"beams": judging.beams}) for kind in writes]
    for kind in writes[:1]:
        for share in (0.5, 1.0):
            how = {"temperature": np.float32(1), "top_p": np.float32(share)}
            ways.append((f"{_WHO[kind]}, drawn, p = {share:g}", kind, how))
    fixed = {"batch_size": judging.batch_size, "seed": judging.seed}
    found = {
        name: write_all(model, config, judged.arrays, **fixed, attention=kind, **how)
        for name, kind, how in ways
    }
    texts = {
        name: [words.decode(tokens) for tokens in written.tokens] for name, written in found.items()
    }
    if judging.copied:
        texts["copied from the nearest training picture"] = _nearest(model, config, judged, judging)
    rows, each = [], {}
    for name, told in texts.items():
        values, each[name], missing = _scored(benchmark, judged, told)
        if name in found:
            values["log p"] = float(found[name].log_prob.mean())
        rows.append(Row("captions", name, values))
        notes |= {f"{metric} not computed": reason for metric, reason in missing.items()}
    if writes == list(ATTENTIONS):
        rows.append(_difference(each[_WHO["soft"]], each[_WHO["none"]]))
    figures = {}
    if "soft" in writes:
        soft = found[_WHO["soft"]]
        if judged.scenes is not None:
            rows += _looked_at(words, judged.arrays, judged.scenes, soft)
        figures = _strips(words, judged.arrays, soft)
    return Report((*rows, *coco()), notes, figures)


def _open_judged(config: ConfigDict, benchmark: Benchmark, count: int) -> Judged:
    """The first held-out examples, read."""
    source = open_examples(config, ("captions",), held_out=True)
    read = dict(readable(source, config.data.on_corrupt, count))
    scenes = benchmark.scenes(held_out=True)
    return Judged(
        [read_example(config, one) for one in read.values()],
        [[_split(text) for text in one["captions"]] for one in read.values()],
        None if scenes is None else [scenes.scene(i) for i in read],
    )


def _split(text: str) -> str:
    return " ".join(caption_words(text))


# Captions --------------------------------------------------------------------------------------


def _scored(
    benchmark: Benchmark, judged: Judged, texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, " n"]], dict[str, str]]:
    """A row of the table, the values of each picture by which rows differ, and what is missing."""
    scores, missing = text_scores(texts, judged.references, tuple(_NAMES))
    values: dict[str, Any] = {"data": benchmark.label}
    values |= {_NAMES[metric]: value for metric, value in scores.items()}
    each = {}
    try:
        each["CIDEr"] = cider_scores(texts, judged.references)
        values["standard error of CIDEr"] = standard_error(each["CIDEr"])
    except MissingToolError:
        pass  # it is told already
    values["distinct"] = 100 * len({*texts}) / len(texts)
    if judged.scenes is not None:
        each |= _truth(judged.scenes, texts)
        named = np.array([len(named_pairs(text.split())) for text in texts])
        share, error = share_of(each["right pairs"], named)
        values |= {"true pairs": 100 * share, "standard error of true pairs": 100 * error}
        values["pairs a caption"] = float(named.mean())
        values["true captions"] = float(each["true captions"].mean())
    return values, each, missing


def _truth(scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, Float[np.ndarray, " n"]]:
    """Of each picture: pairs of colour and shape that are there, their share, and all of it."""
    right, shares, true = [], [], []
    for text, scene in zip(texts, scenes, strict=True):
        there = {thing.name for thing in scene.objects}
        named = [f"{one.colour} {one.shape}" in there for one in named_pairs(text.split())]
        right.append(sum(named))
        shares.append(100 * sum(named) / len(named) if named else 0.0)
        true.append(100.0 * is_true(text.replace(" ,", ","), scene))
    return {
        "right pairs": np.array(right, float),
        "true pairs, mean over pictures": np.array(shares),
        "true captions": np.array(true),
    }


def _difference(
    soft: Mapping[str, Float[np.ndarray, " n"]], none: Mapping[str, Float[np.ndarray, " n"]]
) -> Row:
    """What attention adds, of the same pictures."""
    values: dict[str, Any] = {}
    for name in soft:
        if name != "right pairs":
            less = soft[name] - none[name]
            values |= {name: float(less.mean()), f"standard error of {name}": standard_error(less)}
    return Row("soft attention less without, by picture", "likeliest words", values)


@jax.jit
def _vectors(model: Captioners, batch: Mapping[str, Array]) -> Float[Array, "b c"]:
    """The mean of a picture's features, of norm 1."""
    return l2_normalise(features_of(model, batch).mean((1, 2)))


def _nearest(model: Captioners, config: ConfigDict, judged: Judged, judging: Judging) -> list[str]:
    """A caption of the training picture whose mean features are nearest, for each picture."""
    source, captions = open_examples(config, ("captions",)), list[str]()

    def known() -> Iterator[Arrays]:
        for _, example in readable(source, config.data.on_corrupt, judging.copied):
            captions.append(example["captions"][0])
            yield read_example(config, example)

    def vectors(arrays: Iterator[Arrays]) -> Float[np.ndarray, "n c"]:
        found, size = [], judging.batch_size
        # A batch at a time: features are megabytes each.
        while some := list(itertools.islice(arrays, size)):
            filled = some + some[-1:] * (size - len(some))
            found.append(np.asarray(_vectors(model, stacked(filled)), np.float32)[: len(some)])
        return np.concatenate(found)

    ours, theirs = vectors(iter(judged.arrays)), vectors(known())
    return [_split(captions[i]) for i in (ours @ theirs.T).argmax(1)]


# Where was looked ------------------------------------------------------------------------------


def _looked_at(
    words: Vocabulary, arrays: Sequence[Arrays], scenes: Sequence[Scene], found: Written
) -> list[Row]:
    """How much of the attention lies on an object while its colour and its noun are written.

    Against the object's area, which an even map would have; of pairs that are there.
    """
    rows = []
    for kind, offset in (("noun", 0), ("colour", -1)):
        found_on, others, areas = [], [], []
        for i, scene in enumerate(scenes):
            names = [thing.name for thing in scene.objects]
            shown = masks(scene, arrays[i]["image"].shape[0])
            for one in named_pairs(words_of(words, found.tokens[i])):
                if (name := f"{one.colour} {one.shape}") in names:
                    looked, meant = found.attention[i, one.place + offset], names.index(name)
                    mass = [pointing.mass_on(looked, mask) for mask in shown]
                    found_on.append(mass.pop(meant))
                    areas.append(float(shown[meant].mean()))
                    others += mass
        values: dict[str, Any] = {"n": len(areas)}
        if areas:
            on, area = np.array(found_on), np.array(areas)
            values |= {
                "mass on the object": 100 * float(on.mean()),
                "standard error of mass": 100 * standard_error(on),
                "its area": 100 * float(area.mean()),
                "mass / area": float(on.mean() / area.mean()),
            }
        if others:
            values["mass on each other object"] = 100 * float(np.mean(others))
        rows.append(Row("attention on an object", f"while its {kind} is written", values))
    return rows


def _strips(
    words: Vocabulary, arrays: Sequence[Arrays], found: Written, count: int = 6
) -> dict[str, np.ndarray]:
    """Show, Attend and Tell's figure 3 of the first pictures."""
    return {
        f"figure_3_attention_{i}": attention_strip(
            arrays[i]["image"],
            words_of(words, found.tokens[i]),
            found.attention[i],
            found.gate[i],
        )
        for i in range(min(count, len(arrays)))
        if "image" in arrays[i]
    }
