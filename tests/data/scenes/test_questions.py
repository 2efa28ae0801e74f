"""Questions about scenes have right answers, with evidence."""

import numpy as np
import pytest

from tests.data.scenes.worlds import PHRASE, WORLDS, holds, named
from vljax.data import scenes
from vljax.data.scenes import (
    ANSWERS,
    COLOURS,
    RELATIONS,
    SHAPES,
    masks,
    question_answer,
)


def test_questions_are_answered_truly():
    kinds, answers = {}, set()
    for k in range(3 * len(WORLDS)):
        scene = WORLDS[k % len(WORLDS)]
        asked = question_answer(scene, 64, k)
        things = scene.objects
        kinds.setdefault(asked.kind, []).append(asked.answer)
        answers.add(asked.answer)
        visible = masks(scene, 64)
        about = list(asked.about)
        evidence = visible[about].any(0) if about else ~visible.any(0)
        np.testing.assert_array_equal(asked.evidence, evidence)
        assert asked.evidence.any()
        assert asked.justification.startswith("because ")
        if asked.kind == "colour":
            (shape,) = [s for s in SHAPES if f"the {s}?" in asked.question]
            assert [t.colour for t in things if t.shape == shape] == [asked.answer]
        elif asked.kind == "shape":
            (colour,) = [c for c in COLOURS if f"the {c} " in asked.question]
            assert [t.shape for t in things if t.colour == colour] == [asked.answer]
        elif asked.kind == "count":
            assert ("one", "two", "three", "four", "five").index(asked.answer) + 1 == len(things)
            assert sorted(named(scene, asked.justification)) == list(range(len(things)))
        elif asked.kind == "exist":
            ((_, colour, shape),) = PHRASE.findall(asked.question)
            present = any((t.shape, t.colour) == (shape, colour) for t in things)
            assert asked.answer == ("yes" if present else "no")
        elif asked.kind == "relation":
            i, j = named(scene, asked.question)
            (name,) = [r for r in RELATIONS if f" {r} the" in asked.question]
            assert holds(scene, i, name, j) == (asked.answer == "yes")
            assert {i, j} == set(asked.about) == set(named(scene, asked.justification))
        else:
            assert asked.answer == scene.background.tone
    assert set(kinds) == set(scenes.QUESTION_KINDS)
    assert answers == set(ANSWERS)
    for kind in ("exist", "relation"):
        assert 0.35 < np.mean([answer == "yes" for answer in kinds[kind]]) < 0.65


def test_a_question_that_cannot_be_asked_is_refused():
    single = next(scene for scene in WORLDS if len(scene.objects) == 1)
    with pytest.raises(ValueError, match="relation"):
        question_answer(single, 64, kinds=("relation",))
