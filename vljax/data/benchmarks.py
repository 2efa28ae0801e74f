"""Benchmarks: a data set together with what judges it, opened from a config's `data` fields.

A recipe or a system asks a benchmark what it has, never what it is called: whether its pictures
have captions to learn a text encoder from, whether an oracle finds objects in pictures like its
own, which metrics judge its texts. Opening one touches no file; its sources are opened as they are
asked for.

```
data.name        'scenes', or whatever `NAMES` lists, or a data set of TensorFlow Datasets
data.path        folder, LMDB or TFDS directory; not used by scenes
data.split       training split: 'train', 'val', 'train2017', …
data.held_out    keep so many of the last examples for evaluation; scenes have a split for it
data.image_size  scenes: side of the pictures
data.scenes      scenes: arguments of `vljax.data.scenes.Scenes`
data.annotations shape_prompts: its file of annotations
data.pictures    vqa_v2 and its like: folder of the photographs, where it is not data.path
data.features    vqa_v2 and its like, coco: folder of features (`vljax.data.pictures.features`)
data.eval_split  what is held out of vqa_v2 and its like, and of cub, oxford102 and coco; by default
                 'val' (VQA), 'val2014' (coco) or 'test'
```

Texts have further fields: `vljax.data.text.source`.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.dialogues import CANVAS, Dialogues, SceneDialogues
from vljax.data.manipulations import (
    Manipulation,
    PieBench,
    caption_manipulations,
    scene_manipulations,
)
from vljax.data.pictures.captioned import (
    CaptionedPhotographs,
    open_coco_photographs,
    open_cub,
    open_oxford,
)
from vljax.data.pictures.geneva import Geneva
from vljax.data.pictures.shape_prompts import ShapePrompts
from vljax.data.pictures.sources import ImageFolder, Lsun, Tfds
from vljax.data.scenes import (
    ACTIVITIES,
    ANSWERS,
    CLASSES,
    LABELS,
    SHAPES,
    VOCABULARY,
    Scene,
    Scenes,
    oracle,
    render,
    words,
)
from vljax.data.scenes.manipulations import MANIPULATION_KINDS
from vljax.data.source import Renamed, Source, Span, kept_for_training
from vljax.data.text import Text, open_text
from vljax.data.text.vqa import Questions, open_asked
from vljax.errors import UserError

# Captions as COCO's server judges them, which takes pycocoevalcap; before it what vljax brings.
_CAPTION_METRICS = ("bleu", "rougeL", "coco_bleu", "meteor", "coco_rougeL", "cider")
_TEXT_METRICS = {
    "scenes": _CAPTION_METRICS,
    "coco": _CAPTION_METRICS,
    "django": ("bleu", "accuracy"),
    "gigaword": ("rouge1", "rouge2", "rougeL"),
    "wmt16": ("bleu_13a", "meteor", "ter"),
    **dict.fromkeys(
        ("vqa_x", "act_x", "nlx"), ("coco_bleu", "meteor", "coco_rougeL", "cider", "spice")
    ),
}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set and what judges it.

    Attributes:
        config: The `data` fields of a run.
        has: Of "pictures", "texts", "captions", "edits", "manipulations", "questions" and
            "dialogues", what can be opened.
        captioned: Whether its pictures have captions, in the field `captions` of an example: then
            a text encoder and its tokenizer can be learnt from it.
        oracle: What finds the objects in pictures like its own (`vljax.data.scenes.oracle`), or
            None where only pretrained networks could.
        classes: Kinds of objects, as `class_ids` in examples number them; none where unknown.
        labels: Words that are true of something in a picture or are not, as `shows` in examples
            tells; none where unknown.
        vocabulary: Every word of its texts, where they are few enough to list.
        answers: Every answer to its questions, where they are few enough to list.
        activities: Every name of what a picture shows, where they are few enough to list.
        tagger: Which tagger of `vljax.metrics.order` knows its words for certain; empty for none.
    """

    config: ConfigDict

    has: ClassVar[tuple[str, ...]] = ()
    captioned: ClassVar[bool] = False
    oracle: ClassVar[ModuleType | None] = None
    classes: ClassVar[tuple[str, ...]] = ()
    labels: ClassVar[tuple[str, ...]] = ()
    vocabulary: ClassVar[tuple[str, ...]] = ()
    answers: ClassVar[tuple[str, ...]] = ()
    activities: ClassVar[tuple[str, ...]] = ()
    tagger: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """What it is, in a few words, for tables and logs: `"folder /data/ffhq"`."""
        path = self.config.get("path", "")
        return f"{self.config.name} {path}" if path else self.config.name

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """Names in `vljax.metrics.text` of what judges its texts, as the papers' tables do."""
        return _TEXT_METRICS.get(self.config.name, ())

    def pictures(self, fields: tuple[str, ...] = ("image",), *, held_out: bool = False) -> Source:
        """The training examples, or those kept for evaluation.

        Args:
            fields: What is needed of each example; scenes make nothing else.
            held_out: The examples to evaluate on.

        Raises:
            UserError: the data is not there, has no such fields, or nothing is held out.
        """
        raise self._lacks("pictures")

    def text(self, fields: tuple[str, ...] | None = None, *, held_out: bool = False) -> Text:
        """Texts to write, beside what they are written from; see `vljax.data.text.open_text`.

        Raises:
            UserError: the data is not there, or has no texts.
        """
        return open_text(self.config, fields, held_out=held_out)

    def shown(self, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
        """Pictures without a question: what they show is the `answer`, beside it why.

        Args:
            fields: As in `questions`.
            held_out: The examples to evaluate on.

        Raises:
            UserError: the data is not there, or has no such names.
        """
        return self.questions(fields, held_out=held_out)

    def scenes(self, *, held_out: bool = False) -> Scenes | None:
        """The worlds behind the examples, by which a sentence is true or false; None if unknown."""
        return None

    def captions(self, count: int) -> Iterator[str]:
        """All captions of the first `count` training pictures.

        Raises:
            UserError: there are none.
        """
        raise self._lacks("captions")

    def edits(self, count: int) -> Iterator[dict[str, Any]]:
        """The first edits to judge by: at most `count` examples.

        Each has `image` (uint8 [h w 3]), `edit_mask` (bool [h w]), `source_prompt` and
        `edit_prompt`, and `category`: what a segmenter finds before and after, for an edit changes
        how an object looks, not what it is.

        Raises:
            UserError: the data is not there, or has no edits.
        """
        raise self._lacks("edits")

    def manipulations(
        self, count: int, kinds: tuple[str, ...] = MANIPULATION_KINDS
    ) -> Iterator[Manipulation]:
        """The first manipulations to judge by: at most `count` of them.

        Args:
            count: How many at most.
            kinds: Of scenes, which kinds take turns.

        Raises:
            UserError: the data is not there, or has none.
        """
        raise self._lacks("manipulations")

    def questions(self, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
        """Questions about pictures, their answers, and why.

        Where nothing is asked (`act_x`), the answer is what the picture shows.

        Args:
            fields: What is needed of each example: `question`, `answer`, `justifications`, `image`,
                `features`, … (`vljax.data.scenes.Scenes`, `vljax.data.text.vqa.Questions`).
            held_out: The examples to evaluate on.

        Raises:
            UserError: the data is not there, or has no questions.
        """
        raise self._lacks("questions")

    def dialogues(self, split: str = "train") -> Dialogues:
        """Dialogues that draw a picture turn by turn.

        Args:
            split: `"train"`, `"val"` (to choose a model by) or `"test"`.

        Raises:
            UserError: the data is not there, or has no dialogues.
        """
        raise self._lacks("dialogues")

    def canvas(self) -> UInt8[np.ndarray, "h w 3"]:
        """The empty picture with which a dialogue may begin.

        Raises:
            UserError: the data is not there, or has no dialogues.
        """
        raise self._lacks("dialogues")

    def _lacks(self, what: str) -> UserError:
        able = [name for name, kind in KINDS.items() if what in kind.has]
        return UserError(
            f"data.name={self.config.name!r} has no {what}: choose one of {', '.join(able)}"
        )


class ScenesBenchmark(Benchmark):
    """Scenes, made as they are read, and the oracle that judges pictures of them."""

    has = ("pictures", "captions", "edits", "manipulations", "texts", "questions", "dialogues")
    captioned = True
    oracle: ClassVar[ModuleType | None] = oracle
    classes = CLASSES
    labels = LABELS
    vocabulary = VOCABULARY
    answers = ANSWERS
    activities = ACTIVITIES
    tagger = "scenes"

    def pictures(self, fields: tuple[str, ...] = ("image",), *, held_out: bool = False) -> Source:
        """Scenes of the training split, or of `"val"`."""
        split = "val" if held_out else self.config.split
        return self._scenes(fields=fields, split=split)

    def questions(self, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
        """Scenes with their questions."""
        return self.pictures(fields, held_out=held_out)

    def shown(self, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
        """Scenes named by what stands in which relation."""
        names = {name: f"activity_{name}" for name in ("justifications", "evidence")}
        names["answer"] = "activity"
        wanted = tuple(names.get(name, name) for name in fields)
        return Renamed(self.pictures(wanted, held_out=held_out), names)

    def dialogues(self, split: str = "train") -> Dialogues:
        """The dialogues that build scenes; those of `"val"` and `"test"` are of two seeds."""
        if split == "train":
            return SceneDialogues(self.scenes())
        test = self.scenes(held_out=True)
        return SceneDialogues(
            test if split == "test" else dataclasses.replace(test, seed=test.seed + 1)
        )

    def canvas(self) -> UInt8[np.ndarray, "h w 3"]:
        """A light canvas."""
        return render(Scene(CANVAS, ()), self.scenes().image_size)

    def scenes(self, *, held_out: bool = False) -> Scenes:
        """The scenes of a split."""
        return self._scenes(split="val" if held_out else self.config.split)

    def captions(self, count: int) -> Iterator[str]:
        """All wordings of the first `count` scenes, more if need be than a run trains on."""
        scenes = self._scenes(fields=("captions",), size=count, split="train")
        return (caption for scene in scenes for caption in scene["captions"])

    def edits(self, count: int) -> Iterator[dict[str, Any]]:
        """One object of each scene in another colour; its category is its shape."""
        fields = ("image", "edit_mask", "source_prompt", "edit_prompt")
        for example in self._scenes(fields=fields, size=count, split="val", edit_kinds="colour"):
            shape = next(s for s in SHAPES if s in words(example["source_prompt"]))
            yield {**example, "category": shape}

    def manipulations(
        self, count: int, kinds: tuple[str, ...] = MANIPULATION_KINDS
    ) -> Iterator[Manipulation]:
        """One of each scene of `"val"`, the kinds in turn."""
        return scene_manipulations(self._scenes(size=count, split="val"), kinds)

    def _scenes(self, **wanted: Any) -> Scenes:
        sized = {"image_size": self.config.image_size} if "image_size" in self.config else {}
        return Scenes(**{**sized, **self.config.scenes, **wanted})


class PicturesBenchmark(Benchmark):
    """Pictures without words: a folder, LSUN, or a data set of TensorFlow Datasets."""

    has = ("pictures",)

    def pictures(self, fields: tuple[str, ...] = ("image",), *, held_out: bool = False) -> Source:
        """All pictures but the last `data.held_out`, or these."""
        config = self.config
        source: Source
        if config.name == "folder":
            source = ImageFolder(config.path)
        elif config.name == "lsun":
            source = Lsun(config.path)
        else:
            source = Tfds(config.name, data_dir=config.path or None, split=config.split)
        count = len(source)
        kept = kept_for_training(config.held_out, count)
        if not held_out:
            return Span(source, 0, kept) if config.held_out else source
        if not config.held_out:
            raise UserError(
                "data.held_out=0: nothing is kept for evaluation; train with "
                "--config.data.held_out=N"
            )
        return Span(source, kept, count)


class TextBenchmark(Benchmark):
    """Texts beside other texts, or beside the regions of photographs."""

    has: ClassVar[tuple[str, ...]] = ("texts",)


class CaptionedBenchmark(Benchmark):
    """CUB's birds and Oxford-102's flowers, with ten captions each."""

    has: ClassVar[tuple[str, ...]] = ("pictures", "captions", "manipulations")
    captioned = True
    entity: ClassVar[str | None] = None
    usual_eval_split: ClassVar[str] = "test"

    def pictures(self, fields: tuple[str, ...] = ("image",), *, held_out: bool = False) -> Source:
        """The photographs of the training split, or of that to evaluate on."""
        return self._open(self._held_out() if held_out else self.config.split)

    def captions(self, count: int) -> Iterator[str]:
        """All captions of the first `count` training photographs."""
        lines = self._open(self.config.split).captions[:count]
        return (caption for captions in lines for caption in captions)

    def manipulations(
        self, count: int, kinds: tuple[str, ...] = MANIPULATION_KINDS
    ) -> Iterator[Manipulation]:
        """Test photographs under captions of others; the entity is the same word for all."""
        found = caption_manipulations(self._open(self._held_out()), self.entity)
        return itertools.islice(found, count)

    def _held_out(self) -> str:
        return self.config.get("eval_split", "") or self.usual_eval_split

    def _open(self, split: str) -> CaptionedPhotographs:
        raise NotImplementedError


class CubBenchmark(CaptionedBenchmark):
    """CUB of Reed's zero-shot split."""

    entity = "bird"

    def _open(self, split: str) -> CaptionedPhotographs:
        return open_cub(self.config.path, split)


class OxfordBenchmark(CaptionedBenchmark):
    """Oxford-102 of Reed's split."""

    entity = "flower"

    def _open(self, split: str) -> CaptionedPhotographs:
        return open_oxford(self.config.path, split)


class CocoBenchmark(TextBenchmark, CaptionedBenchmark):
    """COCO: photographs with their captions, and captions to write from regions."""

    has = ("pictures", "captions", "manipulations", "texts")
    usual_eval_split = "val2014"

    def pictures(self, fields: tuple[str, ...] = ("image",), *, held_out: bool = False) -> Source:
        """Photographs; or, where they are asked for, their `features` in `data.features`."""
        split = self._held_out() if held_out else self.config.split
        return open_coco_photographs(self.config.path, split, _features(self.config, fields))

    def _open(self, split: str) -> CaptionedPhotographs:
        return open_coco_photographs(self.config.path, split)


class PieBenchmark(Benchmark):
    """PIE-Bench: pictures, prompts before and after, and masks of what may change."""

    has = ("manipulations",)

    def manipulations(
        self, count: int, kinds: tuple[str, ...] = MANIPULATION_KINDS
    ) -> Iterator[Manipulation]:
        """The first pictures by their ids."""
        source = PieBench(self.config.path)
        return (source[i] for i in range(min(count, len(source))))


class EditsBenchmark(Benchmark):
    """MS-COCO ShapePrompts: objects of photographs, and what they shall become."""

    has = ("edits",)

    def edits(self, count: int) -> Iterator[dict[str, Any]]:
        """The first objects, at the photographs' own sizes; their category is COCO's."""
        folder = Path(self.config.path)
        source = ShapePrompts(folder / self.config.annotations, folder)
        for index in range(min(count, len(source))):
            example = source[index]
            yield {**example, "category": example["source_prompt"]}


class QuestionsBenchmark(Benchmark):
    """Questions about photographs: VQA v1 and v2, VQA-X, ACT-X."""

    has = ("questions",)

    def questions(self, fields: tuple[str, ...], *, held_out: bool = False) -> Source:
        """All questions of a split; photographs and features where they are needed."""
        config = self.config
        split = config.split
        if held_out:
            usual = "val" if config.name in ("vqa_v1", "vqa_v2") else "test"
            split = config.get("eval_split", "") or usual
        return Questions(
            open_asked(config.name, config.path, split),
            pictures=(config.get("pictures", "") or config.path) if "image" in fields else None,
            features=_features(config, fields),
        )


def _features(config: ConfigDict, fields: tuple[str, ...]) -> str | None:
    """The folder of features, where they are asked for."""
    if "features" not in fields:
        return None
    if not config.get("features", ""):
        raise UserError("data.features is empty: give a folder of features, or have them computed")
    return config.features


class DialoguesBenchmark(Benchmark):
    """i-CLEVR and CoDraw, as GeNeVA published them."""

    has = ("dialogues",)

    def dialogues(self, split: str = "train") -> Dialogues:
        """The dialogues of a published file in the folder `data.path`."""
        stem = {"iclevr": "clevr", "codraw": "codraw"}[self.config.name]
        return Geneva(Path(self.config.path) / f"{stem}_{split}.h5")

    def canvas(self) -> UInt8[np.ndarray, "h w 3"]:
        """The canvas of the test set."""
        return self.dialogues("test")[0]["canvas"]


KINDS: dict[str, type[Benchmark]] = {
    "scenes": ScenesBenchmark,
    "folder": PicturesBenchmark,
    "lsun": PicturesBenchmark,
    "coco": CocoBenchmark,
    "cub": CubBenchmark,
    "oxford102": OxfordBenchmark,
    "pie_bench": PieBenchmark,
    "django": TextBenchmark,
    "gigaword": TextBenchmark,
    "wmt16": TextBenchmark,
    "shape_prompts": EditsBenchmark,
    **dict.fromkeys(("iclevr", "codraw"), DialoguesBenchmark),
    **dict.fromkeys(("vqa_v1", "vqa_v2", "vqa_x", "act_x", "nlx"), QuestionsBenchmark),
}
#: Data sets that are read here; every other name is one of TensorFlow Datasets.
NAMES = tuple(KINDS)


def open_benchmark(config: ConfigDict) -> Benchmark:
    """The benchmark of a config's `data` fields; see the module's docstring.

    Nothing is read yet, so that a model can ask what its data has before there is any.
    """
    return KINDS.get(config.name, PicturesBenchmark)(config)
