"""Requests to edit a scene: another colour, another shape, another background."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    Scene,
    SceneObject,
    draw_background,
    masks,
    visibility,
)

EDIT_KINDS = ("colour", "shape", "background")


@dataclasses.dataclass(frozen=True, slots=True)
class EditRequest:
    """A wish to change one thing in a picture and nothing else.

    Attributes:
        kind: one of `EDIT_KINDS`.
        index: the object to change; None when it is the background.
        source_prompt: what is there, such as `"a red circle"`.
        edit_prompt: what shall be there, such as `"a blue circle"`.
        mask: the pixels that may change.
        target: the scene as wished; `render` paints it.
    """

    kind: str
    index: int | None
    source_prompt: str
    edit_prompt: str
    mask: Bool[np.ndarray, "h w"]
    target: Scene


def edit_requests(
    scene: Scene, image_size: int, seed: int = 0, kinds: Sequence[str] = EDIT_KINDS
) -> tuple[EditRequest, ...]:
    """One request of each kind: another colour, another shape, another background.

    A new colour keeps the object's outline, and the mask is what is visible of it. A new shape
    stands at the same place, and the mask is what is visible of either. A new background leaves the
    objects, and the mask is all but them.

    Args:
        scene: the scene to edit.
        image_size: side of the masks in pixels.
        seed: chooses the object, the new colour, shape and ground.
        kinds: kinds of request, in the order wished.
    """
    draws = Draws(seed, 4)
    visible = masks(scene, image_size)
    i = draws.below(len(scene.objects))
    old = scene.objects[i]
    noun = f"a {old.name}"

    def replaced(thing: SceneObject) -> Scene:
        return Scene(scene.background, (*scene.objects[:i], thing, *scene.objects[i + 1 :]))

    # A colour that the scene has not got keeps the promise that equal colours never touch.
    used = {thing.colour for thing in scene.objects}
    colour = draws.pick([colour for colour in COLOURS if colour not in used])
    recoloured = dataclasses.replace(old, colour=colour)

    taken = {thing.shape for thing in scene.objects if thing.colour == old.colour}
    shapes = draws.sample([s for s in SHAPES if s not in taken], len(SHAPES) - len(taken))
    reshaped = max(
        (dataclasses.replace(old, shape=shape) for shape in shapes),
        key=lambda thing: min(0.6, *visibility(replaced(thing).objects)),
    )

    tone = scene.background.tone
    other = BACKGROUNDS[1 - BACKGROUNDS.index(tone)]
    reground = Scene(draw_background(draws, other), scene.objects)

    made = {
        "colour": lambda: EditRequest(
            "colour", i, noun, f"a {recoloured.name}", visible[i], replaced(recoloured)
        ),
        "shape": lambda: EditRequest(
            "shape",
            i,
            noun,
            f"a {reshaped.name}",
            visible[i] | masks(replaced(reshaped), image_size)[i],
            replaced(reshaped),
        ),
        "background": lambda: EditRequest(
            "background",
            None,
            f"a {tone} background",
            f"a {other} background",
            ~np.any(visible, axis=0),
            reground,
        ),
    }
    return tuple(made[kind]() for kind in kinds)
