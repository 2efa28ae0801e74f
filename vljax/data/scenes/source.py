"""Scenes: the embedded data set, made on the fly from a seed and an index.

`Scenes` is a random-access source of examples, each a small world of coloured shapes
(`vljax.data.scenes.world`) with everything that a system learns from or is judged by: its picture,
masks, boxes and keypoints; captions; a question with its answer, justification and evidence; the
dialogue that builds it object by object; a request to edit it. The words are pure functions of a
scene, each kind in a file of its own: `captions`, `question_answer`, `dialogue`, `edit_requests`.
What they say is true of the picture.

An example depends on `(seed, split, index)` and the arguments that shape the world, never on the
process, the machine or the order of reading.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from vljax.data.scenes.counterfactuals import complement
from vljax.data.scenes.dialogues import Turn, dialogue
from vljax.data.scenes.draws import Draws
from vljax.data.scenes.edits import EDIT_KINDS, edit_requests
from vljax.data.scenes.explanations import ACTIVITIES, activity
from vljax.data.scenes.manipulations import entity_word
from vljax.data.scenes.programs import ANSWERS, QUESTION_KINDS
from vljax.data.scenes.questions import (
    QuestionAnswer,
    answer_question,
    evidence_of,
    question_answer,
)
from vljax.data.scenes.shapes import SHAPES
from vljax.data.scenes.wording import captions
from vljax.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    LABELS,
    MAX_OBJECTS,
    SIZES,
    Scene,
    boxes_of,
    class_coordinates,
    class_vector,
    draw_scene,
    keypoints,
    masks,
    render,
)
from vljax.errors import UserError

SPLITS = ("train", "val")

_WORLD = (
    *("index", "count", "background", "shows"),
    *("class_ids", "class_vector", "centres", "coordinates"),
)
_SHAPE = ("masks", "boxes", "keypoints")
_TEXT = ("caption", "captions", "entity_texts", "entity_words")
_QUESTION = (
    *("question", "answer", "answer_index", "justification", "evidence"),
    *("question_kind", "justifications", "program"),
)
_COMPLEMENT = (
    "complement_image",
    "complement_answer",
    "complement_answer_index",
    "complement_justifications",
    "complement_evidence",
)
_ACTIVITY = ("activity", "activity_index", "activity_justifications", "activity_evidence")
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
FIELDS = (
    *("image", *_WORLD, *_SHAPE, *_TEXT, *_QUESTION, *_COMPLEMENT, *_ACTIVITY),
    *(*_DIALOGUE, *_EDIT),
)


def _classes(scene: Scene) -> np.ndarray:
    return class_vector(thing.label for thing in scene.objects)


def _shows(scene: Scene) -> np.ndarray:
    shown = {scene.background.tone}.union(*((it.colour, it.shape) for it in scene.objects))
    return np.array([label in shown for label in LABELS])


def _coordinates(scene: Scene, side: int) -> np.ndarray:
    places = [(thing.x * side, thing.y * side) for thing in scene.objects]
    return class_coordinates((thing.label for thing in scene.objects), places)


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
    | `shows` | bool `(len(LABELS),)`: the colours, shapes and tone of the ground in sight |
    | `class_ids` | int32 `(N,)`, into `CLASSES`, −1 beyond `count` |
    | `class_vector` | bool `(C,)`: the classes shown |
    | `centres` | float32 `(N, 2)`: places (x, y) in pixels |
    | `coordinates` | float32 `(C, 2)`: the same by class, NaN where absent |
    | `masks` | bool `(N, H, W)`: visible pixels |
    | `boxes` | float32 `(N, 4)`: x0, y0, x1, y1 in pixels, tight around the masks |
    | `keypoints` | float32 `(N, K, 3)`: x, y in pixels, flag 2 visible, 1 hidden, 0 none |
    | `caption`, `captions` | str, one of the wordings; list of all five |
    | `entity_texts` | list of str: each object and the background alone, "a red circle" |
    | `entity_words` | list of str: what names each of them and no other, "circle" |
    | `question`, `answer`, `justification` | str |
    | `answer_index` | int32, into `ANSWERS` |
    | `evidence` | bool `(H, W)` |
    | `question_kind` | str, from `QUESTION_KINDS` |
    | `justifications` | list of `WORDINGS` str, the first is `justification` |
    | `program` | list of str, from `vljax.data.scenes.programs.STEPS` |
    | `complement_image` | uint8 `(H, W, 3)`: where the question has another answer |
    | `complement_answer`, `complement_answer_index` | as `answer`, `answer_index` |
    | `complement_justifications`, `complement_evidence` | as `justifications`, `evidence` |
    | `activity`, `activity_index` | str; int32, into `ACTIVITIES` |
    | `activity_justifications`, `activity_evidence` | list of `WORDINGS` str; bool `(H, W)` |
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

    def turns(self, index: int) -> tuple[Turn, ...]:
        """The dialogue that builds the scene at an index, whatever fields were asked for."""
        return dialogue(*self._draw(index))

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
            made["entity_texts"] = [f"a {thing.name}" for thing in scene.objects]
            made["entity_texts"].append(f"a {scene.background.tone} background")
            words = [entity_word(scene, i) for i in range(len(scene.objects))]
            made["entity_words"] = [*words, "background"]
        if not wanted.isdisjoint((*_QUESTION, *_COMPLEMENT)):
            asked = question_answer(scene, self.image_size, seed, self.question_kinds)
            made |= self._question(asked) | {"justification": asked.justification}
            made |= {"question": asked.question, "question_kind": asked.kind}
            made["program"] = list(asked.program)
            if not wanted.isdisjoint(_COMPLEMENT):
                other = complement(scene, asked.question, seed)
                again = self._question(answer_question(other, asked.question, self.image_size))
                made |= {f"complement_{name}": value for name, value in again.items()}
                made["complement_image"] = render(other, self.image_size)
        if not wanted.isdisjoint(_ACTIVITY):
            told = activity(scene)
            made["activity"] = told.answer
            made["activity_index"] = np.int32(ACTIVITIES.index(told.answer))
            made["activity_justifications"] = list(told.justifications)
            made["activity_evidence"] = evidence_of(scene, told.about, self.image_size)
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
            "shows": _shows(scene),
            "class_ids": _padded(labels, self.max_objects, -1),
            "class_vector": _classes(scene),
            "centres": _padded(centres, self.max_objects),
            "coordinates": _coordinates(scene, side),
        }

    def asked(self, index: int) -> QuestionAnswer:
        """The question of the example at an index, whatever fields were asked for."""
        scene, seed = self._draw(index)
        return question_answer(scene, self.image_size, seed, self.question_kinds)

    def _question(self, asked: QuestionAnswer) -> dict[str, Any]:
        return {
            "answer": asked.answer,
            "answer_index": np.int32(ANSWERS.index(asked.answer)),
            "justifications": list(asked.justifications),
            "evidence": asked.evidence,
        }

    def _dialogue(self, scene: Scene, seed: int, wanted: frozenset[str]) -> dict[str, Any]:
        turns = dialogue(scene, seed)
        length, size = self.max_objects, self.image_size
        stages = [turn.scene for turn in turns] + [scene] * (length - len(turns))
        added = np.array([turn.scene.objects[turn.added].label for turn in turns], np.int32)
        made: dict[str, Any] = {
            "instructions": [turn.instruction for turn in turns],
            "turn_added": _padded(added, length, -1),
            "turn_class_vectors": np.stack([_classes(stage) for stage in stages]),
            "turn_coordinates": np.stack([_coordinates(stage, size) for stage in stages]),
        }
        if "turn_images" in wanted:
            pictures = [render(turn.scene, size) for turn in turns]
            pictures += [pictures[-1]] * (length - len(turns))
            made["turn_images"] = np.stack(pictures)
        if "turn_masks" in wanted:
            new = np.stack([masks(turn.scene, size)[turn.added] for turn in turns])
            made["turn_masks"] = _padded(new, length)
        return made
