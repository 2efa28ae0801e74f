"""Manipulations of a scene's entities: a word, a target text, and the picture as wished.

A scene's entities are its objects and its background, which serves as stuff. The word names the
entity, the text says what shall be there, and the truth is known: the entity's mask, and the scene
after the wish. With two colours the text names two objects at once ("a red circle and a blue
star"), as figure 8 of SeMani's paper asks for two colours of one bird.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.edits import EDIT_KINDS, edit_requests
from vljax.data.scenes.wording import captions, listed
from vljax.data.scenes.world import COLOURS, Scene, SceneObject, masks

TWO_COLOURS = "two colours"
MANIPULATION_KINDS = (*EDIT_KINDS, TWO_COLOURS)


@dataclasses.dataclass(frozen=True, slots=True)
class SceneManipulation:
    """What shall become of an entity of a scene.

    Attributes:
        kind: one of `MANIPULATION_KINDS`.
        before: the scene.
        after: the scene as wished.
        changed: the objects that change, as both scenes number them; none where the background
            does.
        caption: what the scene shows.
        after_caption: what the scene as wished shows, worded alike.
        entity: the word for it: "circle", or "red circle" where there are two; "background".
        text: what shall be there: "a blue circle".
        own_text: what is there, worded alike.
        mask: the pixels of the entity.
    """

    kind: str
    before: Scene
    after: Scene
    changed: tuple[int, ...]
    caption: str
    after_caption: str
    entity: str
    text: str
    own_text: str
    mask: Bool[np.ndarray, "h w"]


def entity_word(scene: Scene, index: int) -> str:
    """What names an object of a scene and nothing else there: its shape, if no other has it."""
    thing = scene.objects[index]
    same = [other for other in scene.objects if other.shape == thing.shape]
    return thing.shape if len(same) == 1 else thing.name


def scene_manipulation(
    scene: Scene, image_size: int, seed: int = 0, kind: str = "colour"
) -> SceneManipulation:
    """The manipulation of one kind of a scene.

    Args:
        scene: the scene; for two colours, of two objects or more.
        image_size: side of the mask in pixels.
        seed: chooses the entity and what becomes of it.
        kind: one of `MANIPULATION_KINDS`.
    """
    if kind == TWO_COLOURS:
        changed, after, entity, text, mask = _two_colours(scene, image_size, seed)
        own = listed([f"a {scene.objects[i].name}" for i in changed])
    else:
        (edit,) = edit_requests(scene, image_size, seed, (kind,))
        after, text, own = edit.target, edit.edit_prompt, edit.source_prompt
        if edit.index is None:
            changed, entity, mask = (), "background", edit.mask
        else:
            changed = (edit.index,)
            entity = entity_word(scene, edit.index)
            mask = masks(scene, image_size)[edit.index]
    # The wording that names every object and the background, and no more.
    told = [captions(one, seed)[1] for one in (scene, after)]
    return SceneManipulation(kind, scene, after, changed, told[0], told[1], entity, text, own, mask)


def _two_colours(
    scene: Scene, image_size: int, seed: int
) -> tuple[tuple[int, ...], Scene, str, str, Bool[np.ndarray, "h w"]]:
    draws = Draws(seed, 9)
    first, second = draws.sample(range(len(scene.objects)), 2)
    used = {thing.colour for thing in scene.objects}
    fresh = draws.sample([colour for colour in COLOURS if colour not in used], 2)
    recoloured: dict[int, SceneObject] = {
        i: dataclasses.replace(scene.objects[i], colour=colour)
        for i, colour in zip((first, second), fresh, strict=True)
    }
    things = tuple(recoloured.get(i, thing) for i, thing in enumerate(scene.objects))
    word = listed([entity_word(scene, i) for i in (first, second)])
    text = listed([f"a {recoloured[i].name}" for i in (first, second)])
    visible = masks(scene, image_size)
    return (
        (first, second),
        Scene(scene.background, things),
        word,
        text,
        visible[first] | visible[second],
    )
