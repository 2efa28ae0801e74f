"""i-CLEVR and CoDraw as GeNeVA published them: HDF5 files of dialogues, read and written.

The layout is that of GeNeVA_datasets (Maluuba, d057bc8). Pictures and background are BGR, as
OpenCV reads them; here everything is RGB. (GeNeVA's own loader leaves the background in BGR, so
that its first reference has swapped colours.)

Of the file: `background`, uint8 (240, 320, 3) in `clevr_{train,val,test}.h5`, (128, 128, 3) in
`codraw_{train,val,test}.h5`; the names of C classes, in i-CLEVR as JSON in `entities`, of CoDraw a
line each in `objects.txt` beside it. Then a group for each dialogue, with n turns:

| | i-CLEVR | CoDraw |
|---|---|---|
| its name | `000000`, … | `0`, `1`, … |
| `images` | uint8 (n, 128, 128, 3) | uint8 (n, 128, 128, 3) |
| text | `text`: JSON list of n | `utterences` [sic]: n strings |
| `objects` | float64 (n, C): shown after each turn | int64 (n, C) |
| `coords` | float64 (n, C, 3): x, y in pixels, depth; 0 if absent | int64 (n, C, 3) |
| `scene_id` | string | int64 |

Where CoDraw's rounds were joined, texts and pictures stay as they were published.

`h5py` is asked for when a file is opened: `pip install 'vljax[dialogues]'`.
"""

import functools
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vljax import files
from vljax.data.dialogues import Dialogues
from vljax.data.source import CorruptExampleError, check_index
from vljax.errors import UserError, of_extra

Layout = Literal["clevr", "codraw"]
#: What stands beside the dialogues in a file.
_NO_DIALOGUES = ("background", "entities")


def _h5py() -> Any:
    return of_extra("dialogues", "h5py", "a file of i-CLEVR or CoDraw (HDF5)")


class Geneva:
    """The dialogues of one published file; see `vljax.data.dialogues` for an example's fields.

    Args:
        path: The file.

    Raises:
        UserError: it is not there, is no such file, or is truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise UserError(
                f"{self.path}: no such file; make it with GeNeVA_datasets, or write one from "
                "scenes (vljax.data.pictures.geneva.write)"
            )
        file = self._file
        if "background" not in file or file["background"].ndim != 3:
            raise UserError(
                f"{self.path} has no background [h w 3]: give a file of GeNeVA_datasets"
            )
        names = [name for name in file if name not in _NO_DIALOGUES]
        if not names or not all(name.isdecimal() for name in names):
            raise UserError(f"{self.path} has no dialogues: give a file of GeNeVA_datasets")
        # h5py lists "10" before "2".
        self._names = tuple(sorted(names, key=int))
        self.lengths = self._lengths()
        self.classes = self._classes()

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file: every process opens its own."""
        return {name: value for name, value in vars(self).items() if name != "_file"}

    @functools.cached_property
    def _file(self) -> Any:
        try:
            return _h5py().File(self.path, "r")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({' '.join(str(error).split())}): is it whole?"
            ) from error

    def _lengths(self) -> Int[np.ndarray, " n"]:
        lengths = []
        for name in self._names:
            group = self._file[name]
            images = group.get("images")
            if images is None or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
                raise UserError(f"{self.path}: group {name} has no images [n h w 3]")
            if images.dtype != np.uint8:
                raise UserError(
                    f"{self.path}: group {name} has images of {images.dtype}, not uint8"
                )
            lengths.append(len(images))
        return np.array(lengths)

    def _classes(self) -> tuple[str, ...]:
        if "entities" in self._file:
            return tuple(json.loads(self._file["entities"][()]))
        beside = self.path.with_name("objects.txt")
        if beside.is_file():
            return tuple(beside.read_text("utf-8").split("\n")[:-1])
        count = self._file[self._names[0]]["objects"].shape[1]
        return tuple(f"object {i}" for i in range(count))

    @property
    def fingerprint(self) -> str:
        """Changes with the file's name, size and dialogues."""
        return f"{self.path.name} {self.path.stat().st_size} {len(self)}"

    def __len__(self) -> int:
        return len(self._names)

    @functools.cached_property
    def canvas(self) -> UInt8[np.ndarray, "h w 3"]:
        """The background, squeezed to the pictures' size as the pictures were."""
        height, width = self._file[self._names[0]]["images"].shape[1:3]
        background = Image.fromarray(self._file["background"][()][..., ::-1].astype(np.uint8))
        return np.asarray(background.resize((width, height), Image.Resampling.BOX))

    def instructions(self, index: int) -> list[str]:
        """What is said in a dialogue."""
        try:
            return self._texts(index)
        except (OSError, KeyError, ValueError) as error:
            raise self._corrupt(index, error) from error

    def _texts(self, index: int) -> list[str]:
        group = self._file[self._names[index]]
        if "text" in group:
            texts = json.loads(group["text"][()])
        else:
            texts = [text.decode("utf-8") for text in group["utterences"][()]]
        if len(texts) != self.lengths[index]:
            raise ValueError(f"{len(texts)} texts for {self.lengths[index]} pictures")
        return texts

    def _corrupt(self, index: int, error: Exception) -> CorruptExampleError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return CorruptExampleError(
            f"example {index} cannot be read: {self.path}, group {self._names[index]}: {reason}; "
            "make the file again, or set --config.data.on_corrupt=skip"
        )

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        try:
            group = self._file[self._names[index]]
            present = group["objects"][()].astype(bool)
            places = np.where(present[..., None], group["coords"][()], np.nan)
            return {
                "canvas": self.canvas,
                "instructions": self._texts(index),
                "turn_images": np.ascontiguousarray(group["images"][()][..., ::-1]),
                "turn_class_vectors": present,
                "turn_coordinates": places.astype(np.float32),
            }
        except (OSError, KeyError, ValueError) as error:
            raise self._corrupt(index, error) from error

    def turn(self, index: int, number: int) -> dict[str, Any]:
        """One turn: `reference`, `instruction`, `target`."""
        check_index(index, len(self))
        try:
            images = self._file[self._names[index]]["images"]
            before, after = (
                np.ascontiguousarray(images[i][..., ::-1]) if i >= 0 else self.canvas
                for i in (number - 1, number)
            )
            return {
                "reference": before,
                "instruction": self._texts(index)[number],
                "target": after,
            }
        except (OSError, KeyError, ValueError) as error:
            raise self._corrupt(index, error) from error


def write(path: str | os.PathLike[str], dialogues: Dialogues, layout: Layout = "clevr") -> None:
    """Write dialogues as GeNeVA_datasets would, whole or not at all, for anybody's code to use.

    A file has one background: of scenes give those with one canvas (`SceneDialogues.background`).

    Args:
        path: The file.
        dialogues: What to write; pictures should be of 128 pixels for GeNeVA's own code.
        layout: Names and types of i-CLEVR's files, or of CoDraw's, whose class names go to
            `objects.txt` beside it.

    Raises:
        UserError: the dialogues have not one canvas, or there is no such layout.
    """
    if layout not in ("clevr", "codraw"):
        raise UserError(f"layout={layout!r}: choose 'clevr' or 'codraw'")
    h5py = _h5py()
    text, number = h5py.string_dtype(), np.float64 if layout == "clevr" else np.int64
    canvas = dialogues[0]["canvas"]
    with files.replacing(path) as partial, h5py.File(partial, "w") as file:
        file["background"] = canvas[..., ::-1]
        if layout == "clevr":
            file.create_dataset("entities", data=json.dumps(dialogues.classes), dtype=text)
        for index in range(len(dialogues)):
            one = dialogues[index]
            if not np.array_equal(one["canvas"], canvas):
                raise UserError(
                    f"dialogue {index} begins with another canvas, and a file has one: give scenes "
                    "with one background"
                )
            name = f"{index:06d}" if layout == "clevr" else str(index)
            group = file.create_group(name)
            group["images"] = one["turn_images"][..., ::-1]
            present = one["turn_class_vectors"]
            group["objects"] = present.astype(number)
            places = np.nan_to_num(one["turn_coordinates"])
            depth = np.zeros((*present.shape, 3 - places.shape[-1]))
            group["coords"] = np.concatenate([places, depth], axis=-1).astype(number)
            texts = one["instructions"]
            if layout == "clevr":
                group.create_dataset("text", data=json.dumps(texts), dtype=text)
                group.create_dataset("scene_id", data=name, dtype=text)
            else:
                group.create_dataset("utterences", data=texts, dtype=text)
                group["scene_id"] = index
    if layout == "codraw":
        lines = "".join(f"{name}\n" for name in dialogues.classes)
        files.write(Path(path).with_name("objects.txt"), lines)
