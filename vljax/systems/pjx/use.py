"""What a person asks of PJ-X: the answer to a question about a picture, and why."""

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.data.pictures.images import contact_sheet, read_image
from vljax.data.pictures.maps import over_picture
from vljax.data.scenes.programs import program
from vljax.data.source import readable
from vljax.errors import UserError
from vljax.models.decoding import check_choice
from vljax.request import Picture, changed, option
from vljax.systems import Result
from vljax.systems.pjx.method import (
    Explained,
    explain_all,
    open_examples,
    read_example,
)
from vljax.systems.pjx.model import PJX
from vljax.systems.pjx.words import Words, open_words

# Examples explained at a time, so that device memory does not grow with those asked for.
_TOGETHER = 16


@dataclass(frozen=True)
class Request:
    """An answer to a question about a picture, with its reason in words and on the picture."""

    image: Picture | None = option(None, help="the photograph asked about")
    question: str | None = option(None, help='what is asked, such as "is this a zoo?"')
    answer: str | None = option(None, help="explain this answer instead of the model's own")
    num_examples: int = option(4, low=1, help="without --image: held-out examples to explain")
    beams: int = option(1, low=1, high=64, help="width of the search for the justification")
    temperature: float = option(0.0, low=0.0, help="of drawing words; 0: the most probable ones")
    top_p: float = option(1.0, low=0.0, high=1.0, help="draw words from this share")
    seed: int = option(0, seed=True, help="of drawing words")


def generate(model: PJX, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`explanation.png`, a sheet; `map_0.png`, …, each map over its picture; `explanation.json`.

    Raises:
        UserError: the request cannot be.
    """
    if model.explainer is None:
        raise UserError(
            "this run learnt to answer, not to explain: train one with configs/pjx_vqax.py"
        )
    check_choice(request.beams, request.temperature, top_p=request.top_p)
    words = open_words(config)
    examples = _examples(config, words, request)
    arrays = [read_example(config, words, one) for one in examples]
    given = [_given(words, request.answer)] * len(arrays)
    how: dict[str, Any] = {"beams": request.beams, "temperature": np.float32(request.temperature)}
    how |= {"top_p": np.float32(request.top_p), "seed": request.seed}
    found = explain_all(model, config, words, arrays, given, batch_size=_TOGETHER, **how)
    told = [_told(words, examples[i], found, i) for i in range(len(examples))]
    rows = []
    for i, (example, one) in enumerate(zip(examples, told, strict=True)):
        if "image" not in example:
            continue
        over = over_picture(found.points[i], example["image"])
        yield Result(f"map_{i}.png", over, one["justification"], {"answer": one["answer"]})
        rows.append((_label(one), np.stack([example["image"], over])))
    if len({pictures.shape for _, pictures in rows}) == 1:  # a sheet has pictures of one size
        yield Result("explanation.png", contact_sheet(rows, min_side=224), _label(told[0]))
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    yield Result("explanation.json", text, "\n".join(_label(one) for one in told))


def _examples(config: ConfigDict, words: Words, request: Request) -> list[dict[str, Any]]:
    """The photograph with its question, or the first held-out examples."""
    asks = config.task == "question"
    if request.image is None:
        if request.question is not None:
            raise UserError("--question is asked of a picture: give --image as well")
        source = open_examples(config, held_out=True)
        read = readable(source, config.data.on_corrupt, request.num_examples)
        return [example for _, example in read]
    if config.model.trunk.kind == "none":
        raise UserError(
            "--image: this model reads features that were made once; leave it out to explain "
            "held-out examples"
        )
    if "num_examples" in changed(request):
        raise UserError("--num_examples: with --image that picture is explained; leave one out")
    if asks and not request.question:
        raise UserError('--question is missing: ask something, such as "is this a zoo?"')
    if not asks and request.question:
        raise UserError("--question: this model tells what a picture shows; leave it out")
    example: dict[str, Any] = {"image": read_image(request.image), "answer": request.answer or ""}
    if asks:
        assert request.question is not None
        example["question"] = request.question
        known = [
            word for word in words.questions.split(request.question) if word in words.questions
        ]
        if not any(known):
            raise UserError(
                f"--question={request.question!r}: the model knows none of these words; it knows "
                f"{', '.join(list(filter(None, words.questions.entries))[:12])} … "
            )
        if config.model.answerer.kind == "modules" and config.model.answerer.programs == "true":
            example["program"] = program(request.question)
    return [example]


def _given(words: Words, answer: str | None) -> int:
    """The index of an answer to explain, or −1 for the model's own.

    Raises:
        UserError: it is none of the model's answers.
    """
    if answer is None:
        return -1
    if not answer or answer not in words.answers:
        known = list(filter(None, words.answers.entries))
        close = difflib.get_close_matches(answer, known, n=3, cutoff=0.0)
        raise UserError(
            f"--answer={answer!r} is none of the {len(known)} answers of this model; did you mean "
            f"{' or '.join(map(repr, close))}?"
        )
    return words.answers.id(answer)


def _told(words: Words, example: dict[str, Any], found: Explained, i: int) -> dict[str, Any]:
    best = np.argsort(-found.probabilities[i])[:3]
    answers = {words.answers.entries[j]: round(float(found.probabilities[i, j]), 4) for j in best}
    chosen = int(found.answer[i])
    told = {"question": example["question"]} if "question" in example else {}
    return told | {
        "answer": words.answers.entries[chosen],
        "probability": round(float(found.probabilities[i, chosen]), 4),
        "justification": words.justifications.decode(found.tokens[i]),
        "log_prob": round(float(found.log_prob[i]), 3),
        "most probable answers": answers,
    }


def _label(told: dict[str, Any]) -> str:
    asked = f"{told['question']} " if "question" in told else ""
    return f"{asked}{told['answer']} ({told['probability']:.2f}): {told['justification']}"
