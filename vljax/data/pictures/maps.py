"""Where people looked: pointing maps of VQA-X and ACT-X, and VQA-HAT's; how a map is shown.

How the arrays in the `.npz` files of PJ-X (`visual/{val,test}/…npz`) are called and shaped is
published nowhere; three people's heat maps of any size are in each. What is there is taken, and
told.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vljax.data.pictures.images import read_image
from vljax.data.source import read_arrays
from vljax.errors import UserError

# More people than this never marked one picture: a longer axis is one of pixels.
_MOST_PEOPLE = 16
_REMEDY = "give a pointing map: an .npz of arrays [h, w], [n, h, w] or [h, w, n]"


@dataclasses.dataclass(frozen=True)
class Pointing:
    """Maps of one picture.

    Attributes:
        maps: One a person, as large as the file has them; at least 0, not normalised.
        told: What the file held, in words.
    """

    maps: Float[np.ndarray, "n h w"]
    told: str


def read_pointing(path: str | os.PathLike[str]) -> Pointing:
    """The maps in an `.npz` file, or in an `.npy`.

    A single array is [h, w], [n, h, w] or [h, w, n]; several arrays of one shape [h, w] are
    stacked, in the order of their names. An axis of at most 16 beside longer ones is that of
    people; where both ends are so short, the first.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    arrays = read_arrays(path, _REMEDY)
    told = ", ".join(f"{name!r} {a.dtype} {list(a.shape)}" for name, a in arrays.items())
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not array.size:
            raise UserError(f"{path}: {name!r} is {array.dtype} {list(array.shape)}: {_REMEDY}")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or (len(arrays) > 1 and len(next(iter(shapes))) != 2):
        raise UserError(f"{path} holds {told or 'nothing'}: {_REMEDY}")
    found = np.stack(list(arrays.values())) if len(arrays) > 1 else next(iter(arrays.values()))
    if found.ndim == 2:
        found = found[None]
    elif found.ndim == 3 and found.shape[0] > _MOST_PEOPLE >= found.shape[2]:
        found = found.transpose(2, 0, 1)
    if found.ndim != 3 or found.shape[0] > _MOST_PEOPLE:
        raise UserError(f"{path} holds {told}: {_REMEDY}")
    maps = found.astype(np.float32)
    if not np.isfinite(maps).all() or maps.min() < 0:
        raise UserError(f"{path} holds {told}, with numbers below 0 or not finite: {_REMEDY}")
    count, height, width = maps.shape
    return Pointing(maps, f"{count} of {height}×{width} from {told}")


def find_pointing(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """PJ-X's files of maps, by their names without `.npz`.

    Args:
        folder: That of the files, or of folders of them (`visual`, with `val` and `test`).

    Raises:
        UserError: there is no such folder or file.
    """
    root = Path(folder).expanduser()
    found = {path.stem: path for path in sorted(root.rglob("*.npz"))}
    if not found:
        raise UserError(f"{root} holds no pointing map (.npz): give the unpacked folder")
    return found


def named_pointing(id: str, image: str) -> tuple[str, ...]:
    """The names that the map of a question may have, the likeliest first.

    That of the question, of its picture's file with and without its ending, or of the picture's
    number in COCO.

    Args:
        id: Of the question.
        image: Its picture's file name.
    """
    stem = Path(image).stem
    return id, image, stem, stem.rpartition("_")[2].lstrip("0")


def mean_map(maps: Sequence[Float[np.ndarray, "h w"]]) -> Float[np.ndarray, "h w"]:
    """Where several people looked, each counting alike; zeros where all their maps are empty.

    The paper does not say how it joined its three.

    Raises:
        UserError: the maps have different sizes.
    """
    if len({one.shape for one in maps}) != 1:
        sizes = ", ".join("×".join(map(str, one.shape)) for one in maps)
        raise UserError(f"maps of one picture have different sizes ({sizes}): fetch them again")
    full = [np.float64(one) / one.sum(dtype=np.float64) for one in maps if one.any()]
    return np.mean(full, axis=0) if full else np.zeros(maps[0].shape)


def find_hat(folder: str | os.PathLike[str]) -> dict[str, tuple[Path, ...]]:
    """VQA-HAT's files of each question (Das et al. 2016), by the question's number in VQA v1.

    Args:
        folder: That of `<question>_<person>.png`, one person in the training set and up to three in
            validation; machines' maps are `<question>.png`.

    Raises:
        UserError: there is no such folder or file.
    """
    root = Path(folder).expanduser()
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*.png")):
        if name := re.fullmatch(r"(\d+)(_\d+)?", path.stem):
            found.setdefault(name[1], []).append(path)
    if not found:
        raise UserError(
            f"{root} holds no map of VQA-HAT, such as 1000_1.png: give the unpacked folder"
        )
    return {question: tuple(paths) for question, paths in found.items()}


def read_hat(path: str | os.PathLike[str]) -> Float[np.ndarray, "h w"]:
    """A map of VQA-HAT, from 0 to 1: a grey picture, of its photograph's proportions.

    Raises:
        UserError: it is no readable picture.
    """
    return read_image(path).mean(-1, dtype=np.float32) / 255


def heat_colours(heat: Float[np.ndarray, "*b"]) -> Float[np.ndarray, "*b 3"]:
    """Black, red, orange, yellow, white for 0 to 1, each brighter than the last; in [0, 1]."""
    return (2 * heat[..., None] - np.array([0.0, 0.5, 1.0])).clip(0, 1)


def over_picture(
    points: Float[np.ndarray, "h w"], image: UInt8[np.ndarray, "H W 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """A map in colours over a picture, at the picture's own size, as in PJ-X's figure 2.5."""
    height, width = image.shape[:2]
    scaled = Image.fromarray(np.float32(points / max(points.max(), 1e-12)))
    heat = np.asarray(scaled.resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    colours = 255 * heat_colours(heat)
    grey = image.mean(-1, keepdims=True) * 0.5 + 64
    share = 0.25 + 0.6 * heat[..., None]
    return (share * colours + (1 - share) * grey).clip(0, 255).astype(np.uint8)
