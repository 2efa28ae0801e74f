"""Scenes: the embedded world, its words, and the oracle that finds them in pixels.

`world` says what a scene is and how it looks, `wording` how it is told, `questions`, `dialogues`
and `edits` what is asked of it. A question is a program (`programs`), its answer has reasons
(`explanations`), which `truth` checks; `counterfactuals` change what decides it. `source` makes a
data set of all that, `oracle` finds objects in pictures.
"""

from vljax.data.scenes.counterfactuals import complement, without
from vljax.data.scenes.dialogues import Turn, dialogue, follow
from vljax.data.scenes.draws import Draws
from vljax.data.scenes.edits import EDIT_KINDS, EditRequest, edit_requests
from vljax.data.scenes.explanations import ACTIVITIES, WORDINGS, activity, explain
from vljax.data.scenes.programs import ANSWERS, QUESTION_KINDS, STEPS, execute, program
from vljax.data.scenes.questions import (
    QuestionAnswer,
    answer_question,
    evidence_of,
    question_answer,
)
from vljax.data.scenes.shapes import KEYPOINTS, MAX_KEYPOINTS, SHAPES
from vljax.data.scenes.source import FIELDS, SPLITS, Scenes
from vljax.data.scenes.truth import Reading, is_true, read
from vljax.data.scenes.wording import PARTS_OF_SPEECH, VOCABULARY, captions, prompt, words
from vljax.data.scenes.world import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    LABELS,
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
    "ACTIVITIES",
    "ANSWERS",
    "BACKGROUNDS",
    "CLASSES",
    "COLOURS",
    "EDIT_KINDS",
    "FIELDS",
    "KEYPOINTS",
    "LABELS",
    "MAX_KEYPOINTS",
    "MAX_OBJECTS",
    "PARTS_OF_SPEECH",
    "QUESTION_KINDS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "STEPS",
    "VOCABULARY",
    "WORDINGS",
    "Background",
    "Draws",
    "EditRequest",
    "QuestionAnswer",
    "Reading",
    "Scene",
    "SceneObject",
    "Scenes",
    "Turn",
    "activity",
    "answer_question",
    "boxes",
    "captions",
    "class_index",
    "complement",
    "dialogue",
    "edit_requests",
    "evidence_of",
    "execute",
    "explain",
    "follow",
    "is_true",
    "keypoints",
    "masks",
    "place_name",
    "program",
    "prompt",
    "question_answer",
    "read",
    "relations",
    "render",
    "without",
    "words",
]
