"""Whether a text is true of a scene: its clauses are read and checked one by one.

The texts are those of scenes: justifications, captions, and whatever a network writes in their
words. A text is clauses between commas and "and", each of a form below; one that is none of them
is not understood. A THING is an article with what is known of an object: "a large red star", "the
object at the top left", "the only star", "no blue object".

```
there is THING (, THING …)     THING is red | small | a circle | at the top left
THING has four corners          THING is left of THING | covers THING
there are three objects         the background is dark, the area around the objects is dark, …
```

"The" claims no more than "a": somewhere in the scene is a thing of which the rest is true. "The
only" claims also that there is but one such thing, "no" that there is none. Things in one list are
different things.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.wording import COUNTS, SIGNS
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SIZES,
    Scene,
    place_name,
    relations,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a text says of a scene.

    Attributes:
        understood: Whether every clause has a known form; otherwise it is not true either.
        true: Whether every clause holds.
        named: Indices of the objects that it speaks of, sorted; of a thing that is not there, none.
        background: Whether it speaks of the background.
    """

    understood: bool
    true: bool
    named: tuple[int, ...]
    background: bool


class NamedPair(NamedTuple):
    """A kind of object that a text names by colour and shape, such as "red circle".

    Attributes:
        place: Of the shape's word; the colour's is before it.
        colour: Of the object.
        shape: Likewise.
    """

    place: int
    colour: str
    shape: str


def named_pairs(words: Sequence[str]) -> list[NamedPair]:
    """The kinds of objects that a text names, in order, whatever else it says.

    Args:
        words: Of the text, signs by themselves.
    """
    return [
        NamedPair(i, words[i - 1], word)
        for i, word in enumerate(words)
        if i and word in SHAPES and words[i - 1] in COLOURS
    ]


def is_true(text: str, scene: Scene) -> bool:
    """Whether all of a text is understood and holds in a scene."""
    return read(text, scene).true


def read(text: str, scene: Scene) -> Reading:
    """Read a text and check it against a scene."""
    text = " ".join(re.sub("[.!?]", " ", text.lower().replace(",", " , ")).split())
    text = re.sub("^because ", "", text)
    text = re.sub("^a (photo|picture) of ", "there is ", text)
    found: list[_Found | None] = []
    if opened := re.match(_OPENING, text):  # as captions of several objects begin
        found += [_counted(scene, opened), _ground(scene, opened)]
        text = "there are " + text[opened.end() :]
    listed: list[list[int]] = []  # for each thing of the list at hand, what it may be
    for clause in re.split(" ?(?:,|\\band\\b) ?", text):
        if not clause:
            continue
        if told := re.fullmatch(_ON_BACKGROUND, clause):
            found.append(_ground(scene, told))
            clause = told["rest"]
        entry = re.fullmatch(_LISTED, clause)
        if entry is None or entry["there"]:
            listed = []
        if entry is None or entry["a_article"] == "no":
            found.append(_check(scene, clause))
        else:
            listed.append(_things(scene, entry, "a"))
            found.append(_Found(_all_different(listed, scene), listed[-1][:1]))
    understood = bool(found) and None not in found
    known = [one for one in found if one is not None]
    return Reading(
        understood,
        understood and all(one.true for one in known),
        tuple(sorted({i for one in known for i in one.named})),
        any(one.background for one in known),
    )


class _Found(NamedTuple):
    """Whether a clause holds, and what it speaks of."""

    true: bool
    named: Sequence[int]
    background: bool = False


def _either(names: Iterable[str]) -> str:
    return f"(?:{'|'.join(names)})"


def _thing(prefix: str) -> str:
    """The form of a thing; its parts are groups whose names begin with the prefix."""
    return (
        f"(?P<{prefix}_article>a|the only|the|no) (?:(?P<{prefix}_size>{_either(SIZES)}) )?"
        f"(?:(?P<{prefix}_colour>{_either(COLOURS)}) )?"
        f"(?P<{prefix}_shape>{_either((*SHAPES, 'object'))})"
        f"(?: at the (?P<{prefix}_place>{_either(PLACES)}))?"
    )


_TONE = f"(?P<tone>{_either(BACKGROUNDS)})"
_COUNT = f"(?P<count>{_either(COUNTS)})"
_OPENING = f"{_COUNT} objects on a {_TONE} background with "
_ON_BACKGROUND = f"(?P<rest>(?!the objects? (?:is|are) on).+) on a {_TONE} background"
_LISTED = f"(?P<there>there (?:is|are) )?{_thing('a')}"


def _things(scene: Scene, said: re.Match[str], prefix: str) -> list[int]:
    """The objects that a thing can be."""
    size, colour, shape, place = (
        said[f"{prefix}_{part}"] for part in ("size", "colour", "shape", "place")
    )
    return [
        i
        for i, thing in enumerate(scene.objects)
        if size in (None, thing.size)
        and colour in (None, thing.colour)
        and shape in ("object", thing.shape)
        and place in (None, place_name(thing))
    ]


def _all_different(options: Sequence[Sequence[int]], scene: Scene) -> bool:
    """Whether each can be another of its options; of more things than a scene has, no."""
    return len(options) <= len(scene.objects) and any(
        len({*chosen}) == len(chosen) for chosen in itertools.product(*options)
    )


def _claim(scene: Scene, said: re.Match[str], holds: Callable[[int], bool]) -> _Found:
    """That something holds of the thing at the beginning."""
    options = _things(scene, said, "a")
    right = [i for i in options if holds(i)]
    if said["a_article"] == "no":
        return _Found(not right, options)
    if said["a_article"] == "the only":
        return _Found(len(options) == 1 and bool(right), options)
    return _Found(bool(right), (right or options)[:1])


def _counted(scene: Scene, said: re.Match[str]) -> _Found:
    right = len(scene.objects) == COUNTS.index(said["count"]) + 1
    return _Found(right, range(len(scene.objects)))


def _ground(scene: Scene, said: re.Match[str]) -> _Found:
    return _Found(scene.background.tone == said["tone"], (), background=True)


def _is_there(scene: Scene, said: re.Match[str]) -> _Found:
    return _claim(scene, said, lambda i: True)


def _is_value(scene: Scene, said: re.Match[str]) -> _Found:
    things = scene.objects
    return _claim(scene, said, lambda i: said["value"] in (things[i].colour, things[i].size))


def _is_at(scene: Scene, said: re.Match[str]) -> _Found:
    return _claim(scene, said, lambda i: said["place"] == place_name(scene.objects[i]))


def _has_sign(scene: Scene, said: re.Match[str]) -> _Found:
    return _claim(scene, said, lambda i: SIGNS[scene.objects[i].shape] == said["sign"])


def _is_a(scene: Scene, said: re.Match[str]) -> _Found:
    others = _things(scene, said, "b")
    return _claim(scene, said, lambda i: i in others)


def _stands(scene: Scene, said: re.Match[str]) -> _Found:
    relation = said["relation"] if said["relation"] != "covers" else "in front of"
    between, others = relations(scene), _things(scene, said, "b")

    def partner(i: int) -> list[int]:
        return [j for j in others if i != j and relation in between[i, j]][:1]

    found = _claim(scene, said, lambda i: bool(partner(i)))
    beside = [j for i in found.named for j in partner(i) or others[:1]]
    return found._replace(named=[*found.named, *beside])


_FORMS: tuple[tuple[str, Callable[[Scene, re.Match[str]], _Found]], ...] = (
    (f"(?:the background|the area around the objects?) is {_TONE}", _ground),
    (f"the objects? (?:is|are) on a {_TONE} background", _ground),
    (f"there (?:is|are) (?:only )?{_COUNT} objects?", _counted),
    (f"(?:there (?:is|are) )?{_thing('a')}", _is_there),
    (f"{_thing('a')} is (?P<value>{_either((*COLOURS, *SIZES))})", _is_value),
    (f"{_thing('a')} is at the (?P<place>{_either(PLACES)})", _is_at),
    (f"{_thing('a')} (?P<sign>{_either(SIGNS.values())})", _has_sign),
    (f"{_thing('a')} is {_thing('b')}", _is_a),
    (
        f"(?:there is )?{_thing('a')} (?:is )?(?P<relation>{_either((*RELATIONS, 'covers'))}) "
        f"{_thing('b')}",
        _stands,
    ),
)
_COMPILED = tuple((re.compile(form), check) for form, check in _FORMS)


def _check(scene: Scene, clause: str) -> _Found | None:
    """The first form that a clause has, checked; None if it has none."""
    for form, check in _COMPILED:
        if said := form.fullmatch(clause):
            return check(scene, said)
    return None
