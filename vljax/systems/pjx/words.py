"""What questions, answers and justifications are written in, and the steps of programs.

Published vocabularies are taken in their order. Without, scenes have a list of all their words and
answers, and other data are counted: every word, and the most frequent answers.
"""

import functools
import json
import re
from collections import Counter
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.scenes.programs import STEPS
from vljax.data.text.published import (
    END,
    NOTHING,
    PublishedWords,
    open_published_words,
    pjx_words,
)
from vljax.models.question import StepTable

#: Answers that a model of photographs gives, `NOTHING` among them.
MOST_ANSWERS = 3000


class Words(NamedTuple):
    """The three vocabularies of a model."""

    questions: PublishedWords
    answers: PublishedWords
    justifications: PublishedWords


def open_words(config: ConfigDict) -> Words:
    """The vocabularies of a run.

    Raises:
        UserError: a file cannot be read, or the data is not there.
    """
    given = config.data.vocabularies
    files = {name: open_published_words(path) for name, path in given.items() if path}
    if len(files) == len(given):
        return Words(**files)
    return Words(**{**_own(json.dumps(config.data.to_dict()), config.task)._asdict(), **files})


def named(data: ConfigDict, name: str) -> ConfigDict:
    """The `data` fields of another data set in the same folder; as they are without a name."""
    return ConfigDict(data.to_dict() | {"name": name}) if name else data


@functools.lru_cache(maxsize=4)
def _own(data: str, task: str) -> Words:
    fields = ConfigDict(json.loads(data))
    benchmark = open_benchmark(fields)
    if benchmark.vocabulary:
        told = (*benchmark.vocabulary, ",")
        answers = benchmark.answers if task == "question" else benchmark.activities
        return Words(
            PublishedWords((NOTHING, *told), scene_words),
            PublishedWords(answers),
            PublishedWords((END, NOTHING, *told), scene_words),
        )
    examples = _all(benchmark)
    answering = _all(open_benchmark(named(fields, fields.answers_from)))
    given = Counter(answer for one in answering for answer in one["answers"])
    questions = {word for one in answering for word in pjx_words(one["question"])}
    reasons = {w for one in examples for why in one["justifications"] for w in pjx_words(why)}
    frequent = [answer for answer, _ in given.most_common(MOST_ANSWERS - 1)]
    return Words(
        PublishedWords((NOTHING, *sorted(questions - {NOTHING}))),
        PublishedWords((*frequent, NOTHING) if task == "question" else sorted(given)),
        PublishedWords((END, NOTHING, *sorted(reasons - {NOTHING}))),
    )


def _all(benchmark: Benchmark) -> list[dict[str, Any]]:
    source = benchmark.questions(("question", "answer", "justifications"))
    return [source[i] for i in range(len(source))]


def scene_words(text: str) -> list[str]:
    """Small letters and commas, which part the things that a sentence lists."""
    return re.findall("[a-z]+|,", text.lower())


#: The steps of programs, and how many the longest has.
STEP_TABLE = StepTable(STEPS)
PROGRAM_LENGTH = 8
