"""PJ-X judged: tables 2.2 to 2.4, answers, faithfulness, and figures 2.5 to 2.7.

Where the world behind a picture is known (scenes) sentences are also read and checked against it,
and pictures are rendered anew without the evidence. People judged table 2.4; here a classifier
stands in for them, and the table says so.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.pictures.images import contact_sheet
from vljax.data.pictures.maps import over_picture
from vljax.data.scenes import Scene
from vljax.data.scenes.truth import read
from vljax.data.scenes.world import masks
from vljax.data.source import stacked
from vljax.metrics import pointing
from vljax.metrics.report import Report, Row
from vljax.metrics.simulatability import guess_rightness, predict_answers
from vljax.metrics.statistics import standard_error
from vljax.metrics.text import text_scores
from vljax.metrics.vqa import vqa_accuracy
from vljax.ops.parts import filled_batches
from vljax.request import File, option
from vljax.systems.pjx.maps import looked_at, marked, pointing_rows
from vljax.systems.pjx.method import (
    Explained,
    explain_all,
    probabilities,
)
from vljax.systems.pjx.model import PJX
from vljax.systems.pjx.paper import chapter
from vljax.systems.pjx.probing import (
    Explain,
    Judged,
    about,
    certificates,
    faithfulness,
    open_judged,
)
from vljax.systems.pjx.words import Words, open_words


@dataclass(frozen=True)
class Judging:
    """How much to judge."""

    num_examples: int = option(500, low=2, help="held-out examples to judge")
    batch_size: int = option(100, low=1, help="how many at a time")
    beams: int = option(1, low=1, high=64, help="width of the search for justifications")
    probed: int = option(100, low=0, help="examples whose evidence is taken away")
    copied: int = option(5000, low=1, help="training examples that the blind floors copy from")
    maps: File | None = option(None, help="of photographs: folder of PJ-X's pointing maps")
    hat: File | None = option(None, help="folder of VQA-HAT's maps, for VQA v1's questions")
    seed: int = option(0, seed=True, help="breaks ties of ranks")


# What tables call the metrics.
_NAMES = {
    "coco_bleu": "BLEU-4",
    "bleu": "BLEU-4 (sacrebleu)",
    "meteor": "METEOR",
    "coco_rougeL": "ROUGE-L",
    "rougeL": "ROUGE-L (F1)",
    "cider": "CIDEr",
    "spice": "SPICE",
}


def judge(model: PJX, config: ConfigDict, judging: Judging) -> Report:
    """Answers, and where the run explains all tables of chapter 2.

    Raises:
        UserError: the data is not there.
    """
    words, benchmark = open_words(config), open_benchmark(config.data)
    judged, unanswerable = open_judged(config, words, benchmark, judging.num_examples)
    notes: dict[str, Any] = {"examples": len(judged.examples), "data": benchmark.label}
    if unanswerable:
        notes["examples whose answer the model has no word for, left out"] = unanswerable
    if model.explainer is None:
        shares = _answer_only(model, judged, judging.batch_size)
        return Report(tuple(_answers(words, judged, shares)), notes)
    if judging.maps:
        judged, notes["people's maps"] = marked(judged, judging.maps)
    explain = functools.partial(
        explain_all,
        model,
        config,
        words,
        batch_size=judging.batch_size,
        beams=judging.beams,
    )
    ask = _asker(explain, judged)
    rows: list[Row] = []
    ours = {"true answer": ask("explainer", True), "own answer": ask("explainer", False)}
    rows += _answers(words, judged, ours["own answer"].probabilities)
    told = {("ours", how): _texts(words, found) for how, found in ours.items()}
    for part, name in (
        ("without_attention", "w/o attention"),
        ("on_descriptions", "on descriptions"),
    ):
        if getattr(model, part) is not None:
            for how, truly in (("true answer", True), ("own answer", False)):
                told[name, how] = _texts(words, ask(part, truly))
    floors = _floors(config, judged, judging.copied)
    rows += _justifications(benchmark, words, judged, told, floors, ours["true answer"], notes)
    pointed = [(benchmark.label, judged, ours["true answer"])]
    if judging.hat:
        looked = looked_at(config, words, judging.hat, judging.num_examples)
        explained = _asker(explain, looked)("explainer", True)
        pointed.append(("VQA-HAT", looked, explained))
    for data, examples, found in pointed:
        found_rows, found_notes = pointing_rows(examples, found, data, judging.seed)
        rows += found_rows
        notes |= found_notes
    rows += _rightness(words, judged, ours["own answer"], told)
    if judged.scenes is not None and config.task == "question":
        given = ours["true answer"]
        rows.append(certificates(model, config, words, judged, given, judging.batch_size))
    if judging.probed:
        rows += faithfulness(
            model, config, words, judged, ours, explain, judging.probed, judging.seed
        )
    figures = _figures(words, judged, ours["own answer"])
    return Report((*rows, *chapter()), notes, figures)


def _asker(explain: Explain, judged: Judged) -> Callable[[str, bool], Explained]:
    """`ask(part, truly)`: all examples explained by a part, given the true answers or its own."""

    def ask(part: str, truly: bool) -> Explained:
        given = judged.truth if truly else [-1] * len(judged.arrays)
        return explain(judged.arrays, given, part=part)

    return ask


def _texts(words: Words, found: Explained) -> list[str]:
    return [words.justifications.decode(tokens) for tokens in found.tokens]


# Answers ---------------------------------------------------------------------------------------


def _answers(words: Words, judged: Judged, shares: Float[np.ndarray, "n answers"]) -> Iterator[Row]:
    """How often answers are right, by the kind of question; VQA's measure where ten people said."""
    scores, kinds = [], []
    for example, one in zip(judged.examples, shares, strict=True):
        said = words.answers.entries[int(one.argmax())]
        people = example.get("answers", ())
        right = vqa_accuracy(said, people) if len(people) > 1 else said == example["answer"]
        scores.append(100.0 * float(right))
        kinds.append(example.get("question_kind", example.get("kind", "")))
    for kind in ("", *sorted({*kinds} - {""})):
        chosen = [s for s, k in zip(scores, kinds, strict=True) if kind in ("", k)]
        values = {
            "accuracy": float(np.mean(chosen)),
            "standard error": standard_error(chosen),
            "n": len(chosen),
        }
        yield Row("answers", kind or "all questions", values)


# Justifications (table 2.2) --------------------------------------------------------------------


def _floors(config: ConfigDict, judged: Judged, count: int) -> dict[str, list[str]]:
    """Justifications without a picture: the commonest of the answer, or of question and answer."""
    # Texts alone: no picture is rendered, no file of features read.
    data, fields = open_benchmark(config.data), ("answer", "justifications")
    asked = config.task == "question"
    source = data.questions((*fields, "question")) if asked else data.shown(fields)
    by_answer: dict[Any, Counter[str]] = {}
    for i in range(min(count, len(source))):
        example = source[i]
        for key in (example["answer"], (example.get("question", ""), example["answer"])):
            by_answer.setdefault(key, Counter()).update(example["justifications"])

    def copied(key: Any, other: Any) -> str:
        known = by_answer.get(key) or by_answer.get(other)
        return known.most_common(1)[0][0] if known else ""

    pairs = [(one["answer"], (one.get("question", ""), one["answer"])) for one in judged.examples]
    floors = {"copied by answer": [copied(answer, answer) for answer, _ in pairs]}
    if any("question" in one for one in judged.examples):
        floors["copied by question and answer"] = [copied(key, answer) for answer, key in pairs]
    return floors


def _justifications(
    benchmark: Benchmark,
    words: Words,
    judged: Judged,
    told: Mapping[tuple[str, str], list[str]],
    floors: Mapping[str, list[str]],
    ours: Explained,
    notes: dict[str, Any],
) -> Iterator[Row]:
    """Our rows of table 2.2, the blind floors beneath them; on scenes with what is true.

    All texts are split into words as the model's are.
    """

    def split(texts: Sequence[str]) -> list[str]:
        return [" ".join(filter(None, words.justifications.split(text))) for text in texts]

    references = [split(one["justifications"]) for one in judged.examples]
    names = ("bleu", "rougeL", *benchmark.text_metrics)
    everyone = {f"{name}, {how}": texts for (name, how), texts in told.items()} | dict(floors)
    for name, texts in everyone.items():
        scores, missing = text_scores(split(texts), references, names)
        notes |= {f"{metric} not computed": reason for metric, reason in missing.items()}
        values: dict[str, Any] = {"data": benchmark.label}
        values |= {_NAMES.get(metric, metric): value for metric, value in scores.items()}
        if judged.scenes is not None:
            values |= _truth(judged, judged.scenes, texts)
        yield Row("table 2.2", name, values)
    if judged.scenes is not None:
        agreed = _agreement(judged, judged.scenes, told["ours", "true answer"], ours)
        yield Row("what is named and what is pointed at", "ours, true answer", agreed)


def _truth(judged: Judged, scenes: Sequence[Scene], texts: Sequence[str]) -> dict[str, float]:
    """Shares of sentences that are understood, true, and speak of what shows the answer."""
    seen = [read(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    shown = [about(judged, i) for i in range(len(texts))]
    true = np.array([one.true for one in seen])
    proves = [
        one.true and {*one.named} == {*objects} and (bool(objects) or one.background)
        for one, objects in zip(seen, shown, strict=True)
    ]
    return {
        "understood": 100 * float(np.mean([one.understood for one in seen])),
        "true": 100 * float(true.mean()),
        "standard error of true": 100 * standard_error(true),
        "true of the evidence": 100 * float(np.mean(proves)),
    }


def _agreement(
    judged: Judged, scenes: Sequence[Scene], texts: Sequence[str], ours: Explained
) -> dict[str, float]:
    """How much of the map lies on the objects that the sentence names, against their area."""
    shares, areas = [], []
    for i, (text, scene) in enumerate(zip(texts, scenes, strict=True)):
        named = read(text, scene).named
        if named:
            shown = np.any(masks(scene, judged.arrays[i]["image"].shape[0])[list(named)], axis=0)
            shares.append(pointing.mass_on(ours.points[i], shown))
            areas.append(float(shown.mean()))
    return {
        "mass on what is named": 100 * float(np.mean(shares)) if shares else float("nan"),
        "its area": 100 * float(np.mean(areas)) if areas else float("nan"),
        "n": len(shares),
    }


# Guessing whether the model was right (table 2.4) ----------------------------------------------


def _rightness(
    words: Words,
    judged: Judged,
    own: Explained,
    told: Mapping[tuple[str, str], list[str]],
) -> Iterator[Row]:
    """Our rows of table 2.4: a classifier guesses from the true answer and the explanation."""
    right = own.answer == np.array(judged.truth)
    texts = {"without explanation": [""] * len(right)}
    texts |= {name: told[name, "own answer"] for name, how in told if how == "own answer"}
    known = [f"{one.get('question_kind', '')} {one.get('question', '')}" for one in judged.examples]
    answers = [one["answer"] for one in judged.examples]
    for name, explained in texts.items():
        guessed = guess_rightness(known, answers, explained, right)
        if guessed is not None:
            label = "right guesses by a classifier (half are right by chance)"
            yield Row("table 2.4", name, {label: 100 * guessed.accuracy, "n": guessed.examples})
    said = [words.answers.entries[int(i)] for i in own.answer]
    why = {"nothing but the question": [""] * len(said), "ours": told["ours", "own answer"]}
    for name, explained in why.items():
        share = predict_answers(known, explained, said)
        values = {"the model's answer is told": 100 * share, "n": len(said)}
        yield Row("answers told from the explanation alone", name, values)


# Figures ---------------------------------------------------------------------------------------


def _figures(words: Words, judged: Judged, own: Explained) -> dict[str, np.ndarray]:
    """Figure 2.5, right answers explained; 2.6, wrong ones; 2.7, both maps beside the evidence."""
    if "image" not in judged.arrays[0]:
        return {}
    right = own.answer == np.array(judged.truth)
    figures = {}
    for name, places in (
        ("figure_2.5_right_answers", np.flatnonzero(right)[:6]),
        ("figure_2.6_wrong_answers", np.flatnonzero(~right)[:6]),
    ):
        rows = []
        for i in places:
            image, example = judged.arrays[i]["image"], judged.examples[i]
            said = words.answers.entries[int(own.answer[i])]
            why = words.justifications.decode(own.tokens[i])
            label = f"{example.get('question', '')} {said}: {why}"
            shown = [image, over_picture(own.points[i], image)]
            if own.looked is not None:
                shown.append(over_picture(own.looked[i], image))
            if "evidence" in example:
                shown.append(over_picture(example["evidence"].astype(np.float32), image))
            rows.append((label.strip(), np.stack(shown)))
        if rows:
            rows[0] = (f"picture, ours, answering map, evidence. {rows[0][0]}", rows[0][1])
            figures[name] = contact_sheet(rows, min_side=112)
    return figures


def _answer_only(model: PJX, judged: Judged, batch_size: int) -> Float[np.ndarray, "n answers"]:
    """The probabilities of all answers, of a model without an explainer."""
    found, count = [], len(judged.arrays)
    for places in filled_batches(count, min(batch_size, count)):
        arrays = [judged.arrays[i] for i in places]
        batch = stacked(arrays)
        found.append(np.asarray(probabilities(model, batch)))
    return np.concatenate(found)[:count]
