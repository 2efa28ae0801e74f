"""Questions about photographs, people's answers and why: VQA v1 and v2, VQA-X, ACT-X.

Every published form is read into `Asked`:

| data set | files |
|---|---|
| VQA v2 | `v2_OpenEnded_mscoco_<subset>_questions.json`, `v2_mscoco_<subset>_annotations.json` |
| VQA v1 | the same without `v2_` |
| VQA-X | `<split>_exp_anno.json`: explanations by question, which VQA v2's files ask |
| ACT-X | `exp_<split>_split.json`: pictures, activities, explanations; no question |
| NLX-GPT's form | `vqaX_<split>.json`: all of VQA-X in one file |

A photograph is a file `COCO_<subset>_<12 digits>.jpg` (Microsoft COCO, 2014) or `<name>.jpg`
(MPII Human Pose).
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.data.pictures.features import read_features
from vljax.data.pictures.images import read_image
from vljax.data.source import CorruptExampleError, check_index, read_json
from vljax.data.text.published import majority
from vljax.errors import UserError

#: Where the files of a data set lie in its folder.
_FOLDERS = (
    *("", "Questions", "Annotations", "annotations", "textual"),
    *("VQA-X/textual", "VQA-X/Annotations", "ACT-X/textual", "VQA-X", "ACT-X"),
)
_FORMS = {
    "vqa_v2": (
        "v2_OpenEnded_mscoco_{subset}_questions.json",
        "v2_mscoco_{subset}_annotations.json",
    ),
    "vqa_v1": ("OpenEnded_mscoco_{subset}_questions.json", "mscoco_{subset}_annotations.json"),
    "vqa_x": ("{split}_exp_anno.json",),
    "act_x": ("exp_{split}_split.json",),
    "nlx": ("vqaX_{split}.json",),
}
_REMEDY = "give VQA's file of that name, unpacked"
#: VQA-X's validation and test sets are both of COCO's validation pictures.
_SUBSETS = {"train": "train2014", "val": "val2014", "test": "val2014"}


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A question about a photograph.

    Attributes:
        id: Of the question; of ACT-X, of the entry.
        image: The photograph's file name.
        question: Empty where none is asked (ACT-X).
        answers: Of ten people, or the one that is right.
        justifications: Why; none in VQA.
        kind: VQA's `answer_type`: "yes/no", "number", "other"; empty where not told.
    """

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    justifications: tuple[str, ...] = ()
    kind: str = ""

    @property
    def answer(self) -> str:
        """What most people answered."""
        return majority(self.answers)


def read_vqa(questions: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> list[Asked]:
    """VQA's questions with their answers; v1 and v2 differ in their numbers only.

    Args:
        questions: `…_questions.json`.
        annotations: `…_annotations.json`; questions without answers are left out.

    Raises:
        UserError: a file cannot be read or lacks a key, or they do not belong together.
    """
    told = _rows(read_json(questions, _REMEDY), questions, "questions")
    subset = _subset(questions)
    answered = {
        _value(row, "question_id", annotations, i): row
        for i, row in enumerate(_rows(read_json(annotations, _REMEDY), annotations, "annotations"))
    }
    found = []
    for i, row in enumerate(told):
        number = _value(row, "question_id", questions, i)
        if number in answered:
            note = answered[number]
            image = int(_value(row, "image_id", questions, i))
            found.append(
                Asked(
                    str(number),
                    f"COCO_{subset}_{image:012d}.jpg",
                    _value(row, "question", questions, i),
                    _answers(note, annotations, str(number)),
                    kind=note.get("answer_type", ""),
                )
            )
    if not found:
        raise UserError(
            f"{questions} and {annotations} have no question in common: give the two files of one "
            "subset"
        )
    return found


def read_vqa_x(explanations: str | os.PathLike[str], asked: Sequence[Asked]) -> list[Asked]:
    """VQA-X: explanations of some of VQA v2's questions.

    Args:
        explanations: `<split>_exp_anno.json`.
        asked: The questions of the subset, see `read_vqa`.

    Raises:
        UserError: it cannot be read, or explains what nobody asked.
    """
    known = {one.id: one for one in asked}
    found = []
    for number, told in _entries(explanations).items():
        if number not in known:
            raise UserError(
                f"{explanations}: question {number} is none of {len(known)}: give VQA v2's files "
                "of the same subset (val2014 for val and test)"
            )
        reasons = _texts(told, explanations, number)
        found.append(dataclasses.replace(known[number], justifications=reasons))
    return found


def read_act_x(path: str | os.PathLike[str]) -> list[Asked]:
    """ACT-X: activities of people, explained; there is no question.

    Raises:
        UserError: it cannot be read or lacks a key.
    """
    found = []
    for key, row in _entries(path).items():
        picture, activity = (str(_value(row, name, path, key)) for name in ("iid", "ans"))
        reasons = _texts(_value(row, "exp", path, key), path, key)
        found.append(Asked(key, f"{picture}.jpg", "", (activity,), reasons))
    return found


def read_nlx(path: str | os.PathLike[str]) -> list[Asked]:
    """VQA-X in the form of NLX-GPT (Sammani et al. 2022): small letters, no full stops.

    Raises:
        UserError: it cannot be read or lacks a key.
    """
    return [
        Asked(
            key,
            _value(row, "image_name", path, key),
            _value(row, "question", path, key),
            _answers(row, path, key),
            _texts(_value(row, "explanation", path, key), path, key),
        )
        for key, row in _entries(path).items()
    ]


def open_asked(name: str, path: str | os.PathLike[str], split: str) -> list[Asked]:
    """The questions of a split of a published data set.

    Args:
        name: `"vqa_v2"`, `"vqa_v1"`, `"vqa_x"`, `"act_x"` or `"nlx"`.
        path: The folder of its files, themselves or as they were published.
        split: `"train"`, `"val"` or `"test"`; VQA's test set has no answers.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    if name not in _FORMS:
        raise UserError(f"data.name={name!r}: choose one of {', '.join(_FORMS)}")
    if split not in _SUBSETS:
        raise UserError(f"data.split={split!r}: choose one of {', '.join(_SUBSETS)}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={str(path)!r} is no folder: give that of {name}'s files")
    files = [_find(root, form, split) for form in _FORMS[name]]
    if name == "vqa_x":
        questions, answers = (_find(root, form, split) for form in _FORMS["vqa_v2"])
        return read_vqa_x(files[0], read_vqa(questions, answers))
    if name in ("vqa_v1", "vqa_v2"):
        return read_vqa(*files)
    return {"act_x": read_act_x, "nlx": read_nlx}[name](files[0])


def _find(root: Path, form: str, split: str) -> Path:
    name = form.format(split=split, subset=_SUBSETS[split])
    for folder in _FOLDERS:
        if (root / folder / name).is_file():
            return root / folder / name
    raise UserError(
        f"data.path={str(root)!r} has no {name}, neither itself nor in "
        f"{', '.join(_FOLDERS[1:5])} or {_FOLDERS[5]}: fetch it, or check data.split={split!r}"
    )


class Questions:
    """A random-access source of questions about photographs.

    `source[i]` is a dict: `id`, `question`, `answer`, `kind` (str), `answers`, `justifications`
    (lists of str), `image_name` (str), and of `image` (uint8 [h w 3]) and `features`
    (float32 [c h w]) what there is. The fields `question`, `answer` and `justifications` are those
    of `vljax.data.scenes.Scenes`.

    Args:
        asked: The questions.
        pictures: The photographs' folder, or None for examples without `image`.
        features: The folder of features, or None for examples without.

    Raises:
        UserError: there are no questions, or some photographs or features are missing.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        *,
        pictures: str | os.PathLike[str] | None = None,
        features: str | os.PathLike[str] | None = None,
    ) -> None:
        if not asked:
            raise UserError("there are no questions: give other files")
        self.asked = tuple(asked)
        self.pictures = self._placed(pictures, "photographs", "", "images")
        self.features = self._placed(features, "features", ".npz", "Features")

    def _placed(
        self, folder: str | os.PathLike[str] | None, what: str, suffix: str, inner: str
    ) -> dict[str, Path] | None:
        """The file of each photograph, in the folder or in one of its subset."""
        if folder is None:
            return None
        root = Path(folder).expanduser()
        names = {one.image for one in self.asked}
        found: dict[str, Path] = {}
        missing = []
        for name in sorted(names):
            subset = name.split("_")[1] if name.startswith("COCO_") else ""
            places = (root, root / subset, root / inner, root / inner / subset)
            there = [p for place in places if (p := place / f"{name}{suffix}").is_file()]
            if there:
                found[name] = there[0]
            else:
                missing.append(name)
        if missing:
            raise UserError(
                f"{root} lacks the {what} of {len(missing)} of {len(names)} pictures, the first is "
                f"{missing[0]}{suffix}: fetch them, or name another folder"
            )
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all questions, answers and justifications, in order."""
        told = json.dumps([dataclasses.astuple(one) for one in self.asked])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        one = self.asked[index]
        example: dict[str, Any] = {
            "id": one.id,
            "question": one.question,
            "answer": one.answer,
            "kind": one.kind,
            "answers": list(one.answers),
            "justifications": list(one.justifications),
            "image_name": one.image,
        }
        try:
            if self.pictures is not None:
                example["image"] = read_image(self.pictures[one.image])
            if self.features is not None:
                example["features"] = read_features(self.features[one.image])
        except UserError as error:
            raise CorruptExampleError(
                f"example {index} (question {one.id}): {error}, or set "
                "--config.data.on_corrupt=skip"
            ) from error
        return example


def _subset(path: str | os.PathLike[str]) -> str:
    found = re.search(r"(train|val|test)20\d\d", Path(path).name)
    if found is None:
        raise UserError(
            f"{path}: its name tells no subset of COCO, such as val2014: keep the published name"
        )
    return found[0]


def _entries(path: str | os.PathLike[str]) -> dict[str, Any]:
    found = read_json(path, "give a published file of explanations")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no entries by their number: give a published file")
    return found


def _rows(found: Any, path: str | os.PathLike[str], name: str) -> list[Any]:
    rows = found.get(name) if isinstance(found, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} has no list {name!r}: give VQA's file of that name")
    return rows


def _value(row: Any, name: str, path: str | os.PathLike[str], where: object) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        raise UserError(f"{path}: entry {where} has no {name!r}: fetch the file again")
    return row[name]


def _answers(row: Any, path: str | os.PathLike[str], where: str) -> tuple[str, ...]:
    told = _value(row, "answers", path, where)
    if not isinstance(told, list) or not told:
        raise UserError(f"{path}: entry {where} has no 'answers': fetch the file again")
    return tuple(str(_value(one, "answer", path, where)) for one in told)


def _texts(told: Any, path: str | os.PathLike[str], where: str) -> tuple[str, ...]:
    texts = [told] if isinstance(told, str) else told
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{path}: entry {where} is no list of explanations: fetch the file again")
    return tuple(texts)
