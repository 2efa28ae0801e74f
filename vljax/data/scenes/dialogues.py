"""Dialogues that build a scene, one object a turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.wording import sized
from vljax.data.scenes.world import (
    MARGIN,
    Scene,
    SceneObject,
    fits,
    place_name,
    relations,
    visibility,
)

_VERBS = ("add", "draw", "put")


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue that builds a scene.

    Attributes:
        instruction: such as `"add a small red cross behind the blue square"`.
        scene: the scene after this turn; `render` paints it.
        added: index of the new object in that scene.
        relation: what the instruction says of it, from `RELATIONS`; None in the first turn.
        anchor: index in that scene of the object it is placed by; None in the first turn.
    """

    instruction: str
    scene: Scene
    added: int
    relation: str | None
    anchor: int | None


def dialogue(scene: Scene, seed: int = 0) -> tuple[Turn, ...]:
    """Build a scene by instructions, one object a turn.

    The order of turns is not that of depth: an object may be added behind what is there. Every
    object stays as it is once added, and the last turn's scene is the scene itself.

    Args:
        scene: the scene to arrive at.
        seed: chooses the order, the verbs and the relations told.
    """
    draws = Draws(seed, 3)
    between = relations(scene)
    turns: list[Turn] = []
    said: dict[str, Any]
    present: list[int] = []
    for i in draws.sample(range(len(scene.objects)), len(scene.objects)):
        thing = scene.objects[i]
        depth = sorted([*present, i])
        verb = draws.pick(_VERBS)
        if present:
            anchor = draws.pick(present)
            relation = draws.pick(between[i, anchor])
            where = f"{relation} the {scene.objects[anchor].name}"
            said = {"relation": relation, "anchor": depth.index(anchor)}
        else:
            where = f"at the {place_name(thing)}"
            said = {"relation": None, "anchor": None}
        now = Scene(scene.background, tuple(scene.objects[j] for j in depth))
        turns.append(Turn(f"{verb} {sized(thing)} {where}", now, depth.index(i), **said))
        present.append(i)
    return tuple(turns)


# Places tried for an object before all is drawn anew, and how often that is tried.
_PLACES = 100
_ATTEMPTS = 20


def follow(
    turns: Sequence[Turn], seed: int = 0, *, heed: bool = True, min_visible: float = 0.5
) -> tuple[Scene, ...]:
    """Draw a dialogue anew: what one sees who follows every instruction, and nothing else.

    A text does not fix a place: each object goes to a random one of those that it allows. So good
    can a perfect follower's agreement with the dialogue's own pictures be.

    Args:
        turns: A dialogue; sizes, tints and background are kept.
        seed: Chooses the places.
        heed: Whether the places told are heeded; else any place does, which is chance.
        min_visible: Share of each object that stays in sight.

    Returns:
        The scene after each turn; the dialogue's own where no other was found.
    """
    draws = Draws(seed, 10)
    for _ in range(_ATTEMPTS):
        scenes = _anew(turns, draws, heed, min_visible)
        if scenes is not None:
            return scenes
    return tuple(turn.scene for turn in turns)


def _anew(
    turns: Sequence[Turn], draws: Draws, heed: bool, min_visible: float
) -> tuple[Scene, ...] | None:
    """One attempt; None where an object found no place."""
    scenes: list[Scene] = []
    objects: list[SceneObject] = []
    for turn in turns:
        told = turn.scene.objects[turn.added]
        reach = told.radius + MARGIN
        anchor = None
        if turn.anchor is not None:
            name = turn.scene.objects[turn.anchor].name
            anchor = next(i for i, one in enumerate(objects) if one.name == name)
        depth = len(objects)
        if heed and anchor is not None and turn.relation == "behind":
            depth = anchor
        for _ in range(_PLACES):
            x, y = draws.uniform(reach, 1 - reach), draws.uniform(reach, 1 - reach)
            thing = dataclasses.replace(told, x=x, y=y)
            tried = [*objects[:depth], thing, *objects[depth:]]
            if not fits(thing, objects, 0.0) or min(visibility(tried)) < min_visible:
                continue
            scene = Scene(turn.scene.background, tuple(tried))
            if anchor is None:
                right = place_name(thing) == place_name(told)
            else:
                right = turn.relation in relations(scene)[depth, anchor + (depth <= anchor)]
            if right or not heed:
                break
        else:
            return None
        objects = tried
        scenes.append(scene)
    return tuple(scenes)
