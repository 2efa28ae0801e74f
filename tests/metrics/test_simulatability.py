"""The classifier that stands in for people: it finds what words give away, and nothing else."""

import numpy as np

from vljax.metrics.simulatability import guess_rightness, predict_answers

COLOURS = ("red", "blue", "green")
QUESTIONS = ["what color is the star?"] * 240


def examples():
    rng = np.random.default_rng(0)
    truth = [COLOURS[i] for i in rng.integers(0, 3, 240)]
    right = rng.random(240) < 0.6
    next_one = {one: COLOURS[(i + 1) % 3] for i, one in enumerate(COLOURS)}
    said = [t if r else next_one[t] for t, r in zip(truth, right, strict=True)]
    return truth, said, right


def test_words_of_the_answer_tell_whether_it_was_right():
    truth, said, right = examples()
    telling = guess_rightness(QUESTIONS, truth, [f"the star is {one}" for one in said], right)
    silent = guess_rightness(QUESTIONS, truth, ["the star is there"] * 240, right)
    assert telling.accuracy > 0.95
    assert abs(silent.accuracy - 0.5) < 0.1
    # As many wrong as right ones are judged.
    assert telling.examples == silent.examples == 2 * min(right.sum(), (~right).sum())
    assert guess_rightness(QUESTIONS[:3], truth[:3], said[:3], np.ones(3, bool)) is None


def test_answers_are_told_from_words_alone():
    truth, _, _ = examples()
    assert predict_answers(QUESTIONS, [f"the star is {one}" for one in truth], truth) > 0.95
    blind = predict_answers(QUESTIONS, [""] * 240, truth)
    commonest = max(truth.count(colour) for colour in COLOURS) / 240
    assert blind < commonest + 0.05
