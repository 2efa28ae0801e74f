"""Pictures with a shape and the words for it: MS-COCO ShapePrompts, and objects of scenes.

`ShapePrompts` reads the benchmark of Shape-Guided Diffusion (thesis section 5.4): MS-COCO's
annotation format with one more field, `text`, the edit prompt of an object ("dog wearing a floral
jacket"); the category's name is the source prompt. `named_object` makes training examples of scenes
for the network that infers shapes from text (`vljax.models.clipseg`).
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from vljax.data.pictures.images import decode_image
from vljax.data.scenes import CLASSES
from vljax.data.source import CorruptExampleError, Transform, check_index, read_json
from vljax.errors import UserError, of_extra

#: Objects smaller or larger than these shares of the picture are left out of the benchmark.
AREA = (0.02, 0.5)


class ShapePrompts:
    """A random-access source of edits: a photograph, an object's shape, its name and the wish.

    `source[i]` is a dict:

    | field | value |
    |---|---|
    | `image` | uint8 `(h, w, 3)`, the photograph at its own size |
    | `edit_mask` | bool `(h, w)`: the object |
    | `source_prompt` | str: its category, such as "dog" |
    | `edit_prompt` | str: what it shall become |
    | `box` | float32 `(4,)`: x0, y0, x1, y1 in pixels |
    | `id` | int: the annotation's, unique |
    | `path` | str: the photograph's file name |

    Args:
        annotations: A ShapePrompts file: MS-COCO json with `text` in every annotation.
        images: The folder of the photographs, themselves or in COCO's folders (`train2017`, …);
            None gives examples without `image`, to look at shapes and prompts alone.
        area: Least and greatest share of the picture that an object may take; others are left out.

    Raises:
        UserError: a file is missing, is no such json, or has an entry that cannot be used.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str] | None,
        *,
        area: tuple[float, float] = AREA,
    ) -> None:
        self.path = Path(annotations).expanduser()
        content = _read(self.path)
        pictures = {
            picture["id"]: picture for picture in _rows(self.path, content, "images", _IMAGE)
        }
        categories = {
            category["id"]: category["name"]
            for category in _rows(self.path, content, "categories", _CATEGORY)
        }
        self._entries: list[dict[str, Any]] = []
        ids = set()
        for entry in _rows(self.path, content, "annotations", _ANNOTATION):
            where = f"{self.path}: annotation {entry['id']}"
            for field, known in (("image_id", pictures), ("category_id", categories)):
                if entry[field] not in known:
                    raise UserError(f"{where} has {field}={entry[field]}, which is not listed")
            if entry["id"] in ids:
                raise UserError(f"{where} is there twice: each needs an id of its own")
            if len(entry["bbox"]) != 4 or not all(
                isinstance(n, int | float) for n in entry["bbox"]
            ):
                raise UserError(f"{where} has bbox={entry['bbox']}: give x, y, width and height")
            if not entry["text"].strip():
                raise UserError(f"{where} has an empty text: give the edit prompt")
            ids.add(entry["id"])
            picture = pictures[entry["image_id"]]
            share = entry["area"] / (picture["height"] * picture["width"])
            if area[0] <= share <= area[1]:
                name = categories[entry["category_id"]]
                self._entries.append({**entry, "picture": picture, "source_prompt": name})
        if not self._entries:
            raise UserError(
                f"{self.path} has no object that takes {area[0]:.0%} to {area[1]:.0%} of its "
                "picture: choose another file"
            )
        self._files: list[Path] | None = None
        if images is not None:
            self._files = _find(Path(images).expanduser(), [e["picture"] for e in self._entries])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all ids and prompts, in order."""
        told = [(entry["id"], entry["text"]) for entry in self._entries]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        entry = self._entries[index]
        height, width = entry["picture"]["height"], entry["picture"]["width"]
        try:
            mask = decode_mask(entry["segmentation"], height, width)
        except ValueError as error:
            raise self._corrupt(index, f"its segmentation: {error}") from error
        left, top, across, down = entry["bbox"]
        example = {
            "edit_mask": mask,
            "source_prompt": entry["source_prompt"],
            "edit_prompt": entry["text"],
            "box": np.array([left, top, left + across, top + down], np.float32),
            "id": entry["id"],
            "path": entry["picture"]["file_name"],
        }
        if self._files is None:
            return example
        try:
            image = decode_image(self._files[index].read_bytes())
        except (OSError, ValueError) as error:
            raise self._corrupt(index, f"{self._files[index]}: {error}") from error
        if image.shape[:2] != (height, width):
            found = f"{image.shape[1]}×{image.shape[0]}"
            raise self._corrupt(
                index,
                f"{self._files[index]} is {found} pixels, the annotations say {width}×{height}",
            )
        return {"image": image, **example}

    def _corrupt(self, index: int, reason: str) -> CorruptExampleError:
        return CorruptExampleError(
            f"example {index} (annotation {self._entries[index]['id']}) of {self.path} cannot be "
            f"read: {' '.join(reason.split())}; replace or remove it"
        )


def decode_mask(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of a COCO segmentation.

    Args:
        segmentation: A list of polygons (x0, y0, x1, y1, …), or a run-length encoding: `size`
            [height, width] with `counts`, a list of run lengths or COCO's compressed string.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.

    Raises:
        ValueError: it is none of these, or marks nothing.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, height, width)
        parts = _rle().frPyObjects(segmentation, height, width)
    elif isinstance(segmentation, dict):
        parts = [_run_lengths(segmentation, height, width)]
    else:
        raise ValueError("it is neither a list of polygons nor a run-length encoding")
    mask = _rle().decode(_rle().merge(parts)).astype(bool)
    if not mask.any():
        raise ValueError("it marks no pixel")
    return mask


def _rle() -> Any:
    return of_extra("coco", "pycocotools.mask", "a mask of COCO's")


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    # The C library behind the decoder trusts its input.
    if (
        not isinstance(polygon, list)
        or len(polygon) < 6
        or len(polygon) % 2
        or not all(isinstance(number, int | float) for number in polygon)
    ):
        raise ValueError("a polygon is not a list of three or more x, y pairs")
    points = np.array(polygon, np.float64).reshape(-1, 2)
    if not (np.abs(points / (width, height) - 0.5) <= 1).all():
        raise ValueError(f"a polygon lies outside of {width}×{height} pixels")


def _run_lengths(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """A run-length encoding in COCO's compressed form."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(
            f"its size is {size}, the picture's height and width are {[height, width]}"
        )
    runs: Any = _decompress(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(isinstance(n, int) and n >= 0 for n in runs)
    if not whole or sum(runs) != height * width:
        raise ValueError(f"its counts are not run lengths of {height * width} pixels")
    return _rle().frPyObjects({"size": size, "counts": runs}, height, width)


def _decompress(text: str) -> list[int]:
    """The run lengths in COCO's compressed string.

    Each is a signed number in little-endian groups of five bits, one character from "0" each, the
    sixth bit telling that more follow; from the fourth on, what is written is the difference from
    the run before the last one.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"its counts hold {character!r}")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    return runs


# The fields that are needed, with their types.
_IMAGE = {"id": int, "file_name": str, "height": int, "width": int}
_CATEGORY = {"id": int, "name": str}
_ANNOTATION = {
    "id": int,
    "image_id": int,
    "category_id": int,
    "area": (int, float),
    "bbox": list,
    "segmentation": (list, dict),
    "text": str,
}


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, "give a ShapePrompts json file")
    if not isinstance(content, dict):
        raise UserError(f"{path} is no COCO annotation file: give a ShapePrompts json file")
    return content


def _rows(path: Path, content: dict[str, Any], name: str, fields: dict) -> list[dict[str, Any]]:
    """The list of that name, every row of it with the fields."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise UserError(f"{path} has no list {name!r}: give a ShapePrompts json file")
    for i, row in enumerate(rows):
        for field, kind in fields.items():
            value = row.get(field) if isinstance(row, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                shown = "is missing" if value is None else f"is {str(value)[:40]!r}"
                raise UserError(f"{path}: {name}[{i}]: {field} {shown}: correct or remove it")
        if name == "images" and min(row["height"], row["width"]) < 1:
            raise UserError(f"{path}: images[{i}] has no pixels: correct or remove it")
    return rows


def _find(folder: Path, pictures: Sequence[dict[str, Any]]) -> list[Path]:
    """The file of each picture, in the folder or in the one that its `coco_url` names."""
    if not folder.is_dir():
        raise UserError(f"image folder {folder} is not there: give that of the COCO pictures")
    files, missing = [], []
    for picture in pictures:
        name = picture["file_name"]
        split = str(picture.get("coco_url", "")).split("/")[-2:-1]
        places = [folder / name, *(folder / part / name for part in split)]
        there = [place for place in places if place.is_file()]
        files += there[:1]
        if not there:
            missing.append("/".join([*split, name]))
    if missing:
        raise UserError(
            f"image folder {folder} lacks {len(set(missing))} of {len(set(map(id, pictures)))} "
            f"pictures, the first is {missing[0]}: download them from MS-COCO"
        )
    return files


# Scenes ----------------------------------------------------------------------------------------

_WORDINGS = ("{}", "a {}", "the {}", "a photo of a {}")


def named_object(
    tokenizer: Callable[[Sequence[str], int], Int[np.ndarray, "b n"]],
    length: int,
    *,
    absent: float = 0.1,
) -> Transform:
    """The transform from a scene to a text that names one of its objects and that object's mask.

    Args:
        tokenizer: Texts and a length to tokens (`vljax.data.text.tokenizers`).
        length: Tokens of each text.
        absent: How often the text names an object that is not there, whose mask is empty (the
            paper's negative samples, Lüddecke & Ecker 2022, section 4).

    Returns:
        `transform(example, rng) -> {"image", "tokens", "mask"}` of examples of `Scenes` with the
        fields `image`, `class_ids` and `masks`, as the segmenter's loss takes them.
    """
    if not 0 <= absent < 1:
        raise UserError(f"absent={absent}: choose a share from 0 to less than 1")

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        there = [int(label) for label in example["class_ids"] if label >= 0]
        if rng.random() < absent:
            label = int(rng.choice(np.setdiff1d(np.arange(len(CLASSES)), there)))
            mask = np.zeros(example["image"].shape[:2], bool)
        else:
            chosen = int(rng.integers(len(there)))
            label, mask = there[chosen], example["masks"][chosen]
        text = _WORDINGS[rng.integers(len(_WORDINGS))].format(CLASSES[label])
        return {"image": example["image"], "tokens": tokenizer([text], length)[0], "mask": mask}

    return transform
