"""Scenes: the embedded data set, made on the fly from a seed and an index.

`Scenes` is a random-access source of examples, each a small world of coloured shapes
(`vljax.data.scenes.world`) with everything that a system learns from or is judged by: its picture,
masks, boxes and keypoints; captions; a question with its answer, justification and evidence; the
dialogue that builds it object by object; a request to edit it. The words are pure functions of a
scene: `captions`, `question_answer`, `dialogue`, `edit_requests`. What they say is true of the
picture.

An example depends on `(seed, split, index)` and the arguments that shape the world, never on the
process, the machine or the order of reading.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vljax.data.scenes.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    KEYPOINTS,
    MAX_KEYPOINTS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Background,
    Draws,
    Scene,
    SceneObject,
    boxes,
    boxes_of,
    class_index,
    draw_background,
    draw_scene,
    grid_cell,
    keypoints,
    masks,
    place_name,
    relations,
    render,
    visibility,
)
from vljax.errors import UserError

__all__ = [
    "ANSWERS",
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "EDIT_KINDS",
    "FIELDS",
    "KEYPOINTS",
    "MAX_KEYPOINTS",
    "MAX_OBJECTS",
    "QUESTION_KINDS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "VOCABULARY",
    "Background",
    "EditRequest",
    "QuestionAnswer",
    "Scene",
    "SceneObject",
    "Scenes",
    "Turn",
    "boxes",
    "captions",
    "class_index",
    "dialogue",
    "edit_requests",
    "keypoints",
    "masks",
    "place_name",
    "prompt",
    "question_answer",
    "relations",
    "render",
    "words",
]

SPLITS = ("train", "val")
QUESTION_KINDS = ("colour", "shape", "count", "exist", "relation", "background")
EDIT_KINDS = ("colour", "shape", "background")

_COUNTS = ("one", "two", "three", "four", "five")
_OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "behind": "in front of",
    "in front of": "behind",
}
_SIGNS = {
    "circle": "is round",
    "square": "has four corners",
    "triangle": "has three corners",
    "star": "has five tips",
    "cross": "has four arms",
    "heart": "has a notch",
}
_VERBS = ("add", "draw", "put")

#: Every answer that `question_answer` gives.
ANSWERS = ("yes", "no", *_COUNTS, *COLOURS, *SHAPES, *BACKGROUNDS)

_GLUE = """
    a the and on at with is are there or how many what color shape top bottom left right center
    photo picture object objects background because around area only covers
"""

#: Every word of every text, sorted; texts split into words by `words`.
VOCABULARY = tuple(
    sorted(
        {*ANSWERS, *SIZES, *_VERBS}
        | set(" ".join((*RELATIONS, *_SIGNS.values())).split())
        | set(_GLUE.split())
    )
)


def words(text: str) -> list[str]:
    """Split a text into its words, without punctuation."""
    return re.findall("[a-z]+", text)


def prompt(shape: str, colour: str) -> str:
    """The short text that names one kind of object: `"a photo of a red circle"`."""
    return f"a photo of a {colour} {shape}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _sized(thing: SceneObject) -> str:
    return f"a {thing.size} {thing.name}"


# ------------------------------------------------------------------------------- captions


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
            f"{_sized(thing)} {ground}",
            f"{_sized(thing)} {place}",
            f"there is a {thing.name} {place}",
            f"a picture of {_sized(thing)} {place} {ground}",
        ]
    order = draws.sample(range(len(scene.objects)), len(scene.objects))
    things = [scene.objects[i] for i in order]
    names = _listed([f"a {thing.name}" for thing in things])
    between = relations(scene)
    first = draws.pick(between[order[0], order[1]])
    chain = f"{_sized(things[0])} {first} {_sized(things[1])}"
    for k in range(2, len(order)):
        anchor = draws.below(k)
        relation = draws.pick(between[order[k], order[anchor]])
        chain += f" and {_sized(things[k])} {relation} the {things[anchor].name}"
    return [
        f"a photo of {names}",
        f"{_COUNTS[len(order) - 1]} objects {ground} with {names}",
        f"there is a {things[0].name} {first} a {things[1].name}",
        chain,
        f"a picture of {chain} {ground}",
    ]


# ------------------------------------------------------------------------------ questions


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question about a picture, its answer, and why.

    Attributes:
        kind: one of `QUESTION_KINDS`.
        question: such as `"is the red circle behind the blue square?"`.
        answer: one of `ANSWERS`.
        justification: such as `"because the red circle covers the blue square"`.
        about: indices of the objects that prove it; none when it is the background.
        evidence: the pixels that prove it.
    """

    kind: str
    question: str
    answer: str
    justification: str
    about: tuple[int, ...]
    evidence: Bool[np.ndarray, "h w"]


def _lone(scene: Scene, attribute: str) -> list[int]:
    """Objects whose shape (or colour) no other object has."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    return [i for i, value in enumerate(values) if values.count(value) == 1]


def _ask(scene: Scene, kind: str, draws: Draws) -> tuple[str, str, str, tuple[int, ...]]:
    """Question, answer, justification, and the objects that it rests on."""
    objects = scene.objects
    if kind == "colour":
        i = draws.pick(_lone(scene, "shape"))
        a = objects[i]
        why = f"because the {a.shape} at the {place_name(a)} is {a.colour}"
        return f"what color is the {a.shape}?", a.colour, why, (i,)
    if kind == "shape":
        i = draws.pick(_lone(scene, "colour"))
        a = objects[i]
        why = f"because the {a.colour} object at the {place_name(a)} {_SIGNS[a.shape]}"
        return f"what shape is the {a.colour} object?", a.shape, why, (i,)
    if kind == "count":
        verb = "is" if len(objects) == 1 else "are"
        why = f"because there {verb} " + _listed([f"a {thing.name}" for thing in objects])
        everything = tuple(range(len(objects)))
        return "how many objects are there?", _COUNTS[len(objects) - 1], why, everything
    if kind == "exist":
        i = draws.below(len(objects))
        a = objects[i]
        if draws.below(2):
            why = f"because there is a {a.name} at the {place_name(a)}"
            return f"is there a {a.name}?", "yes", why, (i,)
        same = tuple(j for j, b in enumerate(objects) if b.shape == a.shape)
        taken = {objects[j].colour for j in same}
        other = draws.pick([colour for colour in COLOURS if colour not in taken])
        if len(same) == 1:
            why = f"because the only {a.shape} is {a.colour}"
        else:
            why = "because " + _listed(
                [
                    f"the {a.shape} at the {place_name(objects[j])} is {objects[j].colour}"
                    for j in same
                ]
            )
        return f"is there a {other} {a.shape}?", "no", why, same
    if kind == "relation":
        i, j = draws.sample(range(len(objects)), 2)
        a, b = objects[i], objects[j]
        true = draws.pick(relations(scene)[i, j])
        axis = 1 if true in ("above", "below") else 0
        asked, answer = (true, "yes") if draws.below(2) else (_OPPOSITE[true], "no")
        if true in ("behind", "in front of"):
            front, back = (a, b) if true == "in front of" else (b, a)
            why = f"because the {front.name} covers the {back.name}"
        elif grid_cell(a)[axis] != grid_cell(b)[axis]:
            why = f"because the {a.name} is at the {place_name(a)} and the {b.name} is at the "
            why += place_name(b)
        else:
            why = f"because the {a.name} is {true} the {b.name}"
        return f"is the {a.name} {asked} the {b.name}?", answer, why, (i, j)
    tone = scene.background.tone
    why = f"because the area around the object{'s' * (len(objects) > 1)} is {tone}"
    return "is the background light or dark?", tone, why, ()


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
    kind = draws.pick(usable)
    question, answer, why, about = _ask(scene, kind, draws)
    visible = masks(scene, image_size)
    evidence = np.any(visible[list(about)], axis=0) if about else ~np.any(visible, axis=0)
    return QuestionAnswer(kind, question, answer, why, about, evidence)


# ------------------------------------------------------------------------------- dialogue


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
        turns.append(Turn(f"{verb} {_sized(thing)} {where}", now, depth.index(i), **said))
        present.append(i)
    return tuple(turns)


# ---------------------------------------------------------------------------------- edits


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


# --------------------------------------------------------------------------------- source

_WORLD = ("index", "count", "background", "class_ids", "class_vector", "centres", "coordinates")
_SHAPE = ("masks", "boxes", "keypoints")
_TEXT = ("caption", "captions")
_QUESTION = ("question", "answer", "answer_index", "justification", "evidence")
_DIALOGUE = (
    "instructions",
    "turn_images",
    "turn_masks",
    "turn_added",
    "turn_class_vectors",
    "turn_coordinates",
)
_EDIT = (
    "edit_kind",
    "edit_object",
    "source_prompt",
    "edit_prompt",
    "edit_mask",
    "edit_image",
)

#: Every field that an example of `Scenes` can have.
FIELDS = ("image", *_WORLD, *_SHAPE, *_TEXT, *_QUESTION, *_DIALOGUE, *_EDIT)


def class_vector(scene: Scene) -> Bool[np.ndarray, " classes"]:
    """Which of `CLASSES` a scene shows."""
    present = np.zeros(len(CLASSES), bool)
    present[[thing.label for thing in scene.objects]] = True
    return present


def class_coordinates(scene: Scene, image_size: int) -> Float[np.ndarray, "classes 2"]:
    """Place `(x, y)` in pixels of the object of each class; NaN where there is none."""
    places = np.full((len(CLASSES), 2), np.nan, np.float32)
    for thing in scene.objects:
        places[thing.label] = thing.x * image_size, thing.y * image_size
    return places


def _padded(array: np.ndarray, length: int, fill: Any = 0) -> np.ndarray:
    rest = np.full((length - len(array), *array.shape[1:]), fill, array.dtype)
    return np.concatenate([array, rest])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """A random-access source of scenes; `source[i]` is a dict of the fields asked for.

    Sizes, with `H = W = image_size`, `N = max_objects`, `K = MAX_KEYPOINTS`, `C = len(CLASSES)`;
    arrays over objects (back to front) and turns are padded to `N`:

    | field | value |
    |---|---|
    | `image` | uint8 `(H, W, 3)` |
    | `index`, `count` | int64: position in the source; int32: number of objects |
    | `background` | int32, into `BACKGROUNDS` |
    | `class_ids` | int32 `(N,)`, into `CLASSES`, −1 beyond `count` |
    | `class_vector` | bool `(C,)`: the classes shown |
    | `centres` | float32 `(N, 2)`: places (x, y) in pixels |
    | `coordinates` | float32 `(C, 2)`: the same by class, NaN where absent |
    | `masks` | bool `(N, H, W)`: visible pixels |
    | `boxes` | float32 `(N, 4)`: x0, y0, x1, y1 in pixels, tight around the masks |
    | `keypoints` | float32 `(N, K, 3)`: x, y in pixels, flag 2 visible, 1 hidden, 0 none |
    | `caption`, `captions` | str, one of the wordings; list of all five |
    | `question`, `answer`, `justification` | str |
    | `answer_index` | int32, into `ANSWERS` |
    | `evidence` | bool `(H, W)` |
    | `instructions` | list of `count` str |
    | `turn_images` | uint8 `(N, H, W, 3)`: after each turn; the last one repeats |
    | `turn_masks` | bool `(N, H, W)`: visible pixels of the object added; none beyond `count` |
    | `turn_added` | int32 `(N,)`: class of the object added, −1 beyond `count` |
    | `turn_class_vectors` | bool `(N, C)`: classes shown after each turn; the last one repeats |
    | `turn_coordinates` | float32 `(N, C, 2)`: as `coordinates`; the last one repeats |
    | `edit_kind`, `source_prompt`, `edit_prompt` | str |
    | `edit_object` | int32: object to change, −1 for the background |
    | `edit_mask`, `edit_image` | bool `(H, W)`: may change; uint8 `(H, W, 3)`: as wished |

    Only the fields asked for are computed.

    Attributes:
        size: number of examples.
        image_size: side of the pictures in pixels, at least 16.
        seed: names the data set, 0 to 2⁶³ − 1.
        split: `"train"` or `"val"`: of one seed, they draw from disjoint streams.
        min_objects: least number of objects, at least 1.
        max_objects: greatest number of objects, at most 5.
        fields: names from `FIELDS`.
        shapes: shapes used, from `SHAPES`.
        colours: colours used, from `COLOURS`.
        sizes: sizes used, from `SIZES`.
        backgrounds: tones used, from `BACKGROUNDS`.
        min_visible: share of each object that stays in sight, 0.5 to 1.
        question_kinds: kinds of question, from `QUESTION_KINDS`.
        edit_kinds: kinds of edit, from `EDIT_KINDS`.

    Raises:
        UserError: if an argument is out of these bounds.
    """

    size: int = 10_000
    image_size: int = 64
    seed: int = 0
    split: str = "train"
    min_objects: int = 1
    max_objects: int = MAX_OBJECTS
    fields: tuple[str, ...] = ("image", "caption")
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    sizes: tuple[str, ...] = SIZES
    backgrounds: tuple[str, ...] = BACKGROUNDS
    min_visible: float = 0.6
    question_kinds: tuple[str, ...] = QUESTION_KINDS
    edit_kinds: tuple[str, ...] = EDIT_KINDS

    def __post_init__(self) -> None:
        bounds = {
            "size": (1, 2**62),
            "image_size": (16, 4096),
            "seed": (0, 2**63 - 1),
            "min_objects": (1, MAX_OBJECTS),
            "max_objects": (self.min_objects, MAX_OBJECTS),
            "min_visible": (0.5, 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            whole = name == "min_visible" or isinstance(value, (int, np.integer))
            if isinstance(value, bool) or not whole or not low <= value <= high:
                kind = "a number" if name == "min_visible" else "an integer"
                raise UserError(f"scenes: {name}={value!r}: give {kind} from {low} to {high}")
        if self.split not in SPLITS:
            raise UserError(f"scenes: split={self.split!r}: give one of {', '.join(SPLITS)}")
        choices = {
            "fields": FIELDS,
            "shapes": SHAPES,
            "colours": COLOURS,
            "sizes": SIZES,
            "backgrounds": BACKGROUNDS,
            "question_kinds": QUESTION_KINDS,
            "edit_kinds": EDIT_KINDS,
        }
        for name, known in choices.items():
            given = getattr(self, name)
            given = (given,) if isinstance(given, str) else tuple(given)
            object.__setattr__(self, name, given)
            unknown = [value for value in given if value not in known]
            if unknown or not given:
                wrong = repr(unknown[0]) if unknown else "()"
                raise UserError(f"scenes: {name}={wrong}: choose from {', '.join(known)}")
        kinds = len(set(self.shapes)) * len(set(self.colours))
        if kinds < self.max_objects:
            raise UserError(
                f"scenes: max_objects={self.max_objects}: the {kinds} given shapes × colours are "
                "too few, each object needs its own; lower it or give more"
            )
        if {"count", "exist", "background"}.isdisjoint(self.question_kinds):
            raise UserError(
                f"scenes: question_kinds={self.question_kinds!r}: add 'count', 'exist' or "
                "'background', the others do not apply to every scene"
            )

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an example."""
        return repr(self)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(self.size))

    @functools.cached_property
    def _classes(self) -> tuple[tuple[str, str], ...]:
        shapes, colours = dict.fromkeys(self.shapes), dict.fromkeys(self.colours)
        return tuple((shape, colour) for shape in shapes for colour in colours)

    def _draw(self, index: int) -> tuple[Scene, int]:
        """The scene at an index, and the seed of its texts."""
        position = range(self.size)[index]
        # Interleaving the splits in one numbering of streams keeps them disjoint for a seed.
        draws = Draws(self.seed, position * len(SPLITS) + SPLITS.index(self.split))
        text_seed = draws.word()
        scene = draw_scene(
            draws,
            min_objects=self.min_objects,
            max_objects=self.max_objects,
            min_visible=self.min_visible,
            classes=self._classes,
            sizes=self.sizes,
            backgrounds=self.backgrounds,
        )
        return scene, text_seed

    def scene(self, index: int) -> Scene:
        """The scene of the example at an index."""
        return self._draw(index)[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(self.size)[index]
        scene, seed = self._draw(index)
        wanted = frozenset(self.fields)
        made: dict[str, Any] = {}
        if "image" in wanted:
            made["image"] = render(scene, self.image_size)
        if not wanted.isdisjoint(_WORLD):
            made |= self._world(scene, index)
        if not wanted.isdisjoint(_SHAPE):
            visible = masks(scene, self.image_size)
            made["masks"] = _padded(visible, self.max_objects)
            made["boxes"] = _padded(boxes_of(visible), self.max_objects)
            made["keypoints"] = _padded(keypoints(scene, self.image_size), self.max_objects)
        if not wanted.isdisjoint(_TEXT):
            made["captions"] = captions(scene, seed)
            made["caption"] = Draws(seed, 5).pick(made["captions"])
        if not wanted.isdisjoint(_QUESTION):
            asked = question_answer(scene, self.image_size, seed, self.question_kinds)
            made |= {name: getattr(asked, name) for name in _QUESTION if name != "answer_index"}
            made["answer_index"] = np.int32(ANSWERS.index(asked.answer))
        if not wanted.isdisjoint(_DIALOGUE):
            made |= self._dialogue(scene, seed, wanted)
        if not wanted.isdisjoint(_EDIT):
            kind = Draws(seed, 6).pick(self.edit_kinds)
            (edit,) = edit_requests(scene, self.image_size, seed, (kind,))
            made["edit_kind"] = edit.kind
            made["edit_object"] = np.int32(-1 if edit.index is None else edit.index)
            made["source_prompt"], made["edit_prompt"] = edit.source_prompt, edit.edit_prompt
            made["edit_mask"] = edit.mask
            if "edit_image" in wanted:
                made["edit_image"] = render(edit.target, self.image_size)
        return {name: made[name] for name in self.fields}

    def _world(self, scene: Scene, index: int) -> dict[str, Any]:
        things = scene.objects
        side = self.image_size
        centres = np.array([(thing.x * side, thing.y * side) for thing in things], np.float32)
        labels = np.array([thing.label for thing in things], np.int32)
        return {
            "index": np.int64(index),
            "count": np.int32(len(things)),
            "background": np.int32(BACKGROUNDS.index(scene.background.tone)),
            "class_ids": _padded(labels, self.max_objects, -1),
            "class_vector": class_vector(scene),
            "centres": _padded(centres, self.max_objects),
            "coordinates": class_coordinates(scene, side),
        }

    def _dialogue(self, scene: Scene, seed: int, wanted: frozenset[str]) -> dict[str, Any]:
        turns = dialogue(scene, seed)
        length, size = self.max_objects, self.image_size
        stages = [turn.scene for turn in turns] + [scene] * (length - len(turns))
        added = np.array([turn.scene.objects[turn.added].label for turn in turns], np.int32)
        made: dict[str, Any] = {
            "instructions": [turn.instruction for turn in turns],
            "turn_added": _padded(added, length, -1),
            "turn_class_vectors": np.stack([class_vector(stage) for stage in stages]),
            "turn_coordinates": np.stack([class_coordinates(stage, size) for stage in stages]),
        }
        if "turn_images" in wanted:
            pictures = [render(turn.scene, size) for turn in turns]
            pictures += [pictures[-1]] * (length - len(turns))
            made["turn_images"] = np.stack(pictures)
        if "turn_masks" in wanted:
            new = np.stack([masks(turn.scene, size)[turn.added] for turn in turns])
            made["turn_masks"] = _padded(new, length)
        return made
