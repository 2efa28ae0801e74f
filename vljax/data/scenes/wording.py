"""The words of scenes: every word that their texts use, and the captions.

All texts of scenes are written in one small vocabulary, in small letters; `words` splits them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    SIZES,
    Scene,
    SceneObject,
    place_name,
    relations,
)

#: Numbers of objects, from one on.
COUNTS = ("one", "two", "three", "four", "five")

#: Every word of scenes by its part of speech.
PARTS_OF_SPEECH: dict[str, tuple[str, ...]] = {
    "adjective": (*COLOURS, *SIZES, *BACKGROUNDS, "round"),
    "noun": (
        *SHAPES,
        *("photo", "picture", "object", "objects", "background", "color", "shape", "area"),
        *("center", "top", "bottom", "left", "right", "front"),
        *("corners", "tips", "arms", "notch"),
    ),
    "numeral": COUNTS,
    "verb": ("is", "are", "has", "covers", "add", "draw", "put"),
    "adverb": ("only", "how", "many", "yes"),
    "pronoun": ("there", "what"),
    "determiner": ("a", "the", "no"),
    "adposition": ("of", "on", "at", "with", "in", "above", "below", "behind", "around"),
    "conjunction": ("and", "or", "because"),
}

#: Every word of every text, sorted; texts split into words by `words`.
VOCABULARY = tuple(sorted(word for part in PARTS_OF_SPEECH.values() for word in part))

#: What tells a shape without its name.
SIGNS = {
    "circle": "is round",
    "square": "has four corners",
    "triangle": "has three corners",
    "star": "has five tips",
    "cross": "has four arms",
    "heart": "has a notch",
}


def words(text: str) -> list[str]:
    """Split a text into its words in small letters, without punctuation."""
    return re.findall("[a-z]+", text.lower())


def prompt(shape: str, colour: str) -> str:
    """The short text that names one kind of object: `"a photo of a red circle"`."""
    return f"a photo of a {colour} {shape}"


def listed(parts: Sequence[str]) -> str:
    """`"a"`, `"a and b"`, `"a, b and c"`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def sized(thing: SceneObject) -> str:
    """An object with its size: `"a large red circle"`."""
    return f"a {thing.size} {thing.name}"


def captions(scene: Scene, seed: int = 0) -> list[str]:
    """Five wordings of what a scene shows, from a short prompt to a full description.

    The first names every object (`"a photo of a red circle"`), the last also tells sizes, places
    or relations, and the background.

    Args:
        scene: the scene to describe.
        seed: chooses the order of objects and the relations told.
    """
    draws = Draws(seed, 1)
    ground = f"on a {scene.background.tone} background"
    if len(scene.objects) == 1:
        (thing,) = scene.objects
        place = f"at the {place_name(thing)}"
        return [
            prompt(thing.shape, thing.colour),
            f"{sized(thing)} {ground}",
            f"{sized(thing)} {place}",
            f"there is a {thing.name} {place}",
            f"a picture of {sized(thing)} {place} {ground}",
        ]
    order = draws.sample(range(len(scene.objects)), len(scene.objects))
    things = [scene.objects[i] for i in order]
    names = listed([f"a {thing.name}" for thing in things])
    between = relations(scene)
    first = draws.pick(between[order[0], order[1]])
    chain = f"{sized(things[0])} {first} {sized(things[1])}"
    for k in range(2, len(order)):
        anchor = draws.below(k)
        relation = draws.pick(between[order[k], order[anchor]])
        chain += f" and {sized(things[k])} {relation} the {things[anchor].name}"
    return [
        f"a photo of {names}",
        f"{COUNTS[len(order) - 1]} objects {ground} with {names}",
        f"there is a {things[0].name} {first} a {things[1].name}",
        chain,
        f"a picture of {chain} {ground}",
    ]
