"""What an explanation gives away, to a classifier in place of people.

Whether the model was right (table 2.4), and what it answered: words that say nothing of the answer
explain nothing.

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
        examples: How many, half of them right.
    """

    accuracy: float
    examples: int


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
    targets = np.where(right[chosen], 1.0, -1.0)[:, None]
    guesses = _guesses(features, targets, folds)[:, 0]
    return Guessed(float((np.sign(guesses) == targets[:, 0]).mean()), len(chosen))


def predict_answers(
    questions: Sequence[str], explanations: Sequence[str], answers: Sequence[str], folds: int = 5
) -> float:
    """How often answers are told from question and explanation alone, by cross-validation.

    Args:
        questions: What was asked.
        explanations: Why, in words; empty ones tell how far the questions go.
        answers: What was answered.
        folds: Of the cross-validation, one example after the other.

    Returns:
        The share of right guesses.
    """
    known = sorted(set(answers))
    targets = np.array([[answer == one for one in known] for answer in answers], np.float64)
    told = zip(questions, explanations, strict=True)
    features = np.stack([_read(question, "", why) for question, why in told])
    guesses = _guesses(features, targets, folds)
    return float((guesses.argmax(1) == targets.argmax(1)).mean())


def _guesses(
    features: Float[np.ndarray, "n f"], targets: Float[np.ndarray, "n k"], folds: int
) -> Float[np.ndarray, "n k"]:
    """What ridge regression makes of each fold, learnt from the others."""
    found = np.zeros(targets.shape)
    for fold in range(folds):
        held = np.arange(len(features)) % folds == fold
        known = features[~held]
        # The dual form: as many equations as examples.
        dual = np.linalg.solve(known @ known.T + _RIDGE * np.eye(len(known)), targets[~held])
        found[held] = features[held] @ (known.T @ dual)
    return found


def _read(question: str, answer: str, explanation: str) -> Float[np.ndarray, " f"]:
    """Hashed counts of words and of pairs with the answer, of length 1, and a constant."""
    told = [f"q {word}" for word in question.split()] + [f"a {answer}"]
    for word in explanation.split():
        told += [f"e {word}", f"p {answer} {word}", f"s {word == answer}"]
    found = np.zeros(_FEATURES)
    for one in told:
        found[zlib.crc32(one.encode()) % (_FEATURES - 1)] += 1
    found /= max(float(np.linalg.norm(found)), 1e-12)
    found[-1] = 1.0
    return found
