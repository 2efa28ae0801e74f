"""Scenes: the embedded world, its words, and the oracle that finds them in pixels.

`world` says what a scene is and how it looks, `wording` how it is told, `questions`, `dialogues`
and `edits` what is asked of it; `source` makes a data set of all that, `oracle` finds objects in
pictures.
"""

from vljax.data.scenes.dialogues import Turn, dialogue
from vljax.data.scenes.draws import Draws
from vljax.data.scenes.edits import EDIT_KINDS, EditRequest, edit_requests
from vljax.data.scenes.questions import ANSWERS, QUESTION_KINDS, QuestionAnswer, question_answer
from vljax.data.scenes.shapes import KEYPOINTS, MAX_KEYPOINTS, SHAPES
from vljax.data.scenes.source import FIELDS, SPLITS, Scenes
from vljax.data.scenes.wording import PARTS_OF_SPEECH, VOCABULARY, captions, prompt, words
from vljax.data.scenes.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SIZES,
    Background,
    Scene,
    SceneObject,
    boxes,
    class_index,
    keypoints,
    masks,
    place_name,
    relations,
    render,
)

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
    "PARTS_OF_SPEECH",
    "QUESTION_KINDS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "VOCABULARY",
    "Background",
    "Draws",
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
