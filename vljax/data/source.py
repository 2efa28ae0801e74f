"""What all data have in common: sources of examples, and transforms of an example."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from vljax.errors import UserError

#: `transform(example, rng) -> example`: what `vljax.data.pipeline.batches` does to each example.
#: All chance comes from `rng`.
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of examples.

    A source may also have `fingerprint`, a short string that changes when its examples or their
    order change; a resumed run is then checked against it.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """Example `index`, `0 <= index < len(self)`."""
        ...


def stacked(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """One batch of examples whose arrays have the same names and shapes: each name's are stacked.

    Args:
        examples: One or more.
    """
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}


class CorruptExampleError(UserError):
    """One example cannot be read; the message names its file and index."""


#: `data.on_corrupt`: what an example that cannot be read does to a run.
OnCorrupt = Literal["stop", "skip"]

MAX_SUBSTITUTIONS = 64
"""Unreadable examples in a row after which the storage, not the file, is taken to be at fault."""


def skips(on_corrupt: str) -> bool:
    """Whether a run goes on without the examples that cannot be read.

    Raises:
        UserError: it is neither `"stop"` nor `"skip"`.
    """
    if on_corrupt not in ("stop", "skip"):
        raise UserError(f"on_corrupt is {on_corrupt!r}; choose 'stop' or 'skip'")
    return on_corrupt == "skip"


def readable(
    source: Source,
    on_corrupt: OnCorrupt,
    count: int | None = None,
    *,
    places: Iterable[int] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The first examples of a source, each with its index, read one by one as they are asked for.

    Args:
        source: The source.
        on_corrupt: For an unreadable example, `"stop"` raises `CorruptExampleError`; `"skip"`
            leaves it out.
        count: How many at most; all by default.
        places: The indices to read, in this order; all by default.

    Raises:
        UserError: an example cannot be read; of `"skip"`, none of `MAX_SUBSTITUTIONS` in a row, or
            none at all.
    """
    skip, given, lost = skips(on_corrupt), 0, list[int]()
    for index in range(len(source)) if places is None else places:
        if given == count:
            return
        try:
            example = source[index]
        except CorruptExampleError:
            if not skip:
                raise
            lost.append(index)
            if len(lost) == MAX_SUBSTITUTIONS:
                break
        else:
            yield index, example
            given += 1
            lost.clear()
    if len(lost) == MAX_SUBSTITUTIONS or (lost and not given):
        raise UserError(
            f"none of the {len(lost)} examples from number {lost[0]} on can be read; check the "
            "storage"
        )


@dataclass(frozen=True)
class Span:
    """The examples `start` … `stop − 1` of a source."""

    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        return self.source[self.start + index]

    @property
    def fingerprint(self) -> str:
        """Changes with the source's examples and the span."""
        return f"{getattr(self.source, 'fingerprint', '')}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class Renamed:
    """A source whose fields have other names: `names` maps the names here to the source's."""

    source: Source
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        theirs = {theirs: ours for ours, theirs in self.names.items()}
        return {theirs.get(name, name): value for name, value in example.items()}

    @property
    def fingerprint(self) -> str:
        """Changes with the source's examples and the names."""
        return f"{getattr(self.source, 'fingerprint', '')}{sorted(self.names.items())}"


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless `0 <= index < length`."""
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside a source of {length} examples")


def kept_for_training(held_out: int, count: int) -> int:
    """How many of `count` examples stay where the last `held_out` are kept for evaluation.

    Raises:
        UserError: none stays.
    """
    if not 0 <= held_out < count:
        raise UserError(
            f"data.held_out={held_out} of {count} examples: some must stay for training"
        )
    return count - held_out


def read_arrays(
    path: str | os.PathLike[str],
    remedy: str,
    *,
    needed: Collection[str] = (),
    also: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays in an `.npz` file by their names; a single one, as of an `.npy`, by the file's.

    Args:
        path: The file.
        remedy: What to give instead, for the error.
        needed: Arrays that must be there.
        also: Which others to read, where they are there; all by default.

    Raises:
        UserError: it is not there, is damaged, holds objects that name code, or lacks an array.
    """
    path = Path(path).expanduser()
    try:
        opened = np.load(path, allow_pickle=False)
        held = {path.stem: opened} if isinstance(opened, np.ndarray) else opened
        wanted = [n for n in sorted(held) if also is None or n in needed or n in also]
        known = ", ".join(held) or "none"
        found = {name: np.asarray(held[name]) for name in wanted}
        if isinstance(opened, np.lib.npyio.NpzFile):
            opened.close()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {remedy}") from error
    except Exception as error:  # a damaged archive raises nearly anything
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}): {remedy}") from error
    if missing := [name for name in needed if name not in found]:
        raise UserError(f"{path} has no array {missing[0]!r} (it has {known}): {remedy}")
    return found


def read_json(path: str | os.PathLike[str], remedy: str) -> Any:
    """What a JSON file holds.

    Args:
        path: The file.
        remedy: What to give instead, for the error.

    Raises:
        UserError: it is not there, or no JSON.
    """
    try:
        return json.loads(Path(path).expanduser().read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not readable json ({reason}): {remedy}") from error
