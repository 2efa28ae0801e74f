"""Questions about scenes, with answers, reasons and the pixels that show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.wording import COUNTS, SIGNS, listed
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    Scene,
    grid_cell,
    masks,
    place_name,
    relations,
)

QUESTION_KINDS = ("colour", "shape", "count", "exist", "relation", "background")

#: Every answer that `question_answer` gives.
ANSWERS = ("yes", "no", *COUNTS, *COLOURS, *SHAPES, *BACKGROUNDS)


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question about a picture, its answer, and why.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        question: such as `"is the red circle behind the blue square?"`.
        answer: one of `ANSWERS`.
        justification: such as `"because the red circle covers the blue square"`.
        about: indices of the objects that prove it; none when it is the background.
        evidence: the pixels that prove it.
    """

    kind: str
    question: str
    answer: str
    justification: str
    about: tuple[int, ...]
    evidence: Bool[np.ndarray, "h w"]


def _lone(scene: Scene, attribute: str) -> list[int]:
    """Objects whose shape (or colour) no other object has."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _ask(scene: Scene, kind: str, draws: Draws) -> tuple[str, str, str, tuple[int, ...]]:
    """Question, answer, justification, and the objects that it rests on."""
    objects = scene.objects
    if kind == "colour":
        i = draws.pick(_lone(scene, "shape"))
        a = objects[i]
        why = f"because the {a.shape} at the {place_name(a)} is {a.colour}"
        return f"what color is the {a.shape}?", a.colour, why, (i,)
    if kind == "shape":
        i = draws.pick(_lone(scene, "colour"))
        a = objects[i]
        why = f"because the {a.colour} object at the {place_name(a)} {SIGNS[a.shape]}"
        return f"what shape is the {a.colour} object?", a.shape, why, (i,)
    if kind == "count":
        verb = "is" if len(objects) == 1 else "are"
        why = f"because there {verb} " + listed([f"a {thing.name}" for thing in objects])
        everything = tuple(range(len(objects)))
        return "how many objects are there?", COUNTS[len(objects) - 1], why, everything
    if kind == "exist":
        i = draws.below(len(objects))
        a = objects[i]
        if draws.below(2):
            why = f"because there is a {a.name} at the {place_name(a)}"
            return f"is there a {a.name}?", "yes", why, (i,)
        same = tuple(j for j, b in enumerate(objects) if b.shape == a.shape)
        taken = {objects[j].colour for j in same}
        other = draws.pick([colour for colour in COLOURS if colour not in taken])
        if len(same) == 1:
            why = f"because the only {a.shape} is {a.colour}"
        else:
            why = "because " + listed(
                [
                    f"the {a.shape} at the {place_name(objects[j])} is {objects[j].colour}"
                    for j in same
                ]
            )
        return f"is there a {other} {a.shape}?", "no", why, same
    if kind == "relation":
        i, j = draws.sample(range(len(objects)), 2)
        a, b = objects[i], objects[j]
        true = draws.pick(relations(scene)[i, j])
        axis = 1 if true in ("above", "below") else 0
        asked, answer = (true, "yes") if draws.below(2) else (OPPOSITE[true], "no")
        if true in ("behind", "in front of"):
            front, back = (a, b) if true == "in front of" else (b, a)
            why = f"because the {front.name} covers the {back.name}"
        elif grid_cell(a)[axis] != grid_cell(b)[axis]:
            why = f"because the {a.name} is at the {place_name(a)} and the {b.name} is at the "
            why += place_name(b)
        else:
            why = f"because the {a.name} is {true} the {b.name}"
        return f"is the {a.name} {asked} the {b.name}?", answer, why, (i, j)
    tone = scene.background.tone
    why = f"because the area around the object{'s' * (len(objects) > 1)} is {tone}"
    return "is the background light or dark?", tone, why, ()


def question_answer(
    scene: Scene, image_size: int, seed: int = 0, kinds: Sequence[str] = QUESTION_KINDS
) -> QuestionAnswer:
    """Ask something of a scene and answer it, with a reason and the pixels that show it.

    Args:
        scene: the scene asked about.
        image_size: side of the evidence mask in pixels.
        seed: chooses the question.
        kinds: kinds to choose from; those that do not apply are passed over (a relation in a scene
            of one object, the colour of a shape that occurs twice).

    Raises:
        ValueError: if none of `kinds` applies to this scene.
    """
    applies = {
        "colour": bool(_lone(scene, "shape")),
        "shape": bool(_lone(scene, "colour")),
        "relation": len(scene.objects) > 1,
    }
    usable = [kind for kind in kinds if applies.get(kind, True)]
    if not usable:
        raise ValueError(f"no question of {tuple(kinds)} applies to this scene")
    draws = Draws(seed, 2)
    kind = draws.pick(usable)
    question, answer, why, about = _ask(scene, kind, draws)
    visible = masks(scene, image_size)
    evidence = np.any(visible[list(about)], axis=0) if about else ~np.any(visible, axis=0)
    return QuestionAnswer(kind, question, answer, why, about, evidence)
