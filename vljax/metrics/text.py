"""How close written texts come to right ones: the metrics of table 3.1 and of COCO captions.

Every score is in percent and for the whole corpus, and is the field's own program:

| name | what, and whose |
|---|---|
| `bleu` | BLEU-4 (Papineni et al. 2002) by `sacrebleu`, on words as they are given |
| `bleu_13a` | the same on plain text, split into words as WMT's mteval does |
| `rouge1`, `rouge2`, `rougeL` | F1 (Lin 2004) by `rouge-score`, of the best reference |
| `ter` | Translation Edit Rate (Snover et al. 2006) by `sacrebleu`; lower is better |
| `accuracy` | texts that equal a reference word by word |
| `cider` | CIDEr-D (Vedantam et al. 2015) by `pycocoevalcap` |
| `coco_bleu`, `coco_rougeL` | COCO's BLEU-4 and ROUGE-L (recall counts 1.44 times precision) |
| `coco_bleu1`, `coco_bleu2`, `coco_bleu3` | COCO's BLEU of shorter n-grams |
| `meteor` | METEOR 1.5 (Denkowski and Lavie 2014); `pycocoevalcap` runs it in Java |
| `spice` | SPICE (Anderson et al. 2016); likewise; of PJ-X's table 2.2 |

`sacrebleu`'s BLEU without smoothing and COCO's differ only where some order of n-grams never
matches: the one is smoothed, the other next to 0.

COCO's server splits words with a Java program and drops punctuation first. Here texts count as
they are given: split with `vljax.data.text.captions.caption_words`.
"""

import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vljax.errors import UserError, of_extra

References = Sequence[Sequence[str]]
"""For each prediction, one right text or more."""


class MissingToolError(RuntimeError):
    """A metric's program is not installed; the message says which, in one line."""


def text_scores(
    predictions: Sequence[str], references: References, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Several metrics at once.

    Args:
        predictions: The texts to judge.
        references: The right ones of each.
        names: Metrics, from the module's table.

    Returns:
        The scores, and for each metric whose program is not installed, what is missing.

    Raises:
        ValueError: A metric's name is unknown, or the two do not pair.
    """
    _check(predictions, references)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"no metric {unknown[0]!r}; choose from {', '.join(METRICS)}")
    scores: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            scores[name] = METRICS[name](predictions, references)
        except MissingToolError as error:
            missing[name] = str(error)
    return scores, missing


def _check(predictions: Sequence[str], references: References) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but references of {len(references)}")
    if not predictions:
        raise ValueError("no predictions: there is nothing to judge")
    for index, right in enumerate(references):
        if isinstance(right, str) or not len(right):
            raise ValueError(f"references[{index}] is {right!r}: give a list of one text or more")


def _streams(references: References) -> Any:
    """`sacrebleu`'s form: the first reference of each, the second of each, …; None where none."""
    most = max(map(len, references))
    return [[r[i] if i < len(r) else None for r in references] for i in range(most)]


def bleu(
    predictions: Sequence[str],
    references: References,
    *,
    tokenize: str = "none",
    smooth: str = "exp",
) -> float:
    """Corpus BLEU-4.

    Args:
        predictions: Texts.
        references: Right texts of each.
        tokenize: `sacrebleu`'s way of splitting words: `"none"` at spaces, `"13a"` as WMT.
        smooth: `sacrebleu`'s smoothing of n-grams that never match: `"exp"`, `"floor"`, `"add-k"`
            or `"none"`.

    Raises:
        MissingToolError: the extra `tables` is not installed.
    """
    program = _program("sacrebleu.metrics")
    _check(predictions, references)
    # The warning that texts look tokenised is none where that is meant.
    metric = program.BLEU(tokenize=tokenize, smooth_method=smooth, force=True)
    return metric.corpus_score(list(predictions), _streams(references)).score


def bleu_13a(predictions: Sequence[str], references: References) -> float:
    """Corpus BLEU-4 of plain text, as WMT scores it.

    Args:
        predictions: One plain text an example.
        references: Of each example, the texts that are right.

    Raises:
        MissingToolError: the extra `tables` is not installed.
    """
    return bleu(predictions, references, tokenize="13a")


def rouge(
    predictions: Sequence[str], references: References, *, stem: bool = False
) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 of each prediction with its best reference.

    Case and all but ASCII letters and digits are ignored, as in ROUGE-1.5.5.

    Args:
        predictions: Texts.
        references: Right texts of each.
        stem: Whether to compare the stems of words (Porter), ROUGE-1.5.5's `-m`.

    Returns:
        `rouge1`, `rouge2` and `rougeL`.

    Raises:
        MissingToolError: the extra `tables` is not installed.
    """
    program = _program("rouge_score.rouge_scorer")
    _check(predictions, references)
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = program.RougeScorer(names, use_stemmer=stem)
    total = dict.fromkeys(names, 0.0)
    for prediction, right in zip(predictions, references, strict=True):
        scores = scorer.score_multi(right, prediction)
        for name in names:
            total[name] += scores[name].fmeasure
    return {name: 100 * value / len(predictions) for name, value in total.items()}


def ter(predictions: Sequence[str], references: References) -> float:
    """Translation Edit Rate, on words between spaces whatever their case; lower is better.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.

    Raises:
        MissingToolError: the extra `tables` is not installed.
    """
    program = _program("sacrebleu.metrics")
    _check(predictions, references)
    return program.TER().corpus_score(list(predictions), _streams(references)).score


def accuracy(predictions: Sequence[str], references: References) -> float:
    """Share of texts that have the words of a reference, all and in order.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.
    """
    _check(predictions, references)
    hits = 0
    for prediction, right in zip(predictions, references, strict=True):
        hits += prediction.split() in [text.split() for text in right]
    return 100 * hits / len(predictions)


def cider(predictions: Sequence[str], references: References) -> float:
    """CIDEr-D; n-grams weigh by their rarity among the references given, hence needs many.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.
    """
    return float(cider_scores(predictions, references).mean())


def cider_scores(predictions: Sequence[str], references: References) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each prediction, whose mean is that of the corpus.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.
    """
    _need_coco()
    from pycocoevalcap.cider.cider import Cider

    right, told = _coco_form(predictions, references)
    return 100 * np.asarray(Cider().compute_score(right, told)[1])


def coco_bleu(predictions: Sequence[str], references: References, order: int = 4) -> float:
    """BLEU as COCO's server computes it, of n-grams up to an order.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.
        order: The longest n-grams.
    """
    _need_coco()
    from pycocoevalcap.bleu.bleu import Bleu

    right, told = _coco_form(predictions, references)
    return 100 * float(Bleu(order).compute_score(right, told, verbose=0)[0][order - 1])


def coco_rouge_l(predictions: Sequence[str], references: References) -> float:
    """ROUGE-L as COCO's server computes it: best precision and best recall, β = 1.2.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.
    """
    _need_coco()
    from pycocoevalcap.rouge.rouge import Rouge

    right, told = _coco_form(predictions, references)
    return 100 * float(Rouge().compute_score(right, told)[0])


def meteor(predictions: Sequence[str], references: References) -> float:
    """METEOR 1.5 for English.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.

    Raises:
        MissingToolError: `pycocoevalcap` or Java is not installed, or fails.
    """
    _need_coco()
    _need_java()
    from pycocoevalcap.meteor.meteor import Meteor

    right, told = _coco_form(predictions, references)
    try:
        return 100 * float(Meteor().compute_score(right, told)[0])
    except (OSError, ValueError) as error:  # It ended instead of answering.
        raise MissingToolError("METEOR's Java program fails: try another Java") from error


def spice(predictions: Sequence[str], references: References) -> float:
    """SPICE, of PJ-X's table 2.2.

    Args:
        predictions: One text an example, words between spaces.
        references: Of each example, the texts that are right.

    Raises:
        MissingToolError: `pycocoevalcap`, Java, or the parser that SPICE needs is not installed,
            or fails.
    """
    folder = _need_coco()
    _need_java()
    # SPICE's own set-up would fetch the parser over the network, which is the user's choice.
    if not any((folder / "spice/lib").glob("stanford-corenlp-*.jar")):
        raise MissingToolError(
            "SPICE's Stanford parser is missing: run pycocoevalcap.spice.get_stanford_models once"
        )
    from pycocoevalcap.spice.spice import Spice

    right, told = _coco_form(predictions, references)
    try:
        return 100 * float(Spice().compute_score(right, told)[0])
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingToolError("SPICE's Java program fails: it needs Java 8") from error


def _program(module: str) -> Any:
    """A metric's program, loaded for those who use it."""
    try:
        return of_extra("tables", module, "this metric")
    except UserError as error:
        raise MissingToolError(str(error)) from error


def _need_coco() -> Path:
    """The folder of `pycocoevalcap`."""
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise MissingToolError("pycocoevalcap is not installed: pip install 'vljax[captions]'")
    return Path(next(iter(found.submodule_search_locations)))


def _need_java() -> None:
    if shutil.which("java") is None:
        raise MissingToolError("Java is not installed: no program java in PATH")


def _coco_form(
    predictions: Sequence[str], references: References
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    _check(predictions, references)
    # The Java programs read a line for each text, and `|||` between them.
    right = {i: [_one_line(text) for text in texts] for i, texts in enumerate(references)}
    told = {i: [_one_line(text)] for i, text in enumerate(predictions)}
    return right, told


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", " ").split())


METRICS: dict[str, Callable[[Sequence[str], References], float]] = {
    "bleu": bleu,
    "bleu_13a": bleu_13a,
    "rouge1": lambda p, r: rouge(p, r)["rouge1"],
    "rouge2": lambda p, r: rouge(p, r)["rouge2"],
    "rougeL": lambda p, r: rouge(p, r)["rougeL"],
    "ter": ter,
    "accuracy": accuracy,
    "cider": cider,
    "coco_bleu": coco_bleu,
    **{f"coco_bleu{n}": functools.partial(coco_bleu, order=n) for n in (1, 2, 3)},
    "coco_rougeL": coco_rouge_l,
    "meteor": meteor,
    "spice": spice,
}
"""Every metric of the module's table."""

PROGRAMS = {
    **dict.fromkeys(("bleu", "bleu_13a", "ter"), "sacrebleu"),
    **dict.fromkeys(("rouge1", "rouge2", "rougeL"), "rouge-score"),
    "accuracy": "vljax",
    **dict.fromkeys(
        (
            *("cider", "coco_bleu", "coco_bleu1", "coco_bleu2", "coco_bleu3"),
            *("coco_rougeL", "meteor", "spice"),
        ),
        "pycocoevalcap",
    ),
}
"""Whose program computes each metric; all but pycocoevalcap comes with vljax."""
