"""Scenes that differ in just what decides: without some objects, or with another answer.

A scene follows from its objects, so that a counterfactual picture is exact: everything else is the
same to the last bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.explanations import explain
from vljax.data.scenes.programs import execute, parse_question, program
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    MAX_OBJECTS,
    SIZES,
    Scene,
    SceneObject,
    draw_background,
    draw_object,
    fits,
)

#: Least share of each object of a complement that stays in sight.
_MIN_VISIBLE = 0.5
_TRIES = 300


def without(scene: Scene, objects: Collection[int]) -> Scene:
    """The scene without some of its objects, given by their indices."""
    kept = tuple(thing for i, thing in enumerate(scene.objects) if i not in objects)
    return Scene(scene.background, kept)


def complement(scene: Scene, question: str, seed: int = 0) -> Scene:
    """A scene that differs a little, so that the same question has another answer.

    As VQA v2's complementary pictures (Goyal et al. 2017). What is asked of decides what changes:
    the object's colour or shape, the number of objects, which of two objects stands where, the
    ground. The first change that gives another answer and a scene in which every object can be seen
    is taken; where a crowd leaves no room for one, objects that have no part in the answer go.

    Args:
        scene: The scene of the question.
        question: In one of the forms of `vljax.data.scenes.programs`; applies to the scene.
        seed: Chooses what changes.

    Raises:
        UserError: The question has none of these forms.
        ValueError: It does not apply to the scene.
    """
    kind, said = parse_question(question)
    steps, found = program(question), explain(scene, question)
    draws = Draws(seed, 9)
    # In a crowd there may be no room for a change; then bystanders go as well.
    alone = without(scene, {*range(len(scene.objects))} - {*found.about})
    for now in (scene, alone):
        for changed in _changes(now, kind, said, found.answer, draws):
            if execute(steps, changed) not in (None, found.answer) and _is_sound(changed):
                return changed
    raise ValueError(f"no change of this scene gives {question!r} another answer")


def _is_sound(scene: Scene) -> bool:
    """Whether no two objects are of one kind, and all can be seen."""
    things = scene.objects
    alone = len({thing.label for thing in things}) == len(things)
    return alone and all(
        fits(thing, things[:depth], _MIN_VISIBLE) for depth, thing in enumerate(things)
    )


def _replaced(scene: Scene, i: int, thing: SceneObject) -> Scene:
    return Scene(scene.background, (*scene.objects[:i], thing, *scene.objects[i + 1 :]))


def _changes(
    scene: Scene, kind: str, said: tuple[str, ...], answer: str, draws: Draws
) -> Iterator[Scene]:
    """Scenes that may have another answer, the nearest first."""
    things = scene.objects
    if kind == "background":
        tone = BACKGROUNDS[1 - BACKGROUNDS.index(answer)]
        yield Scene(draw_background(draws, tone), things)
    elif kind == "count":
        fewer = without(scene, (draws.below(len(things)),))
        if len(things) > 1 and draws.below(2):
            yield fewer
        for _ in range(_TRIES if len(things) < MAX_OBJECTS else 0):
            name = draws.pick(SHAPES), draws.pick(COLOURS), draws.pick(SIZES)
            if added := draw_object(draws, *name, things, _MIN_VISIBLE):
                yield Scene(scene.background, (*things, added))
        yield fewer
    elif kind == "relation":
        yield from _moved(scene, said, draws)
    elif kind == "exist" and answer == "no":
        wished = [dataclasses.replace(thing, colour=said[0], shape=said[1]) for thing in things]
        alike = [
            (thing.shape == new.shape) + (thing.colour == new.colour)
            for thing, new in zip(things, wished, strict=True)
        ]
        order = draws.sample(range(len(things)), len(things))
        for i in sorted(order, key=lambda i: -alike[i]):
            yield _replaced(scene, i, wished[i])
    else:
        (i,) = (i for i, one in enumerate(things) if {*said} <= {one.shape, one.colour})
        if kind == "shape":
            changed = [dataclasses.replace(things[i], shape=shape) for shape in SHAPES]
        else:
            changed = [dataclasses.replace(things[i], colour=colour) for colour in COLOURS]
        for thing in draws.sample(changed, len(changed)):
            yield _replaced(scene, i, thing)


def _moved(scene: Scene, said: tuple[str, ...], draws: Draws) -> Iterator[Scene]:
    """Two objects in each other's depth or place, or one of them elsewhere."""
    things = scene.objects
    found = {thing.name: i for i, thing in enumerate(things)}
    i, j = (found.get(f"{colour} {shape}") for colour, shape in (said[:2], said[3:]))
    if i is None or j is None:
        return
    a, b = things[i], things[j]
    if said[2] in ("behind", "in front of"):
        yield _replaced(_replaced(scene, i, b), j, a)
    there = dataclasses.replace(b, shape=a.shape, colour=a.colour, tint=a.tint)
    here = dataclasses.replace(a, shape=b.shape, colour=b.colour, tint=b.tint)
    yield _replaced(_replaced(scene, i, here), j, there)
    for _ in range(_TRIES):
        k = draws.pick((i, j))
        reach = things[k].radius + MARGIN
        x, y = draws.uniform(reach, 1 - reach), draws.uniform(reach, 1 - reach)
        others = without(scene, (k,)).objects
        depth = draws.below(len(things))
        moved = dataclasses.replace(things[k], x=x, y=y)
        yield Scene(scene.background, (*others[:depth], moved, *others[depth:]))
