"""Features of pictures, computed once: reading the published ones, and keeping our own.

Both lie in one form, PJ-X's: a file `<picture's file name>.npz` for each picture, which holds an
array `x`, float32 [c, h, w] (published: `res5c` of ResNet-152 at 448 px, 2048×14×14).
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vljax import files
from vljax.data.source import read_arrays
from vljax.errors import UserError

KEY = "x"


@dataclasses.dataclass(frozen=True)
class Features:
    """The features in a folder, by the pictures' names.

    Attributes:
        folder: That of the `.npz` files.
    """

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a picture's features."""
        return self.folder / f"{name}.npz"

    def __contains__(self, name: str) -> bool:
        return self.path(name).is_file()

    def __getitem__(self, name: str) -> Float[np.ndarray, "c h w"]:
        """The features of a picture, as they are.

        Raises:
            UserError: there are none, or the file holds something else.
        """
        return read_features(self.path(name))


def read_features(path: str | os.PathLike[str]) -> Float[np.ndarray, "c h w"]:
    """The array `x` in an `.npz` file.

    Raises:
        UserError: it is not there, cannot be read, or is no [c, h, w] of finite numbers.
    """
    remedy = f"give an .npz with {KEY!r}, float32 [c, h, w], or have the features computed"
    found = read_arrays(path, remedy, needed=(KEY,), also=())[KEY]
    if found.ndim != 3 or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise UserError(f"{path}: {KEY!r} is {found.dtype} {list(found.shape)}: {remedy}")
    return found.astype(np.float32)


def compute_features(
    folder: str | os.PathLike[str],
    names: Iterable[str],
    read: Callable[[str], np.ndarray],
    encode: Callable[[np.ndarray], Float[np.ndarray, "b h w c"]],
    batch_size: int = 16,
) -> Features:
    """Features of pictures by any trunk, computed once and kept.

    What is in the folder already is left as it is, so that a run that was cut short goes on; a
    folder belongs to one trunk and one way to prepare pictures for it.

    Args:
        folder: Where to keep them.
        names: The pictures' names.
        read: From a name to the picture as the trunk takes it; all of one size.
        encode: The trunk, from a batch of `batch_size` pictures (the last one is repeated to fill
            it, so that one program serves) to their maps of features.
        batch_size: Pictures at a time.

    Raises:
        UserError: a picture cannot be read, or there is no room.
    """
    made = Features(files.expanded(folder))
    for some in _groups((name for name in dict.fromkeys(names) if name not in made), batch_size):
        pictures = [read(name) for name in some]
        pictures += pictures[-1:] * (batch_size - len(pictures))
        maps = np.asarray(encode(np.stack(pictures)), np.float32)
        for name, one in zip(some, maps, strict=False):
            try:
                with files.replacing(made.path(name)) as partial, partial.open("wb") as file:
                    np.savez(file, x=np.ascontiguousarray(one.transpose(2, 0, 1)))
            except OSError as error:
                raise UserError(
                    f"features cannot be kept in {made.folder} ({error.strerror}): make room, or "
                    "name another folder"
                ) from error
    return made


def _groups(names: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for name in names:
        group.append(name)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
