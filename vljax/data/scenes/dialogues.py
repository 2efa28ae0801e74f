"""Dialogues that build a scene, one object a turn."""

from __future__ import annotations

import dataclasses
from typing import Any

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.wording import sized
from vljax.data.scenes.world import Scene, place_name, relations

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
