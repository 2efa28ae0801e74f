"""Probes of PJ-X: whether explanations follow the answer, and the answer follows the evidence.

Another answer must move map and words; what the map points at must matter to the answer (deletion
and insertion); and where the world behind a picture is known, the picture is rendered anew without
the evidence, or without something else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark
from vljax.data.scenes import Scene, render
from vljax.data.scenes.counterfactuals import complement, without
from vljax.data.scenes.explanations import explain as reasons_of
from vljax.data.scenes.truth import read
from vljax.data.source import readable, stacked
from vljax.errors import UserError
from vljax.metrics import pointing
from vljax.metrics.report import Row
from vljax.metrics.statistics import standard_error
from vljax.ops.parts import filled_batches, joined
from vljax.systems.pjx.certificate import Certificate, certify, check, together
from vljax.systems.pjx.method import (
    Arrays,
    Explained,
    open_examples,
    probability_when_seen,
    read_example,
)
from vljax.systems.pjx.model import PJX, is_explained
from vljax.systems.pjx.words import Words

#: `explain(arrays, given, **how) -> Explained`: `explain_all` of a model as the run is judged.
Explain = Callable[..., Explained]


class Judged(NamedTuple):
    """The examples that are judged.

    Attributes:
        examples: As the source gives them.
        arrays: As the model takes them.
        truth: The index of the true answer; of one that the vocabulary lacks, that of "unknown".
        scenes: The worlds behind them, or None.
    """

    examples: list[dict[str, Any]]
    arrays: list[Arrays]
    truth: list[int]
    scenes: list[Scene] | None


def open_judged(
    config: ConfigDict, words: Words, benchmark: Benchmark, count: int
) -> tuple[Judged, int]:
    """The first held-out examples, read, and how many were left out.

    Where the model has no entry for unknown answers, examples of which it cannot give the true one
    are left out: they could not be explained given the truth.
    """
    scenes = benchmark.scenes(held_out=True)
    more = ["justifications"] if is_explained(config) else []
    if scenes is not None:
        more += ["evidence", "question_kind"] if config.task == "question" else ["evidence"]
    source = open_examples(config, more, held_out=True)
    known: list[tuple[int, dict[str, Any]]] = []
    out = 0
    for i, example in readable(source, config.data.on_corrupt):
        if words.answers.unknown is None and example["answer"] not in words.answers:
            out += 1
        else:
            known.append((i, example))
        if len(known) == count:
            break
    if not known:
        raise UserError(
            f"none of the {out} held-out examples has an answer that this model can give: check "
            "data.vocabularies.answers"
        )
    examples = [example for _, example in known]
    arrays = [read_example(config, words, example) for example in examples]
    truth = [words.answers.id(example["answer"]) for example in examples]
    worlds = None if scenes is None else [scenes.scene(i) for i, _ in known]
    return Judged(examples, arrays, truth, worlds), out


def about(judged: Judged, i: int) -> tuple[int, ...]:
    """The objects that show the answer of an example on scenes."""
    assert judged.scenes is not None
    scene, example = judged.scenes[i], judged.examples[i]
    if "question" not in example:
        return read(example["justifications"][0], scene).named
    return reasons_of(scene, example["question"]).about


def certificates(
    model: PJX, config: ConfigDict, words: Words, judged: Judged, ours: Explained, size: int
) -> Row:
    """Shares of explanations that can be certified, see `vljax.systems.pjx.certificate`."""
    assert judged.scenes is not None
    given = np.asarray(ours.answer)
    found: list[Certificate] = []
    certified = jax.jit(certify)
    for places in filled_batches(len(given), min(size, len(given))):
        seen = together(
            check(
                judged.scenes[i],
                judged.examples[i]["question"],
                words.justifications.decode(ours.tokens[i]),
                ours.points[i],
                config.data.image_size,
            )
            for i in places
        )
        arrays = [judged.arrays[i] for i in places]
        batch = stacked(arrays)
        found.append(certified(model, batch, given[places], seen))
    all_of = joined(found, len(given))
    values = {name: 100 * float(getattr(all_of, name).mean()) for name in Certificate._fields}
    values["certified"] = 100 * float(all_of.certified.mean())
    error = 100 * standard_error(all_of.certified)
    return Row("certificates", "ours", {**values, "standard error": error, "n": len(given)})


# Faithfulness ----------------------------------------------------------------------------------


def faithfulness(
    model: PJX,
    config: ConfigDict,
    words: Words,
    judged: Judged,
    explained: Mapping[str, Explained],
    explain: Explain,
    count: int,
    seed: int,
) -> Iterator[Row]:
    """Whether explanations follow the answer, and the answer follows the evidence.

    Args:
        model: The model.
        config: Of the run.
        words: Its vocabularies.
        judged: The examples.
        explained: All of them, given the `"true answer"` and the model's `"own answer"`.
        explain: Explains what is probed, as `explained` was made: by the same search for words.
        count: How many of them to probe.
        seed: Of the random places that are deleted for comparison, and of ties.
    """
    count = min(count, len(judged.arrays))
    ours = explained["true answer"]
    chosen, arrays = ours.answer[:count], judged.arrays[:count]
    best = np.argsort(-ours.probabilities[:count])[:, :2]
    given = np.where(best[:, 0] == chosen, best[:, 1], best[:, 0])
    other = explain(arrays, list(given))
    yield Row("faithfulness", "another answer is explained", _moved(ours, other, range(count)))
    yield from _deletion(model, judged, ours, count, seed)
    if judged.scenes is not None and config.task == "question":
        own = explained["own answer"]
        yield from _pairs(config, words, judged, own, explain, count)
        yield from _counterfactuals(config, words, judged, own, explain, count)


def _moved(ours: Explained, other: Explained, places: Sequence[int]) -> dict[str, float]:
    """How explanations of some examples differ from those of others, one after the other."""
    moved = [
        pointing.earth_movers_distance(*(np.float64(m) / m.sum() for m in pair))
        for pair in zip(ours.points[list(places)], other.points, strict=True)
    ]
    changed = (ours.tokens[list(places)] != other.tokens).any(-1).mean()
    return {
        "words change": 100 * float(changed),
        "map moves, EMD": float(np.mean(moved)),
        "n": len(moved),
    }


def _pairs(
    config: ConfigDict, words: Words, judged: Judged, own: Explained, explain: Explain, count: int
) -> Iterator[Row]:
    """Complementary pairs: a picture little different, in which the question's answer is another.

    Goyal et al., *Making the V in VQA Matter* (2017).
    """
    assert judged.scenes is not None
    arrays, truth = [], []
    for i in range(count):
        question = judged.examples[i]["question"]
        scene = complement(judged.scenes[i], question, seed=i)
        image = render(scene, config.data.image_size)
        arrays.append(read_example(config, words, judged.examples[i] | {"image": image}))
        truth.append(words.answers.id(reasons_of(scene, question).answer))
    other = explain(arrays, [-1] * count)
    right = own.answer[:count] == np.array(judged.truth[:count])
    both = right & (other.answer == np.array(truth))
    values = {"both are answered rightly": 100 * float(both.mean())}
    values |= _moved(own, other, range(count))
    yield Row("faithfulness", "a complementary picture is explained", values)


def _deletion(model: PJX, judged: Judged, ours: Explained, count: int, seed: int) -> Iterator[Row]:
    """Areas under deletion and insertion curves of the answer's probability, by what is deleted."""
    rng = np.random.default_rng(seed)
    side = ours.points.shape[1]
    maps = {"ours": ours.points, "random": rng.random(ours.points.shape)}
    if ours.looked is not None:
        maps["answering model"] = ours.looked
    if all("evidence" in one for one in judged.examples[:count]):
        grids = [pointing.to_grid(one["evidence"], side) for one in judged.examples[:count]]
        maps["the evidence itself"] = np.stack(
            [np.zeros((side, side)) if grid is None else grid for grid in grids]
        )
    for name, all_maps in maps.items():
        curves: dict[str, list[float]] = {"deletion": [], "insertion": []}
        for i in range(count):

            def probability(seen: np.ndarray, i: int = i) -> np.ndarray:
                batch = {k: np.stack([v] * len(seen)) for k, v in judged.arrays[i].items()}
                answers = np.full(len(seen), ours.answer[i], np.int32)
                return np.asarray(probability_when_seen(model, batch, answers, seen))

            for curve, insert in (("deletion", False), ("insertion", True)):
                told = pointing.deletion_curve(all_maps[i], probability, insert=insert, rng=rng)
                curves[curve].append(float(np.trapezoid(told, pointing.SHARES)))
        areas = {f"area under {curve}": float(np.mean(v)) for curve, v in curves.items()}
        yield Row("deletion and insertion", name, {**areas, "n": count})


def _counterfactuals(
    config: ConfigDict, words: Words, judged: Judged, own: Explained, explain: Explain, count: int
) -> Iterator[Row]:
    """Pictures rendered anew: without the evidence the answer should change, otherwise stay."""
    assert judged.scenes is not None
    asked: dict[str, list[Arrays]] = {"without the evidence": [], "without something else": []}
    before: dict[str, list[int]] = {name: [] for name in asked}
    for i in range(count):
        scene, example = judged.scenes[i], judged.examples[i]
        shows = {*about(judged, i)}
        rest = [k for k in range(len(scene.objects)) if k not in shows]
        if not shows or example["question_kind"] == "count":
            continue
        for name, gone in (
            ("without the evidence", shows),
            ("without something else", {*rest[:1]}),
        ):
            if gone and len(gone) < len(scene.objects):
                image = render(without(scene, gone), config.data.image_size)
                changed = dict(example) | {"image": image}
                asked[name].append(read_example(config, words, changed))
                before[name].append(int(own.answer[i]))
    for name, arrays in asked.items():
        if not arrays:
            continue
        after = explain(arrays, [-1] * len(arrays)).answer
        stays = after == np.array(before[name])
        yield Row(
            "counterfactuals", name, {"answer stays": 100 * float(stays.mean()), "n": len(arrays)}
        )
