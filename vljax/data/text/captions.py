"""Pictures as regions, and the captions written of them: COCO's, and those of scenes.

A *region* is a vector of features and a box. Park (2023), section 3.5, takes one 512-vector for
each detection of a Faster R-CNN and appends the box's coordinates. Detectors are no part of
vljax: their output is read from one `.npz` per picture. Where there is none, a picture's own
pixels on a grid serve (`features="pixels"`), and a scene's objects are known exactly.

Both classes are corpora, as `vljax.data.text` describes them: raw captions beside arrays.
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

import numpy as np
from jaxtyping import Float
from PIL import Image

from vljax.data.pictures.captioned import read_coco_captions, read_lines
from vljax.data.pictures.images import read_image
from vljax.data.pictures.sources import IMAGE_SUFFIXES
from vljax.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Draws,
    Scene,
    Scenes,
    captions,
    render,
)
from vljax.data.source import CorruptExampleError, read_arrays
from vljax.errors import UserError
from vljax.ops.pixels import to_unit

#: Cells along each side of the grid, and pixels along each side of a cell, of `"pixels"`.
GRID, CELL = 7, 8

#: The longest that the shortest wording of any scene can be, in words.
SHORTEST_WORDING = 11

_CONTRACTED = "'(?:s|re|d|m|ll|ve)\\b"
_WORDS = re.compile(
    rf"\w+?(?=n't\b)|n't\b|{_CONTRACTED}|\w+(?:-\w+)*(?:(?!{_CONTRACTED})'\w+)?|\.\.\.|[^\w\s]"
)


def caption_words(text: str) -> list[str]:
    """Split a caption into words in small letters, signs by themselves.

    As the Penn Treebank does where captions are concerned: `"Dogs don't, a man's do."` gives
    `dogs do n't , a man 's do .`
    """
    return _WORDS.findall(text.lower().replace("’", "'"))


# ----------------------------------------------------------------------------------- COCO


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file name, its captions and, where known, its width and height in pixels."""

    name: str
    captions: tuple[str, ...]
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class CocoCaptions:
    """Captions of photographs, from a folder.

    ```
    annotations/captions_<split>.json    COCO's own file; or
    captions/<split>/<picture>.txt       one caption a line; or
    captions/<picture>.txt               the same, for every split
    features/<split>/<picture>.npz       a detector's regions; or features/<picture>.npz
    <split>/<file>, images/<file>        the pictures, needed only for `features="pixels"`
    ```

    An `.npz` holds `features`, either [r, d] with `boxes` [r, 4] beside it, or a grid [h, w, d],
    whose boxes are its cells. Boxes are `(x0, y0, x1, y1)`, in fractions of the picture or, if any
    number exceeds 1.5, in pixels; those need the picture's size, from COCO's file or as `size`
    (width, height) in the `.npz`. A picture without any detection is one region of zeros, its box
    the whole picture.

    Attributes:
        path: the folder.
        features: `"regions"` for the `.npz` files; `"pixels"` for a grid of `GRID` × `GRID`
            patches of the picture, stretched to a square of `GRID * CELL` pixels, in [-1, 1].
        pictures: what `open_coco` found.
        places: for each picture, the file of its regions, relative to `path`.
        each_caption: whether an example is a caption (training) or a picture (evaluation).
    """

    path: str
    features: str
    pictures: tuple[Picture, ...]
    places: tuple[str, ...]
    each_caption: bool = False

    fields = ("regions", "boxes", "target")

    @functools.cached_property
    def _examples(self) -> list[tuple[int, int]]:
        """Picture and caption of each example."""
        counts = [len(p.captions) if self.each_caption else 1 for p in self.pictures]
        return [(i, j) for i, count in enumerate(counts) for j in range(count)]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the pictures' names, their captions and the kind of features."""
        told = json.dumps([self.features, self.each_caption, [_listed(p) for p in self.pictures]])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def part(self, start: int, stop: int) -> "CocoCaptions":
        """The pictures `start` … `stop − 1`."""
        return dataclasses.replace(
            self, pictures=self.pictures[start:stop], places=self.places[start:stop]
        )

    def texts(self, index: int) -> dict[str, str]:
        """One caption of an example's picture."""
        picture, caption = self._examples[index]
        return {"target": self.pictures[picture].captions[caption]}

    def references(self, index: int) -> list[str]:
        """All captions of an example's picture."""
        return list(self.pictures[self._examples[index][0]].captions)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """`regions` float32 [r, d] and `boxes` float32 [r, 4] of an example's picture."""
        number = self._examples[index][0]
        picture = self.pictures[number]
        file = os.path.join(self.path, self.places[number])
        try:
            if self.features == "pixels":
                regions, boxes = _patches(read_image(file))
            else:
                regions, boxes = _read_regions(file, picture.size)
        except UserError as error:
            raise CorruptExampleError(
                f"example {index}: {error}, or set --config.data.on_corrupt=skip"
            ) from error
        return {"regions": regions, "boxes": boxes}


def open_coco(path: str | os.PathLike[str], split: str, features: str = "regions") -> CocoCaptions:
    """Find the pictures of a split, their captions and their regions.

    Args:
        path: A folder as `CocoCaptions` describes it.
        split: For instance `"train2017"`; part of file names only.
        features: `"regions"` or `"pixels"`.

    Raises:
        UserError: The folder, the captions or a picture's regions are missing.
    """
    root = Path(path).expanduser()
    if features not in ("regions", "pixels"):
        raise UserError(f"data.features={features!r}: choose 'regions' or 'pixels'")
    if not root.is_dir():
        raise UserError(f"data.path={str(path)!r} is no folder: give the folder of the captions")
    pictures = _captioned(root, split)
    folders: tuple[str, ...]
    suffixes: tuple[str, ...]
    if features == "regions":
        folders, suffixes = (f"features/{split}", "features"), (".npz",)
        remedy = "store a detector's output there, or set data.features='pixels'"
    else:
        folders, suffixes = (split, f"images/{split}", "images"), IMAGE_SUFFIXES
        remedy = "unpack the pictures there"
    found: dict[str, str] = {}
    for folder in reversed(folders):
        if (root / folder).is_dir():
            for name in os.listdir(root / folder):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in suffixes:
                    found[stem] = f"{folder}/{name}"
    missing = [p.name for p in pictures if Path(p.name).stem not in found]
    if missing:
        raise UserError(
            f"data.path={str(path)!r}: {len(missing)} of {len(pictures)} pictures, first "
            f"{missing[0]!r}, have no {' or '.join(suffixes)} file in {' or '.join(folders)}: "
            f"{remedy}"
        )
    places = tuple(found[Path(p.name).stem] for p in pictures)
    return CocoCaptions(str(root), features, pictures, places)


def _captioned(root: Path, split: str) -> tuple[Picture, ...]:
    """The pictures that have captions, in the order of their names."""
    file = root / "annotations" / f"captions_{split}.json"
    if not file.is_file():
        file = root / f"captions_{split}.json"
    if file.is_file():
        pictures = [
            Picture(name, tuple(map(_normalised, one.captions)), one.size)
            for name, one in read_coco_captions(file).items()
        ]
    else:
        folder = root / "captions"
        folder = folder / split if (folder / split).is_dir() else folder
        if not any(folder.glob("*.txt")):
            raise UserError(
                f"data.path={str(root)!r} holds no captions of split {split!r}: neither "
                f"annotations/captions_{split}.json nor captions/{split}/*.txt nor captions/*.txt; "
                "check the path and the split"
            )
        pictures = []
        for place in sorted(folder.glob("*.txt")):
            lines = filter(None, map(_normalised, read_lines(place)))
            pictures.append(Picture(place.stem, tuple(lines)))
    pictures = sorted((p for p in pictures if p.captions), key=lambda p: p.name)
    if not pictures:
        raise UserError(f"data.path={str(root)!r}: the captions of split {split!r} are all empty")
    return tuple(pictures)


def _normalised(caption: str) -> str:
    return " ".join(caption_words(caption))


def _listed(picture: Picture) -> list[Any]:
    return [picture.name, *picture.captions]


def _read_regions(
    file: str, size: tuple[int, int] | None
) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "r 4"]]:
    remedy = "store a detector's output there"
    arrays = read_arrays(file, remedy, needed=("features",), also=("boxes", "size"))
    try:
        return _regions(arrays, size)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}: {remedy}") from error


def _regions(
    arrays: Mapping[str, np.ndarray], size: tuple[int, int] | None
) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "r 4"]]:
    features = np.asarray(arrays["features"], np.float32)
    if features.ndim == 3:
        return features.reshape(-1, features.shape[-1]), grid_boxes(*features.shape[:2])
    if features.ndim != 2:
        raise ValueError(f"features has shape {list(features.shape)}, not [r, d] or [h, w, d]")
    if "boxes" not in arrays:
        raise ValueError(f"features {list(features.shape)} have no boxes beside them")
    boxes = np.asarray(arrays["boxes"], np.float32)
    if boxes.shape != (len(features), 4):
        raise ValueError(
            f"boxes has shape {list(boxes.shape)}, not [{len(features)}, 4] as features need"
        )
    if not len(features):
        return np.zeros((1, features.shape[1]), np.float32), grid_boxes(1, 1)
    # Rounding may put a fraction a little over 1.
    if boxes.max() > 1.5:
        if "size" in arrays:
            width, height = (int(n) for n in arrays["size"])
        elif size is not None:
            width, height = size
        else:
            raise ValueError("boxes are in pixels, but the picture's size is not told")
        boxes = np.divide(boxes, (width, height, width, height), dtype=np.float32)
    return features, np.clip(boxes, 0, 1)


def grid_boxes(rows: int, columns: int) -> Float[np.ndarray, "r 4"]:
    """The cells of a grid over a picture, row by row, as `(x0, y0, x1, y1)` from 0 to 1."""
    cells = [(x, y, x + 1, y + 1) for y in range(rows) for x in range(columns)]
    return np.array(cells, np.float32) / np.array([columns, rows, columns, rows], np.float32)


def _patches(image: np.ndarray) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "r 4"]]:
    side = GRID * CELL
    square = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    pixels = to_unit(np.asarray(square))
    cells = pixels.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2)
    return cells.reshape(GRID * GRID, -1), grid_boxes(GRID, GRID)


# --------------------------------------------------------------------------------- scenes

#: What the numbers of a scene's regions mean, in their order.
SCENE_FEATURES = (*SHAPES, *COLOURS, *SIZES, "x", "y", "radius", "depth", *BACKGROUNDS)


@dataclasses.dataclass(frozen=True)
class SceneCaptions:
    """Captions of scenes, the objects being the regions.

    The target is one of the scene's five wordings, by chance among those short enough; all five
    are references. A region tells its object's shape, colour and size (one-hot), its place and
    radius in fractions of the picture, its depth (0 behind all others, 1 before them), and the
    tone of the background that it stands on (one-hot): see `SCENE_FEATURES`. The order of regions
    is drawn by chance and says nothing.

    Attributes:
        scenes: the scenes.
        max_words: most words of a target, at least `SHORTEST_WORDING`.
    """

    scenes: Scenes
    max_words: int

    fields = ("regions", "boxes", "target")

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an example."""
        return repr(self)

    def __len__(self) -> int:
        return len(self.scenes)

    def part(self, start: int, stop: int) -> "SceneCaptions":
        """The first `stop` scenes; `start` is 0, since scenes are made, not divided."""
        assert start == 0
        return dataclasses.replace(self, scenes=dataclasses.replace(self.scenes, size=stop))

    def references(self, index: int) -> list[str]:
        """All wordings of a scene."""
        return [_normalised(wording) for wording in captions(_scene(self.scenes, index), index)]

    def texts(self, index: int) -> dict[str, str]:
        """One wording of a scene."""
        short = [w for w in self.references(index) if w.count(" ") < self.max_words]
        return {"target": Draws(index, 7).pick(short)}

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """`regions` float32 [r, d] and `boxes` float32 [r, 4] of a scene's objects."""
        scene = _scene(self.scenes, index)
        count = len(scene.objects)
        regions, boxes = scene_regions(scene)
        order = Draws(index, 8).sample(range(count), count)
        return {"regions": regions[order], "boxes": boxes[order]}

    def image(self, index: int) -> np.ndarray:
        """The picture of a scene, uint8 [h, w, 3]."""
        return render(_scene(self.scenes, index), self.scenes.image_size)


def open_scene_captions(split: str, max_words: int, arguments: Mapping[str, Any]) -> SceneCaptions:
    """Captions of scenes.

    Args:
        split: `"train"` or `"val"`.
        max_words: Most words of a target.
        arguments: Further ones of `vljax.data.scenes.Scenes`.

    Raises:
        UserError: `max_words` is less than any wording of some scenes has.
    """
    if max_words < SHORTEST_WORDING:
        raise UserError(
            f"data.max_target={max_words}: captions of scenes need {SHORTEST_WORDING} words or more"
        )
    return SceneCaptions(Scenes(**{**arguments, "split": split}), max_words)


# An example's texts and arrays come from one scene, which takes longer to invent than to tell.
@functools.lru_cache(maxsize=64)
def _scene(scenes: Scenes, index: int) -> Scene:
    return scenes.scene(index)


def scene_regions(scene: Scene) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "r 4"]]:
    """Features and boxes of a scene's objects, back to front; see `SCENE_FEATURES`."""
    things = scene.objects
    regions = np.zeros((len(things), len(SCENE_FEATURES)), np.float32)
    boxes = np.zeros((len(things), 4), np.float32)
    for i, thing in enumerate(things):
        told: Sequence[str] = (thing.shape, thing.colour, thing.size, scene.background.tone)
        regions[i, [SCENE_FEATURES.index(name) for name in told]] = 1
        start = SCENE_FEATURES.index("x")
        depth = i / max(len(things) - 1, 1)
        regions[i, start : start + 4] = thing.x, thing.y, thing.radius, depth
        left, top = thing.x - thing.radius, thing.y - thing.radius
        boxes[i] = left, top, thing.x + thing.radius, thing.y + thing.radius
    return regions, np.clip(boxes, 0, 1)
