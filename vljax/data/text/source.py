"""Sequences to write, beside what they are written from: a text, or the regions of a picture.

```
data.name             'scenes' | 'coco' | 'django' | 'gigaword' | 'wmt16'
data.path             folder (coco, django) or TFDS directory (gigaword, wmt16); scenes: not used
data.split            training split: 'train' (scenes, django, gigaword, wmt16), 'train2017' (coco)
data.held_out         evaluate on so many of the last training examples (coco: pictures; scenes: on
                      so many of split 'val') and keep them from training; 0: on data.eval_split
data.max_source       most tokens of a source, or most regions of a picture
data.max_target       most tokens of a target, without start and end
data.vocabulary_size  most entries of the vocabulary, the four marks included; 0 for no limit
data.min_count        words that occur less often in training are unknown

Optional:
data.eval_split       evaluation split; by default 'val' (scenes), 'val2017' (coco), 'dev' (django)
                      or 'validation' (gigaword, wmt16)
data.vocabulary       file of a vocabulary (see `open_vocabulary`) instead of one learnt here
data.features         coco: 'regions' (default) or 'pixels', see `vljax.data.text.captions`
data.scenes           scenes: arguments of `vljax.data.scenes.Scenes`
```

Opening reads the training split once, for the vocabulary, the lengths and the frequencies. For
Gigaword's 3.8 million pairs that takes a quarter of an hour; it is kept in
`$XDG_CACHE_HOME/vljax` (by default `~/.cache/vljax`).

Django and captions are written in whole words, Gigaword and WMT16 in pieces (byte-pair encoding);
see `vljax.data.text.vocabulary`. Source and target share the vocabulary.

A *corpus* gives the raw texts of a published format, `open_text` the token ids of a corpus,
`pad_text` the arrays of one shape that a network takes.
"""

import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vljax.data.source import Transform, check_index, kept_for_training, readable
from vljax.data.text.captions import CocoCaptions, SceneCaptions, open_coco, open_scene_captions
from vljax.data.text.corpus import Corpus, TfdsPairs, open_django
from vljax.data.text.survey import learn, survey
from vljax.data.text.vocabulary import MARKS, Vocabulary, open_vocabulary
from vljax.errors import UserError
from vljax.marks import END, PAD, START

_EVAL_SPLITS = {
    "scenes": "val",
    "coco": "val2017",
    "django": "dev",
    "gigaword": "validation",
    "wmt16": "validation",
}
# Data set, feature that is read, feature that is written.
_TFDS = {
    "gigaword": ("gigaword", "document", "summary"),
    "wmt16": ("wmt16_translate/ro-en", "ro", "en"),
}
# Scenes whose captions are counted; a scene costs half a millisecond.
_SCENES_COUNTED = 1000


# ---------------------------------------------------------------------------------- source


class Text:
    """Token ids of a corpus: the random-access source that `vljax.data.pipeline` reads.

    `source[i]` is a dict of the fields asked for:

    | field | value |
    |---|---|
    | `target` | int32 [n]: ids, without start and end |
    | `source` | int32 [m]: ids; of pairs |
    | `regions`, `boxes` | float32 [r, d], [r, 4] (x0, y0, x1, y1 from 0 to 1); of pictures |
    | `image` | uint8 [h, w, 3]; of scenes |

    Attributes:
        vocabulary: what the ids stand for.
        fields: the fields of an example.
        dropped: how many training examples were left out as too long or without a target.
        truncated: how many evaluation examples lose their last tokens.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        fields: Sequence[str] | None,
        max_source: int,
        max_target: int,
        kept: Int[np.ndarray, " n"] | None = None,
        truncated: int = 0,
    ) -> None:
        known = (*corpus.fields, *(("image",) if isinstance(corpus, SceneCaptions) else ()))
        self.fields = tuple(corpus.fields if fields is None else fields)
        if unknown := [name for name in self.fields if name not in known]:
            raise UserError(f"data: field {unknown[0]!r} is none of {', '.join(known)}")
        self.corpus = corpus
        self.vocabulary = vocabulary
        self.max_source, self.max_target = max_source, max_target
        self.truncated = truncated
        self.dropped = 0 if kept is None else len(corpus) - len(kept)
        self._kept = kept

    @property
    def fingerprint(self) -> str:
        """Changes with the examples, their order, and the ids that they are given."""
        told = [self.corpus.fingerprint, self.vocabulary.fingerprint, self.dropped]
        told += [self.max_source, self.max_target]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @functools.cached_property
    def feature_size(self) -> int:
        """Numbers in the features of a region; 0 where texts are the source."""
        if "regions" not in self.corpus.fields:
            return 0
        limits = {"max_source": self.max_source, "max_target": self.max_target}
        regions = Text(self.corpus, self.vocabulary, fields=("regions",), kept=self._kept, **limits)
        # Any that can be read tells it; whoever reads the others says what damaged ones do.
        _, first = next(readable(regions, "skip"))
        return first["regions"].shape[-1]

    def __len__(self) -> int:
        return len(self.corpus) if self._kept is None else len(self._kept)

    def _place(self, index: int) -> int:
        check_index(index, len(self))
        return index if self._kept is None else int(self._kept[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self._place(index)
        made: dict[str, Any] = {}
        if {"source", "target"} & set(self.fields):
            for name, text in self.corpus.texts(place).items():
                length = self.max_source if name == "source" else self.max_target
                made[name] = np.array(self.vocabulary.encode(text)[:length], np.int32)
        if {"regions", "boxes"} & set(self.fields):
            made |= self.corpus.arrays(place)
        if "image" in self.fields and isinstance(self.corpus, SceneCaptions):
            made["image"] = self.corpus.image(place)
        return {name: made[name] for name in self.fields}

    def references(self, index: int) -> list[str]:
        """Every right text of an example, whole, written as `vocabulary.decode` writes."""
        return self.corpus.references(self._place(index))


def open_text(
    config: ConfigDict, fields: Sequence[str] | None = None, *, held_out: bool = False
) -> Text:
    """The training examples that a config describes, or those to evaluate on.

    Training leaves out examples that are over `max_source` or `max_target` tokens or have no
    target; evaluation keeps all and cuts them. One warning tells how many. Of a picture's captions
    training has each, evaluation one, and all as references.

    Args:
        config: See the module's docstring.
        fields: What is needed of each example; by default what the corpus conditions on, and the
            target.
        held_out: The evaluation examples instead.

    Raises:
        UserError: A field cannot be, or the data or the vocabulary is not there.
    """
    for name, least in (("max_source", 1), ("max_target", 1), ("held_out", 0), ("min_count", 0)):
        if config[name] < least:
            raise UserError(f"data.{name}={config[name]}: give {least} or more")
    if 0 < config.vocabulary_size <= len(MARKS) or config.vocabulary_size < 0:
        raise UserError(
            f"data.vocabulary_size={config.vocabulary_size}: the marks take {len(MARKS)}; give "
            "more, or 0 for no limit"
        )
    saved = open_vocabulary(config.vocabulary) if config.get("vocabulary", "") else None
    limits = {"max_source": config.max_source, "max_target": config.max_target}
    if not held_out:
        corpus, vocabulary, kept = _training(config, saved)
        source = Text(corpus, vocabulary, fields=fields, kept=kept, **limits)
        _tell_dropped(source)
        return source
    if saved is not None and saved.frequencies.any():
        vocabulary = saved
    else:
        vocabulary = _training(config, saved)[1]
    corpus = _open_corpus(config, held_out=True)
    cut = 0
    if not isinstance(corpus, SceneCaptions):
        lengths, _ = survey(corpus, vocabulary)
        cut = int((lengths > (config.max_source, config.max_target)).any(1).sum())
    if cut:
        warnings.warn(
            f"data: {cut} of {len(corpus)} evaluation examples are over "
            f"data.max_source={config.max_source} or data.max_target={config.max_target} tokens "
            "and lose their last; their references stay whole",
            stacklevel=2,
        )
    return Text(corpus, vocabulary, fields=fields, truncated=cut, **limits)


def _training(
    config: ConfigDict, saved: Vocabulary | None
) -> tuple[Corpus, Vocabulary, Int[np.ndarray, " n"] | None]:
    """The training corpus, its vocabulary with frequencies, and which examples fit."""
    corpus = _open_corpus(config, held_out=False)
    vocabulary = learn(corpus, config) if saved is None else saved
    if isinstance(corpus, SceneCaptions):  # Its captions are chosen to fit.
        some = corpus.part(0, min(len(corpus), _SCENES_COUNTED))
        return corpus, vocabulary.with_frequencies(survey(some, vocabulary)[1]), None
    lengths, counts = survey(corpus, vocabulary)
    fits = (lengths <= (config.max_source, config.max_target)).all(1) & (lengths[:, 1] > 0)
    return corpus, vocabulary.with_frequencies(counts), np.flatnonzero(fits).astype(np.int32)


def _tell_dropped(source: Text) -> None:
    limits = f"data.max_source={source.max_source} or data.max_target={source.max_target}"
    if not len(source):
        raise UserError(
            f"data: all {source.dropped} training examples are over {limits} tokens or without a "
            "target; raise the limits"
        )
    if source.dropped:
        warnings.warn(
            f"data: {source.dropped} of {len(source.corpus)} training examples are left out: over "
            f"{limits} tokens, or without a target",
            stacklevel=3,
        )


def _open_corpus(config: ConfigDict, *, held_out: bool) -> Corpus:
    name = config.name
    if name not in _EVAL_SPLITS:
        raise UserError(f"data.name={name!r}: choose one of {', '.join(_EVAL_SPLITS)}")
    divided = bool(config.held_out) and name != "scenes"
    split = config.split
    if held_out and not divided:
        split = config.get("eval_split", "") or _EVAL_SPLITS[name]
    if name != "scenes" and not config.path and name not in _TFDS:
        raise UserError(f"data.path is empty: give the folder of {name}")
    if name == "scenes":
        arguments = config.get("scenes", {})
        scenes = open_scene_captions(split, config.max_target, dict(arguments))
        if held_out and config.held_out:
            return scenes.part(0, min(config.held_out, len(scenes)))
        return scenes
    corpus: Corpus
    if name == "django":
        corpus = open_django(config.path, split)
    elif name == "coco":
        corpus = open_coco(config.path, split, config.get("features", "regions"))
    else:
        data_set, source, target = _TFDS[name]
        corpus = TfdsPairs(data_set, config.path or None, split, source, target)
    if divided:
        count = len(corpus)
        start = kept_for_training(config.held_out, count)
        corpus = corpus.part(start, count) if held_out else corpus.part(0, start)
    if isinstance(corpus, CocoCaptions) and not held_out:
        return dataclasses.replace(corpus, each_caption=True)
    return corpus


# ------------------------------------------------------------------------------- transform


def pad_text(max_source: int, max_target: int) -> Transform:
    """A transform that gives every example one shape.

    | field | value |
    |---|---|
    | `target` | int32 [max_target + 2]: `START`, the ids, `END`, `PAD` … |
    | `target_mask` | bool [max_target + 2]: true from start to end |
    | `source`, `source_mask` | int32, bool [max_source] |
    | `regions`, `boxes` | float32 [max_source, d], [max_source, 4], zeros beyond the mask |
    | `regions_mask` | bool [max_source] |

    An empty source becomes a single `END`, so that attention has something to look at. Of more
    regions than `max_source` the first ones stay; detectors list the surest first. Other fields
    pass unchanged.

    Args:
        max_source: Most tokens of a source, or most regions.
        max_target: Most tokens of a target, without start and end.

    Raises:
        UserError: When used on an example with more tokens (`open_text` with the same limits never
            gives one).
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        del rng
        made = dict(example)
        if "target" in example:
            framed = [START, *_fitting(example, "target", max_target), END]
            made["target"], made["target_mask"] = _padded(framed, max_target + 2)
        if "source" in example:
            source = _fitting(example, "source", max_source).tolist() or [END]
            made["source"], made["source_mask"] = _padded(source, max_source)
        for name in ("regions", "boxes"):
            if name in example:
                rows = example[name][:max_source]
                made[name] = np.zeros((max_source, rows.shape[1]), np.float32)
                made[name][: len(rows)] = rows
                made["regions_mask"] = np.arange(max_source) < len(rows)
        return made

    return transform


def _fitting(example: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    ids = np.asarray(example[name])
    if len(ids) > length:
        raise UserError(
            f"a {name} has {len(ids)} tokens, over max_{name}={length}: raise it, or open the text "
            "with this limit"
        )
    return ids


def _padded(ids: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full(length, PAD, np.int32)
    padded[: len(ids)] = ids
    return padded, np.arange(length) < len(ids)
