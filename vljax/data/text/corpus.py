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

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict
from rich.progress import track

from vljax import files
from vljax.data.pictures.sources import open_prepared
from vljax.data.scenes import VOCABULARY
from vljax.data.source import CorruptExampleError, Transform, check_index, kept_for_training
from vljax.data.text.captions import (
    CocoCaptions,
    SceneCaptions,
    open_coco,
    open_scene_captions,
)
from vljax.data.text.vocabulary import (
    END,
    MARKS,
    PAD,
    START,
    UNKNOWN,
    Vocabulary,
    Words,
    learn_pieces,
    learn_words,
    open_vocabulary,
    spaced_words,
)
from vljax.errors import UserError

__all__ = [
    "END",
    "MARKS",
    "PAD",
    "START",
    "UNKNOWN",
    "Corpus",
    "LinePairs",
    "Text",
    "TfdsPairs",
    "Vocabulary",
    "open_django",
    "open_text",
    "open_vocabulary",
    "pad_text",
]

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
# Pairs that byte-pair encoding is learnt from: more change few merges and take minutes.
_LEARN_FROM = 1_000_000
# Examples that take long enough to count for a person to want to see it: a quarter of a minute.
_LONG = 100_000
# Scenes whose captions are counted; a scene costs half a millisecond.
_SCENES_COUNTED = 1000


# --------------------------------------------------------------------------------- corpora


class Corpus(Protocol):
    """Raw texts in pairs, or beside the regions of pictures."""

    @property
    def fields(self) -> tuple[str, ...]:
        """`("source", "target")` or `("regions", "boxes", "target")`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with the examples and their order."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def part(self, start: int, stop: int, /) -> "Corpus":
        """The examples (of captions: the pictures) `start` … `stop − 1`."""
        ...

    def texts(self, index: int, /) -> dict[str, str]:
        """`target` and, of pairs, `source`."""
        ...

    def arrays(self, index: int, /) -> dict[str, np.ndarray]:
        """`regions` and `boxes` of pictures; of pairs nothing."""
        ...

    def references(self, index: int, /) -> list[str]:
        """Every text that would be right."""
        ...


@dataclasses.dataclass(frozen=True)
class LinePairs:
    """Line `i` of one text beside line `i` of another."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]

    fields = ("source", "target")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with any line."""
        lines = "\n".join((*self.sources, *self.targets))
        return hashlib.sha256(lines.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.targets)

    def part(self, start: int, stop: int) -> "LinePairs":
        """The lines `start` … `stop − 1`."""
        return LinePairs(self.sources[start:stop], self.targets[start:stop])

    def texts(self, index: int) -> dict[str, str]:
        """Both lines."""
        return {"source": self.sources[index], "target": self.targets[index]}

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def references(self, index: int) -> list[str]:
        """The target's line, its words parted by single spaces."""
        return [" ".join(spaced_words(self.targets[index]))]


def open_django(path: str | os.PathLike[str], split: str) -> LinePairs:
    """Django's lines of code, each with its description (Oda et al. 2015).

    Args:
        path: Folder of `src_raw_<split>.txt` (descriptions) and `tgt_raw_<split>.txt` (code), an
            example a line, its words parted by spaces.
        split: `"train"`, `"dev"` or `"test"`.

    Raises:
        UserError: A file is missing or no UTF-8, or the two have not the same number of lines.
    """
    sources, targets = (
        _lines(Path(path).expanduser() / f"{side}_raw_{split}.txt") for side in ("src", "tgt")
    )
    if len(sources) != len(targets):
        raise UserError(
            f"data.path={str(path)!r}: src_raw_{split}.txt has {len(sources)} lines, "
            f"tgt_raw_{split}.txt {len(targets)}: they must pair; fetch both again"
        )
    if not targets:
        raise UserError(f"data.path={str(path)!r}: src_raw_{split}.txt is empty; fetch it again")
    return LinePairs(sources, targets)


def _lines(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        raise UserError(
            f"data.path={str(file.parent)!r} has no {file.name}: give the folder that holds "
            "src_raw_train.txt and tgt_raw_train.txt, and a split that is there"
        )
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error}); convert it") from error
    # Only line feeds part lines: code may hold the other signs that `splitlines` would split at.
    lines = text.removesuffix("\n").split("\n") if text else []
    return tuple(line.removesuffix("\r") for line in lines)


class TfdsPairs:
    """Two text features of a data set that TensorFlow Datasets has prepared; see `open_prepared`.

    Args:
        name: Name, or `name/config:version`.
        data_dir: Folder it was prepared in; None for tensorflow-datasets' own.
        split: For instance `"train"` or `"train[:90%]"`.
        source: Feature to read.
        target: Feature to write.

    Raises:
        UserError: The data set, the split or the features are not there.
    """

    fields = ("source", "target")

    def __init__(self, name: str, data_dir: str | None, split: str, source: str, target: str):
        def no_decoders(features: Mapping[str, Any], what: str) -> dict[str, Any]:
            absent = {source, target} - set(features)
            if absent:
                named = sorted(absent)[0]
                raise UserError(f"{what} has no feature {named!r}; choose another data set")
            return {}

        self._where, self._examples = open_prepared(name, data_dir, split, no_decoders)
        self._names = source, target
        self._span = range(len(self._examples))

    @property
    def fingerprint(self) -> str:
        """Changes with the data set's version, the split, the features and the part."""
        told = f"{self._where} {self._names} {self._span}"
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._span)

    def part(self, start: int, stop: int) -> "TfdsPairs":
        """The records `start` … `stop − 1`."""
        other = object.__new__(TfdsPairs)
        other.__dict__.update(self.__dict__, _span=self._span[start:stop])
        return other

    def texts(self, index: int) -> dict[str, str]:
        """Both texts of a record."""
        record = self._span[index]
        try:
            example = self._examples[record]
            source, target = (_text(example[name]) for name in self._names)
        except Exception as error:  # array_record and protobuf report damage in many ways.
            reason = " ".join(str(error).split())
            raise CorruptExampleError(
                f"example {index} cannot be read: {self._where} record {record}: {reason}; prepare "
                "the data set again, or set on_corrupt to 'skip'"
            ) from error
        return {"source": source, "target": target}

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Nothing."""
        return {}

    def references(self, index: int) -> list[str]:
        """The target."""
        return [self.texts(index)["target"].strip()]


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


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
        return self.corpus.arrays(self._place(0))["regions"].shape[-1]

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
        lengths, _ = _survey(corpus, vocabulary)
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
    vocabulary = _learn(corpus, config) if saved is None else saved
    if isinstance(corpus, SceneCaptions):  # Its captions are chosen to fit.
        some = corpus.part(0, min(len(corpus), _SCENES_COUNTED))
        return corpus, vocabulary.with_frequencies(_survey(some, vocabulary)[1]), None
    lengths, counts = _survey(corpus, vocabulary)
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


def _learn(corpus: Corpus, config: ConfigDict) -> Vocabulary:
    if isinstance(corpus, SceneCaptions):
        return Words((*VOCABULARY, ","), caption=True)
    if not isinstance(corpus, TfdsPairs):
        return learn_words(
            _all_texts(corpus, range(len(corpus))),
            min_count=config.min_count,
            vocabulary_size=config.vocabulary_size,
            caption="regions" in corpus.fields,
        )
    told = f"{corpus.fingerprint} {config.vocabulary_size} {config.min_count} {_LEARN_FROM}"
    file = _cached("pieces", told, ".json")
    if file.is_file():
        with contextlib.suppress(UserError):  # A damaged file is made anew.
            return open_vocabulary(file)
    spread = np.linspace(0, len(corpus) - 1, num=min(len(corpus), _LEARN_FROM)).astype(int)
    pieces = learn_pieces(
        _all_texts(corpus, spread.tolist()), config.vocabulary_size, min_count=config.min_count
    )
    _keep(lambda: pieces.save(file))
    return pieces


def _all_texts(corpus: Corpus, indices: Iterable[int]) -> Iterator[str]:
    for index in indices:
        yield from corpus.texts(index).values()


def _survey(
    corpus: Corpus, vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " size"]]:
    """Tokens of each source and target, and how often each entry is in the targets."""
    if not isinstance(corpus, TfdsPairs):
        return _measure(corpus, vocabulary)
    file = _cached("survey", f"{corpus.fingerprint} {vocabulary.fingerprint}", ".npz")
    try:
        with np.load(file, allow_pickle=False) as saved:
            return saved["lengths"], saved["counts"]
    except Exception:  # Missing or damaged, it is made anew.
        lengths, counts = _measure(corpus, vocabulary)
    packed = io.BytesIO()
    np.savez(packed, lengths=lengths, counts=counts)
    _keep(lambda: files.write(file, packed.getvalue()))
    return lengths, counts


def _measure(
    corpus: Corpus, vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " size"]]:
    lengths = np.zeros((len(corpus), 2), np.int32)
    counts: Counter[int] = Counter()
    shown = len(lengths) >= _LONG
    for index in track(range(len(lengths)), "Counting tokens, once …", disable=not shown):
        row, texts = lengths[index], corpus.texts(index)
        target = vocabulary.encode(texts["target"])
        row[:] = len(vocabulary.encode(texts.get("source", ""))), len(target)
        counts.update(target)
    frequencies = np.zeros(vocabulary.size, np.int64)
    frequencies[list(counts.keys())] = list(counts.values())
    return lengths, frequencies


def _cached(kind: str, told: str, suffix: str) -> Path:
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return files.cache_folder() / f"{kind}-{digest}{suffix}"


def _keep(save: Callable[[], object]) -> None:
    # Without room for the cache the next run does the work again.
    with contextlib.suppress(OSError):
        save()


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
