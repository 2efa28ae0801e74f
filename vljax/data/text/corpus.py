"""Corpora: raw texts in published formats, as `vljax.data.text.source` makes token ids of them.

Here are those of pairs, line by line or prepared by TensorFlow Datasets; captions have regions of
pictures beside them (`vljax.data.text.captions`).
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vljax.data.pictures.sources import open_prepared
from vljax.data.source import CorruptExampleError
from vljax.data.text.vocabulary import spaced_words
from vljax.errors import UserError


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
                "the data set again, or set --config.data.on_corrupt=skip"
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
