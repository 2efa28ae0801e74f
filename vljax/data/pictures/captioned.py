"""Photographs with several captions each, as SeMani reads them: CUB, Oxford-102 and COCO 2014.

```
CUB          images/<class>/<name>.jpg, text/<class>/<name>.txt (one caption a line), and
             {train,test}/filenames.pickle, a list of "<class>/<name>": Reed's zero-shot split,
             8,855 of 150 classes and 2,933 of 50 others
Oxford-102   jpg/image_NNNNN.jpg, and {train,test}_img2caption.json {file: captions}; or
             text_c10/class_NNNNN/image_NNNNN.txt and {train,test}/filenames.pickle or
             {trainval,test}classes.txt
COCO         <split>/<file>, and <split>_img2caption.json, annotations/captions_<split>.json, or
             dataset_coco.json with Karpathy's splits
```

Lists may have lost their line ends on the way (CRLF for LF). Pickles are read by an unpickler that
allows no globals: a file that names any code is refused.
"""

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vljax.data.pictures.features import Features
from vljax.data.pictures.images import decode_image
from vljax.data.source import CorruptExampleError, check_index, read_json
from vljax.errors import UserError

Folder = str | os.PathLike[str]


class CaptionedPhotographs:
    """A random-access source: `image` (uint8 [h w 3], its own size), `captions`, and `path`.

    Args:
        root: The folder.
        captions: By file, relative to the folder; each has at least one.
        features: A folder of features (`vljax.data.pictures.features`) by the files' names: then
            an example has `features` (float32 [c h w]) instead of `image`.

    Raises:
        UserError: there is none, or a file is not there.
    """

    def __init__(
        self,
        root: Path,
        captions: Mapping[str, Sequence[str]],
        features: Folder | None = None,
    ) -> None:
        self.root = str(root)
        self.paths = tuple(captions)
        self.captions = tuple(tuple(lines) for lines in captions.values())
        if not self.paths:
            raise UserError(f"{root} has no captioned photographs of this split: check the path")
        bare = [path for path, lines in captions.items() if not lines]
        self.features = None if features is None else Features(Path(features).expanduser())
        lacking = "are not there"
        if self.features is None:
            missing = [path for path in self.paths if not (root / path).is_file()]
        else:
            lacking = f"have no features in {features}"
            missing = [path for path in self.paths if Path(path).name not in self.features]
        for what, paths in ((lacking, missing), ("have no caption", bare)):
            if paths:
                raise UserError(
                    f"{root}: {len(paths)} of {len(self.paths)} photographs {what}, the first is "
                    f"{paths[0]!r}: complete the folder"
                )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all files and captions, in order."""
        told = json.dumps([self.paths, self.captions])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def files(self) -> dict[str, Path]:
        """The photographs' files by their names without folders."""
        return {Path(path).name: Path(self.root) / path for path in self.paths}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        path = Path(self.root) / self.paths[index]
        told = {"captions": list(self.captions[index]), "path": self.paths[index]}
        if self.features is not None:
            try:
                return {"features": self.features[path.name], **told}
            except UserError as error:
                raise CorruptExampleError(
                    f"example {index}: {error}, or set --config.data.on_corrupt=skip"
                ) from error
        try:
            image = decode_image(path.read_bytes())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CorruptExampleError(
                f"example {index} cannot be read: {path}: {reason}; replace or remove it, or set "
                "--config.data.on_corrupt=skip"
            ) from error
        return {"image": image, **told}


def open_cub(path: Folder, split: str) -> CaptionedPhotographs:
    """CUB's birds of Reed's split, `"train"` or `"test"`, whose classes are disjoint.

    Raises:
        UserError: the folder, the list, a picture or its captions are missing.
    """
    root = _folder(path, "CUB")
    names = read_names(root / split / "filenames.pickle")
    return CaptionedPhotographs(
        root, {f"images/{name}.jpg": read_lines(root / "text" / f"{name}.txt") for name in names}
    )


def open_oxford(path: Folder, split: str) -> CaptionedPhotographs:
    """Oxford-102's flowers, `"train"` (82 classes) or `"test"` (20 others).

    Raises:
        UserError: the folder, the list, a picture or its captions are missing.
    """
    root = _folder(path, "Oxford-102")
    listed = root / f"{split}_img2caption.json"
    if listed.is_file():
        return CaptionedPhotographs(root, _under("jpg", _captions_by_file(listed)))
    texts = {place.stem: place for place in sorted((root / "text_c10").glob("*/*.txt"))}
    pickled = root / split / "filenames.pickle"
    classes = root / ("trainvalclasses.txt" if split == "train" else f"{split}classes.txt")
    if pickled.is_file():
        # Whatever folders a list names, a flower's number is unique.
        stems = [name.rsplit("/", 1)[-1] for name in read_names(pickled)]
        if lost := [stem for stem in stems if stem not in texts]:
            raise UserError(f"{root}/text_c10 has no captions of {lost[0]!r}: complete the folder")
    elif classes.is_file():
        kept = set(read_lines(classes))
        stems = [stem for stem, place in texts.items() if place.parent.name in kept]
    else:
        raise UserError(
            f"{root} has no {listed.name}, {split}/filenames.pickle or {classes.name}: give "
            "Oxford-102 with its split"
        )
    return CaptionedPhotographs(root, {f"jpg/{s}.jpg": read_lines(texts[s]) for s in stems})


def open_coco_photographs(
    path: Folder, split: str, features: Folder | None = None
) -> CaptionedPhotographs:
    """COCO's photographs of a split, such as `"train2014"`, with their captions as written.

    Args:
        path: The folder.
        split: One of COCO's; or, where Karpathy's `dataset_coco.json` lies there, of his: `"train"`
            (82,783 photographs), `"restval"`, `"val"` or `"test"` (5,000 each), or some of them
            joined by `+`.
        features: See `CaptionedPhotographs`; the photographs themselves are then not needed.

    Raises:
        UserError: the folder, the captions or a picture are missing.
    """
    root = _folder(path, "COCO")
    listed = root / f"{split}_img2caption.json"
    if listed.is_file():
        return CaptionedPhotographs(root, _under(split, _captions_by_file(listed)), features)
    parted = root / "dataset_coco.json"
    if parted.is_file() and {*split.split("+")} <= {"train", "restval", "val", "test"}:
        return CaptionedPhotographs(root, _karpathy(parted, split.split("+")), features)
    file = root / "annotations" / f"captions_{split}.json"
    told = read_coco_captions(file, f"give COCO's captions of {split}, or {listed.name}")
    captions = {name: one.captions for name, one in told.items()}
    return CaptionedPhotographs(root, _under(split, captions), features)


class CocoPicture(NamedTuple):
    """What COCO's caption file tells of a picture: captions, and where known width and height."""

    captions: list[str]
    size: tuple[int, int] | None


def read_coco_captions(
    path: Folder, remedy: str = "give COCO's caption file"
) -> dict[str, CocoPicture]:
    """COCO's caption file by the pictures' file names, in the order in which they are described.

    Pictures without a caption are left out, and so are captions of pictures that are not listed.

    Args:
        path: `captions_<split>.json`.
        remedy: What to give instead, for the error.

    Raises:
        UserError: it is not there, or no such file.
    """
    told = read_json(path, remedy)
    found: dict[str, CocoPicture] = {}
    try:
        pictures = {image["id"]: image for image in told["images"]}
        for note in told["annotations"]:
            if image := pictures.get(note["image_id"]):
                sized = {"width", "height"} <= image.keys()
                size = (int(image["width"]), int(image["height"])) if sized else None
                one = found.setdefault(str(image["file_name"]), CocoPicture([], size))
                one.captions.append(_plain(note["caption"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not COCO's caption file ({error!r}): it needs 'images' with 'id' and "
            "'file_name', and 'annotations' with 'image_id' and 'caption'"
        ) from error
    return found


def _karpathy(path: Path, splits: Sequence[str]) -> dict[str, list[str]]:
    """Captions by file of some of the splits of Karpathy and Fei-Fei (2015)."""
    told = read_json(path, "give Karpathy's dataset_coco.json")
    try:
        return {
            f"{image['filepath']}/{image['filename']}": [
                _plain(sentence["raw"]) for sentence in image["sentences"]
            ]
            for image in told["images"]
            if image["split"] in splits
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not Karpathy's file of splits ({error!r}): give another"
        ) from error


def read_names(path: Folder) -> list[str]:
    """A pickled list of names; what a CRLF copy left at their ends is taken off.

    Raises:
        UserError: it is not there, names code, or is no list of strings.
    """
    names = read_plain_pickle(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} holds no list of names: give a filenames.pickle")
    return [name.strip() for name in names]


def read_plain_pickle(path: Folder) -> Any:
    """A pickle of lists, dictionaries, texts and numbers; one that names any code is refused.

    Raises:
        UserError: it is not there, damaged, or needs a global (such as numpy's scalars).
    """
    try:
        with Path(path).open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except _NamesCodeError as error:
        raise UserError(
            f"{path} is a pickle that names code ({error}), which is never run: give one of plain "
            "lists and texts"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({error}): fetch it again") from error


class _NamesCodeError(Exception):
    """A pickle asks for an object of a module."""


class _Plain(pickle.Unpickler):
    """Builds lists, dictionaries, texts and numbers only."""

    def find_class(self, module: str, name: str) -> Any:
        raise _NamesCodeError(f"{module}.{name}")


def read_lines(path: Folder) -> list[str]:
    """The lines of a text file that are not empty, whatever ends them.

    Raises:
        UserError: it is not there, or no text.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a text file") from error
    return [line for line in map(_plain, text.splitlines()) if line]


def _folder(path: Folder, what: str) -> Path:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={str(path)!r} is no folder: give {what}'s")
    return root


def _plain(text: str) -> str:
    return " ".join(text.split())


def _under(folder: str, captions: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Files of a folder by paths that name it once."""
    bare = {name.removeprefix(f"{folder}/"): lines for name, lines in captions.items()}
    return {f"{folder}/{name}": lines for name, lines in bare.items()}


def _captions_by_file(path: Path) -> dict[str, list[str]]:
    told = read_json(path, "give a file of captions by picture")
    lists = isinstance(told, dict) and all(
        isinstance(lines, list) and all(isinstance(line, str) for line in lines)
        for lines in told.values()
    )
    if not lists:
        raise UserError(f"{path} holds no captions by picture: give {{file: [captions]}}")
    return {name: [_plain(line) for line in lines] for name, lines in told.items()}
