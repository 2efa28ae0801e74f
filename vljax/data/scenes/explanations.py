"""Why an answer is right: justifications in several wordings, and the objects that they rest on.

Everything follows from the question and the scene, without chance. Each justification is true of
the scene (`vljax.data.scenes.truth` checks it) and names the objects that show the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vljax.data.scenes.programs import execute, parse_question, program
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.wording import SIGNS, listed, sized
from vljax.data.scenes.world import (
    OPPOSITE,
    PLACES,
    Scene,
    SceneObject,
    grid_cell,
    place_name,
    relations,
    shared_extent,
)

#: Justifications of an answer: as many as VQA-X's references.
WORDINGS = 3

#: The relations in which an activity is told; of two objects, one stands so to the other.
_ACTIVE = ("left of", "above", "in front of")
#: Every name that `activity` gives to a scene.
ACTIVITIES = (
    *(f"{shape} at the {place}" for shape in SHAPES for place in PLACES),
    *(f"{a} {relation} {b}" for a in SHAPES for relation in _ACTIVE for b in SHAPES),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """An answer, and why.

    Attributes:
        answer: One of `ANSWERS`, or of `ACTIVITIES`.
        justifications: `WORDINGS` sentences, each a reason of its own: "because …".
        about: Indices of the objects that show it; none when it is the background.
    """

    answer: str
    justifications: tuple[str, ...]
    about: tuple[int, ...]


def explain(scene: Scene, question: str) -> Explanation:
    """Answer a question about a scene, with reasons.

    Raises:
        UserError: it is none of those that are asked of scenes.
        ValueError: it does not apply to this scene.
    """
    kind, said = parse_question(question)
    answer = execute(program(question), scene)
    if answer is None:
        raise ValueError(f"{question!r} does not apply to this scene")
    reasons, about = _REASONS[kind](scene, answer, said)
    return Explanation(answer, tuple(f"because {reason}" for reason in reasons), about)


_Reasons = tuple[tuple[str, str, str], tuple[int, ...]]


def _placed(thing: SceneObject, what: str) -> str:
    return f"the {what} at the {place_name(thing)}"


def _colour(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    (i,) = (i for i, thing in enumerate(scene.objects) if thing.shape == said[0])
    a = scene.objects[i]
    return (
        f"{_placed(a, a.shape)} is {a.colour}",
        f"there is a {a.name} at the {place_name(a)}",
        f"the only {a.shape} is {a.colour}",
    ), (i,)


def _shape(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    (i,) = (i for i, thing in enumerate(scene.objects) if thing.colour == said[0])
    a = scene.objects[i]
    return (
        f"{_placed(a, f'{a.colour} object')} {SIGNS[a.shape]}",
        f"there is a {a.name} at the {place_name(a)}",
        f"the only {a.colour} object {SIGNS[a.shape]}",
    ), (i,)


def _there(parts: Sequence[str]) -> str:
    return f"there {'is' if len(parts) == 1 else 'are'} {listed(parts)}"


def _count(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    things = scene.objects
    return (
        _there([f"a {thing.name}" for thing in things]),
        _there([f"a {thing.name} at the {place_name(thing)}" for thing in things]),
        _there([sized(thing) for thing in things]),
    ), tuple(range(len(things)))


def _exist(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    colour, shape = said
    same = tuple(i for i, thing in enumerate(scene.objects) if thing.shape == shape)
    things = [scene.objects[i] for i in same]
    if answer == "yes":
        i = next(i for i in same if scene.objects[i].colour == colour)
        a = scene.objects[i]
        return (
            f"there is a {a.name} at the {place_name(a)}",
            f"{_placed(a, a.shape)} is {a.colour}",
            f"{_placed(a, f'{a.colour} object')} {SIGNS[a.shape]}",
        ), (i,)
    if not same:
        everything = tuple(range(len(scene.objects)))
        reasons = (f"there is no {shape}", f"no object {SIGNS[shape]}", f"no {shape} is {colour}")
        return reasons, everything
    if len(same) == 1:
        only = f"the only {shape} is {things[0].colour}"
        return (
            only,
            f"{_placed(things[0], shape)} is {things[0].colour}",
            f"no {shape} is {colour}",
        ), same
    return (
        listed([f"{_placed(thing, shape)} is {thing.colour}" for thing in things]),
        _there([f"a {thing.name} at the {place_name(thing)}" for thing in things]),
        f"no {shape} is {colour}",
    ), same


def _relation(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    asked = said[2]
    names = [f"{said[0]} {said[1]}", f"{said[3]} {said[4]}"]
    found = {thing.name: i for i, thing in enumerate(scene.objects)}
    if names[0] not in found:
        there = tuple(i for name, i in found.items() if name == names[1])
        missing = f"there is no {names[0]}"
        return (missing, f"no {said[1]} is {said[0]}", f"no object is a {names[0]}"), there
    i, j = (found[name] for name in names)
    true = relations(scene)[i, j]
    told = next((one for one in (asked, OPPOSITE[asked]) if one in true), true[0])
    return _between(scene, i, j, told), (i, j)


def _between(scene: Scene, i: int, j: int, relation: str) -> tuple[str, str, str]:
    """That object `i` stands so to object `j`: by what covers what, by places, or plainly."""
    a, b = scene.objects[i], scene.objects[j]
    if relation in ("behind", "in front of"):
        front, back = (a, b) if relation == "in front of" else (b, a)
        return (
            f"the {front.name} covers the {back.name}",
            f"the {front.name} is in front of the {back.name}",
            f"the {back.name} is behind the {front.name}",
        )
    plain = f"the {a.name} is {relation} the {b.name}"
    reverse = f"the {b.name} is {OPPOSITE[relation]} the {a.name}"
    axis = 1 if relation in ("above", "below") else 0
    if grid_cell(a)[axis] == grid_cell(b)[axis]:
        return plain, reverse, f"the {a.size} {a.name} is {relation} the {b.size} {b.name}"
    places = " and ".join(f"the {c.name} is at the {place_name(c)}" for c in (a, b))
    return places, plain, reverse


def _background(scene: Scene, answer: str, said: Sequence[str]) -> _Reasons:
    objects, are = ("object", "is") if len(scene.objects) == 1 else ("objects", "are")
    return (
        f"the area around the {objects} is {answer}",
        f"the background is {answer}",
        f"the {objects} {are} on a {answer} background",
    ), ()


_REASONS = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "exist": _exist,
    "relation": _relation,
    "background": _background,
}


def activity(scene: Scene) -> Explanation:
    """What goes on in a scene, as ACT-X asks of photographs: one name for it all, no question.

    The activity is the relation of the two objects that overlap most or, where none do, stand
    nearest: one of `ACTIVITIES`, such as "circle in front of star". It is told from the object
    that is in front, to the left or above; of the last two, what tells the two further apart. An
    object alone stands somewhere: "star at the top left".

    Raises:
        ValueError: the scene has no object.
    """
    count = len(scene.objects)
    if not count:
        raise ValueError("nothing goes on where no object is")
    if count == 1:
        (a,) = scene.objects
        name = f"{a.shape} at the {place_name(a)}"
        reasons = (
            f"there is a {a.name} at the {place_name(a)}",
            f"the only {a.shape} is at the {place_name(a)}",
            f"{_placed(a, 'object')} {SIGNS[a.shape]}",
        )
        return Explanation(name, tuple(f"because {reason}" for reason in reasons), (0,))
    between = relations(scene)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    i, j = max(pairs, key=lambda pair: _closeness(scene, pair[0], pair[1], between[pair]))
    relation = "behind" if "behind" in between[i, j] else between[i, j][0]
    if relation not in _ACTIVE:
        i, j, relation = j, i, OPPOSITE[relation]
    a, b = scene.objects[i], scene.objects[j]
    reasons = _between(scene, i, j, relation)
    name = f"{a.shape} {relation} {b.shape}"
    return Explanation(name, tuple(f"because {reason}" for reason in reasons), (i, j))


def _closeness(scene: Scene, i: int, j: int, between: Sequence[str]) -> tuple[int, float]:
    a, b = scene.objects[i], scene.objects[j]
    overlap = shared_extent(a, b) if "behind" in between else 0
    return overlap, -((a.x - b.x) ** 2 + (a.y - b.y) ** 2)
