"""Whether an explanation tells if a model was right: a classifier in place of people (table 2.4).

People were shown the picture, the true answer and an explanation, not the prediction, and guessed
whether the model had been right; half of the examples were. Here a ridge regression guesses from
words: those of the question, and each pair of the true answer with a word of the explanation.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_FEATURES = 2048
_RIDGE = 3.0


class Guessed(NamedTuple):
    """How well rightness was guessed.

    Attributes:
        accuracy: Share of right guesses, on examples that the guesser had not seen.
        count: Examples, half of them right.
    """

    accuracy: float
    count: int


def guess_rightness(
    questions: Sequence[str],
    answers: Sequence[str],
    explanations: Sequence[str],
    right: Bool[np.ndarray, " n"],
    *,
    folds: int = 5,
    seed: int = 0,
) -> Guessed | None:
    """Guess whether a model was right, by cross-validation on as many right as wrong examples.

    Args:
        questions: What was asked.
        answers: The true answers.
        explanations: What the model said of its own answer, which is not shown.
        right: Whether the model was right.
        folds: Of the cross-validation.
        seed: Draws the examples and the folds.

    Returns:
        None where fewer than `folds` examples are right, or are wrong.
    """
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(right == side) for side in (True, False)]
    each = min(map(len, sides))
    if each < folds:
        return None
    chosen = rng.permutation(np.concatenate([rng.permutation(side)[:each] for side in sides]))
    features = np.stack([_read(questions[i], answers[i], explanations[i]) for i in chosen])
    targets = np.where(right[chosen], 1.0, -1.0)
    hits = 0
    for fold in range(folds):
        held = np.arange(len(chosen)) % folds == fold
        known = features[~held]
        # The dual form: as many equations as examples.
        dual = np.linalg.solve(known @ known.T + _RIDGE * np.eye(len(known)), targets[~held])
        hits += int((np.sign(features[held] @ (known.T @ dual)) == targets[held]).sum())
    return Guessed(hits / len(chosen), len(chosen))


def _read(question: str, answer: str, explanation: str) -> Float[np.ndarray, " f"]:
    """Hashed counts of words and of pairs with the answer, of length 1, and a constant."""
    told = [f"q {word}" for word in question.split()] + [f"a {answer}"]
    for word in explanation.split():
        told += [f"e {word}", f"p {answer} {word}", f"s {word == answer}"]
    found = np.zeros(_FEATURES)
    for one in told:
        found[zlib.crc32(one.encode()) % (_FEATURES - 1)] += 1
    found /= max(np.linalg.norm(found), 1e-12)
    found[-1] = 1.0
    return found
