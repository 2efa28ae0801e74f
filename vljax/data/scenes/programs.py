"""Questions as programs: what to look for in a scene, step by step, and what comes out.

A program is a sequence of steps, each a text of `STEPS`, in the manner of CLEVR's functional
programs (Johnson et al., *CLEVR*, 2017, section 3). It starts from all objects of a scene:

| step | takes | gives |
|---|---|---|
| `filter VALUE` | objects | those of a colour or a shape |
| `unique` | objects | the only one; without one the question does not apply |
| `relate RELATION` | an object | those that stand so to it |
| `count`, `exist` | objects | a number word; yes or no |
| `query colour`, `query shape` | an object | its colour, its shape |
| `query background` | nothing | the ground's tone |
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.wording import COUNTS, words
from vljax.data.scenes.world import BACKGROUNDS, COLOURS, RELATIONS, Scene, relations
from vljax.errors import UserError

QUESTION_KINDS = ("colour", "shape", "count", "exist", "relation", "background")

#: Every answer to a question.
ANSWERS = ("yes", "no", *COUNTS, *COLOURS, *SHAPES, *BACKGROUNDS)

Program = tuple[str, ...]

#: Every step of a program.
STEPS = (
    *(f"filter {value}" for value in (*COLOURS, *SHAPES)),
    "unique",
    *(f"relate {relation}" for relation in RELATIONS),
    "count",
    "exist",
    "query colour",
    "query shape",
    "query background",
)

_COLOUR, _SHAPE, _RELATION = (f"({'|'.join(names)})" for names in (COLOURS, SHAPES, RELATIONS))
_QUESTIONS = {
    "colour": f"what color is the {_SHAPE}",
    "shape": f"what shape is the {_COLOUR} object",
    "count": "how many objects are there",
    "exist": f"is there a {_COLOUR} {_SHAPE}",
    "relation": f"is the {_COLOUR} {_SHAPE} {_RELATION} the {_COLOUR} {_SHAPE}",
    "background": "is the background light or dark",
}


def parse_question(question: str) -> tuple[str, tuple[str, ...]]:
    """The kind of a question, and the words that fill it, in their order.

    Raises:
        UserError: it is none of those that are asked of scenes.
    """
    said = " ".join(words(question))
    for kind, form in _QUESTIONS.items():
        if found := re.fullmatch(form, said):
            return kind, found.groups()
    raise UserError(
        f"question={question!r}: ask one of those of scenes, such as 'what color is the star?', "
        "'how many objects are there?', 'is the red star left of the blue heart?'"
    )


def program(question: str) -> Program:
    """The program of a question.

    Raises:
        UserError: it is none of those that are asked of scenes.
    """
    kind, said = parse_question(question)
    if kind == "relation":
        colour, shape, relation, other_colour, other_shape = said
        there = (f"filter {other_colour}", f"filter {other_shape}", "unique", f"relate {relation}")
        return (*there, f"filter {colour}", f"filter {shape}", "exist")
    found = tuple(f"filter {value}" for value in said)
    last = {
        "colour": ("unique", "query colour"),
        "shape": ("unique", "query shape"),
        "count": ("count",),
        "exist": ("exist",),
        "background": ("query background",),
    }
    return found + last[kind]


def execute(program: Sequence[str], scene: Scene) -> str | None:
    """What a program finds in a scene.

    Args:
        program: Steps from `STEPS`, such as `program(question)`.
        scene: Where to look.

    Returns:
        One of `ANSWERS`; None where the question does not apply: its object is not there, or not
        alone, or there is nothing to count.

    Raises:
        ValueError: a step is unknown, or the steps end without an answer.
    """
    things = scene.objects
    chosen = list(range(len(things)))
    for step in program:
        operation, _, value = step.partition(" ")
        if step not in STEPS:
            raise ValueError(f"step {step!r} is none of {', '.join(STEPS)}")
        if operation == "filter":
            chosen = [i for i in chosen if value in (things[i].colour, things[i].shape)]
        elif operation == "relate":
            between = relations(scene)
            chosen = [i for i, j in between if j in chosen and value in between[i, j]]
        elif step == "exist":
            return "yes" if chosen else "no"
        elif step == "count":
            return COUNTS[len(chosen) - 1] if chosen else None
        elif step == "query background":
            return scene.background.tone
        elif len(chosen) != 1:  # unique, or a query of something not alone
            return None
        elif operation == "query":
            return str(getattr(things[chosen[0]], value))
    raise ValueError(f"the program {tuple(program)} ends without an answer")
