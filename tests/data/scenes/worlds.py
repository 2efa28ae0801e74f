"""Scenes that several tests look at, and what of them can be told by eye."""

import re

from vljax.data import scenes
from vljax.data.scenes import (
    COLOURS,
    SHAPES,
    Scene,
    Scenes,
    masks,
)

SOURCE = Scenes(size=300, seed=11)
WORLDS = [SOURCE.scene(i) for i in range(len(SOURCE))]
PHRASE = re.compile(f"(?:({'|'.join(scenes.SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def named(scene: Scene, text: str) -> list[int]:
    """Indices of the objects that a text names; fails if one is not there."""
    found = []
    for size, colour, shape in PHRASE.findall(text):
        (i,) = [
            i
            for i, thing in enumerate(scene.objects)
            if (thing.shape, thing.colour) == (shape, colour)
        ]
        assert size in ("", scene.objects[i].size)
        found.append(i)
    return found


def holds(scene: Scene, i: int, relation: str, j: int) -> bool:
    """A relation judged by what is seen: places, and who covers whom in a large picture."""
    a, b = scene.objects[i], scene.objects[j]
    alone = [masks(Scene(scene.background, (thing,)), 96)[0] for thing in (a, b)]
    overlap = (alone[0] & alone[1]).any()
    return {
        "left of": a.x < b.x,
        "right of": a.x > b.x,
        "above": a.y < b.y,
        "below": a.y > b.y,
        "behind": overlap and i < j,
        "in front of": overlap and i > j,
    }[relation]
