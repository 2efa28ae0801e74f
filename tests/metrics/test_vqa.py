"""VQA accuracy: the official rules on answers, its formula, and real answers of ten people."""

import json
from pathlib import Path

import pytest

from vljax.metrics.vqa import normalise_answer, vqa_accuracy

REAL = Path(__file__).parents[2] / "../shared/data/pjx/vqa_x"

# What the official script (GT-Vision-Lab/VQA) makes of answers.
OFFICIAL = {
    "The two dogs": "2 dogs",
    "None": "0",
    "red-blue": "red blue",
    "red, blue": "red blue",
    "1,000 people": "1000 people",
    "3.5": "3.5",
    "st. mary": "st mary",
    "5.": "5",
    "st.5": "st.5",
    "5.st": "5st",
    "dont know": "don't know",
    "couldnt've": "couldn't've",
    "somebody'd": "somebodyd",
    "T-shirt": "t shirt",
    "it's/that": "it's that",
    "an Apple": "apple",
    "shell": "shell",
}


@pytest.mark.parametrize("answer", OFFICIAL)
def test_answers_come_to_the_official_form(answer):
    assert normalise_answer(answer) == OFFICIAL[answer]


def test_three_of_ten_are_enough_and_each_is_left_out_in_turn():
    def people(agreeing):
        return ["cat"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]

    # With n of ten: n times min((n − 1) / 3, 1) and 10 − n times min(n / 3, 1), over ten.
    for count, expected in ((0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)):
        assert vqa_accuracy("cat", people(count)) == pytest.approx(expected)
    # Where all agree, words are compared as they stand.
    assert vqa_accuracy("Cat", ["cat"] * 10) == 0
    assert vqa_accuracy("The Cat", ["cat"] * 9 + ["a dog"]) == 1
    with pytest.raises(ValueError, match="there are none"):
        vqa_accuracy("cat", [])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real VQA-X samples are not here")
def test_real_answers():
    file = REAL / "v2_mscoco_val2014_annotations.part_val.json"
    rows = json.loads(file.read_text())["annotations"]
    assert len(rows) == 150
    people = [[one["answer"] for one in row["answers"]] for row in rows]
    majority = [
        vqa_accuracy(r["multiple_choice_answer"], p) for r, p in zip(rows, people, strict=True)
    ]
    yes = [vqa_accuracy("yes", p) for p in people]
    # The official script's figures on these questions.
    assert round(100 * sum(majority) / 150, 2) == 100.0
    assert round(100 * sum(yes) / 150, 2) == 33.0
    first = [vqa_accuracy(p[0], p) for p in people]
    assert round(100 * sum(first) / 150, 2) == 96.53
