"""Questions about scenes, with answers, reasons and the pixels that show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.explanations import explain
from vljax.data.scenes.programs import QUESTION_KINDS, Program, parse_question, program
from vljax.data.scenes.world import COLOURS, OPPOSITE, Scene, masks, relations


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question about a picture, its answer, and why.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        question: such as `"is the red circle behind the blue square?"`.
        answer: one of `ANSWERS`.
        justifications: wordings of why, such as `"because the red circle covers the blue square"`.
        about: indices of the objects that prove it; none when it is the background.
        evidence: the pixels that prove it.
        program: how to find the answer, see `vljax.data.scenes.programs`.
    """

    kind: str
    question: str
    answer: str
    justifications: tuple[str, ...]
    about: tuple[int, ...]
    evidence: Bool[np.ndarray, "h w"]
    program: Program

    @property
    def justification(self) -> str:
        """The first wording."""
        return self.justifications[0]


def _lone(scene: Scene, attribute: str) -> list[int]:
    """Objects whose shape (or colour) no other object has."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _ask(scene: Scene, kind: str, draws: Draws) -> str:
    """A question of a kind, about objects that chance chooses."""
    objects = scene.objects
    if kind == "colour":
        return f"what color is the {objects[draws.pick(_lone(scene, 'shape'))].shape}?"
    if kind == "shape":
        return f"what shape is the {objects[draws.pick(_lone(scene, 'colour'))].colour} object?"
    if kind == "count":
        return "how many objects are there?"
    if kind == "exist":
        a = objects[draws.below(len(objects))]
        if draws.below(2):
            return f"is there a {a.name}?"
        taken = {thing.colour for thing in objects if thing.shape == a.shape}
        return f"is there a {draws.pick([c for c in COLOURS if c not in taken])} {a.shape}?"
    if kind == "relation":
        i, j = draws.sample(range(len(objects)), 2)
        true = draws.pick(relations(scene)[i, j])
        asked = true if draws.below(2) else OPPOSITE[true]
        return f"is the {objects[i].name} {asked} the {objects[j].name}?"
    return "is the background light or dark?"


def answer_question(scene: Scene, question: str, image_size: int) -> QuestionAnswer:
    """Answer a question about a scene, with reasons and the pixels that show it.

    Args:
        scene: the scene asked about.
        question: in one of the forms in which `question_answer` asks.
        image_size: side of the evidence mask in pixels.

    Raises:
        UserError: it has none of these forms.
        ValueError: it does not apply to this scene.
    """
    kind, _ = parse_question(question)
    found = explain(scene, question)
    return QuestionAnswer(
        kind,
        question,
        found.answer,
        found.justifications,
        found.about,
        evidence_of(scene, found.about, image_size),
        program(question),
    )


def evidence_of(scene: Scene, about: Sequence[int], image_size: int) -> Bool[np.ndarray, "h w"]:
    """The visible pixels of some objects; of none, those of the background."""
    visible = masks(scene, image_size)
    if len(about):
        return np.any(visible[list(about)], axis=0)
    return ~np.any(visible, axis=0)


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
    return answer_question(scene, _ask(scene, draws.pick(usable), draws), image_size)
