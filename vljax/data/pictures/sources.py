"""Random-access sequences of pictures, read from the formats data sets are published in.

A *source* has a length and gives example `i` as a dict with `"image"` (uint8 RGB [h, w, 3]) and
a name: `"path"` or `"key"`. Reading is a pure function of the index. Sources pickle to a few
bytes per example or less, so that worker processes can take them; files and databases are
opened lazily, once in each process.

An example that cannot be read raises `CorruptExampleError`, whose message names the file and the
index. What happens then is the pipeline's choice (`on_corrupt` of `vljax.data.pipeline.batches`).
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax import files
from vljax.data.pictures.images import decode_image
from vljax.data.source import CorruptExampleError, check_index
from vljax.errors import UserError, of_extra

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# The first picture that text2image draws of texts, and its contact sheet beside them.
DRAWN, SHEET = "picture_00_00.png", "sheet.png"


def _decode(data: bytes, index: int, where: str) -> np.ndarray:
    try:
        return decode_image(data)
    except ValueError as error:
        raise _corrupt(index, where, error) from error


def _corrupt(index: int, where: str, error: Exception) -> CorruptExampleError:
    reason = " ".join(str(error).split())
    return CorruptExampleError(
        f"example {index} cannot be read: {where}: {reason}; replace or remove it, "
        "or set --config.data.on_corrupt=skip"
    )


class ImageFolder:
    """Every PNG, JPEG and WebP file under a folder, in the order of their relative paths.

    Subfolders and symbolic links are followed; other files, hidden files and hidden folders are
    ignored, and so is the contact sheet that `vljax.generate` leaves beside pictures that it drew
    of texts (`sheet.png` beside `picture_00_00.png`). FFHQ is read as distributed
    (`images1024x1024/00000/00000.png`): if the folder holds `images1024x1024`, only that is read,
    not the thumbnails or originals beside it.

    Args:
        path: The folder.

    Raises:
        UserError: The folder is missing, is not a folder, or holds no such image.
    """

    def __init__(self, path: str | os.PathLike[str]):
        root = Path(path).expanduser()
        if not root.exists():
            raise UserError(f"image folder {files.printable(root)} does not exist; check the path")
        if not root.is_dir():
            raise UserError(
                f"image folder {files.printable(root)} is a file; give a folder (unpack archives "
                "first)"
            )
        if (root / "images1024x1024").is_dir():
            root = root / "images1024x1024"
        self.root = str(root)
        self.paths = tuple(sorted(_image_files(self.root)))
        if not self.paths:
            raise UserError(
                f"image folder {files.printable(root)} holds no {', '.join(IMAGE_SUFFIXES)} file; "
                "check the path"
            )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all relative paths, in order."""
        names = b"\0".join(os.fsencode(path) for path in self.paths)
        return hashlib.sha256(names).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self.paths))
        path = os.path.join(self.root, self.paths[index])
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise _corrupt(index, files.printable(path), error) from error
        return {"image": _decode(data, index, files.printable(path)), "path": self.paths[index]}


def _image_files(root: str) -> list[str]:
    """Relative paths, with forward slashes, of the image files under `root`."""
    found = []
    pending = [("", frozenset({os.path.realpath(root)}))]
    while pending:
        folder, above = pending.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            listed = list(entries)
            drawn = any(entry.name == DRAWN for entry in listed)
            for entry in listed:
                relative = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith(".") or (drawn and entry.name == SHEET):
                    continue
                if entry.is_dir():
                    # A link to a folder above itself would be followed for ever.
                    real = os.path.realpath(entry.path)
                    if real not in above:
                        pending.append((relative, above | {real}))
                elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                    found.append(relative)
    return found


class Lsun:
    """An LSUN category: the LMDB folder of encoded images, as distributed.

    The database gives access by key only, so the sorted key list is the index. Listing the three
    million keys of `bedroom_train_lmdb` walks the whole tree (seconds on a warm disk, a minute or
    more on a cold spinning one), hence it is kept as a memory-mapped file that all processes
    share: beside the database if that is writable, else under `$XDG_CACHE_HOME/vljax` (by default
    `~/.cache/vljax`), else in memory. A list that does not fit the database is made anew.

    Args:
        path: The folder holding `data.mdb`, for instance `bedroom_train_lmdb`.
        cache: Whether to read and write the key list on disk.

    Raises:
        UserError: The folder is missing, is no LMDB, is truncated, or is empty.
    """

    def __init__(self, path: str | os.PathLike[str], *, cache: bool = True):
        self.path = os.path.realpath(Path(path).expanduser())
        _check_lmdb(self.path)
        self._cached = ""
        self._keys: np.ndarray | None = None
        places = _key_list_places(self.path) if cache else []
        for place in places:
            keys = _load_keys(place, self.path)
            if keys is not None:
                self._cached, self._keys = place, keys
                return
        self._keys = _list_keys(self.path)
        for place in places:
            if _save_keys(place, self._keys):
                self._cached = place
                return

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of a thousand keys spread over the list, and their number."""
        keys = self._key_list()
        spread = np.linspace(0, len(keys) - 1, num=min(len(keys), 1000)).astype(int)
        return hashlib.sha256(keys[spread].tobytes() + b"%d" % len(keys)).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self._cached:
            state["_keys"] = None
        return state

    def _key_list(self) -> np.ndarray:
        if self._keys is None:
            self._keys = _load_keys(self._cached, self.path)
            if self._keys is None:  # The cache went away after this source was pickled.
                self._keys = _list_keys(self.path)
        return self._keys

    def __len__(self) -> int:
        return len(self._key_list())

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        length, padded = self._key_list()[index]
        key = padded.tobytes()[:length]
        name = key.decode("utf-8", "backslashreplace")
        where = f"{files.printable(self.path)} key {name}"
        try:
            with _environment(self.path, os.getpid()).begin() as transaction:
                data = transaction.get(key)
        except _lmdb().Error as error:
            raise _corrupt(index, where, error) from error
        if data is None:
            raise _corrupt(index, where, KeyError("no such key"))
        return {"image": _decode(data, index, where), "key": name}


def _lmdb() -> Any:
    return of_extra("lsun", "lmdb", "a database of LSUN (LMDB)")


@functools.cache
def _environment(path: str, process: int) -> Any:
    """The process's one handle on a database: LMDB forbids a second, and one across a fork."""
    del process
    return _lmdb().open(path, readonly=True, lock=False, readahead=False, create=False)


def _check_lmdb(path: str) -> None:
    shown = files.printable(path)
    if not os.path.isdir(path):
        raise UserError(f"LSUN database {shown} is not a folder; give the unpacked *_lmdb folder")
    if not os.path.isfile(os.path.join(path, "data.mdb")):
        inside = sorted(p.parent.name for p in Path(path).glob("*/data.mdb"))
        remedy = f"choose one of {', '.join(inside)} in it" if inside else "check the path"
        raise UserError(f"LSUN database {shown} holds no data.mdb; {remedy}")
    try:
        environment = _environment(path, os.getpid())
        # LMDB maps the file: touching a page beyond a truncated end would kill the process.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        entries = environment.stat()["entries"]
    except (_lmdb().Error, OSError) as error:
        raise UserError(
            f"LSUN database {shown} cannot be opened ({' '.join(str(error).split())}); "
            "unpack or download it again"
        ) from error
    size = os.path.getsize(os.path.join(path, "data.mdb"))
    if size < needed:
        raise UserError(
            f"LSUN database {shown} is truncated ({size} of {needed} bytes); "
            "unpack or download it again"
        )
    if not entries:
        raise UserError(f"LSUN database {shown} is empty; unpack or download it again")


def _list_keys(path: str) -> np.ndarray:
    """All keys in LMDB's (byte) order, as records of their length and zero-padded bytes."""
    with _environment(path, os.getpid()).begin() as transaction:
        keys = list(transaction.cursor().iternext(keys=True, values=False))
    width = max(map(len, keys))
    records = np.zeros(len(keys), dtype=[("length", "<u2"), ("key", f"V{width}")])
    records["length"] = [len(key) for key in keys]
    records["key"] = np.frombuffer(b"".join(k.ljust(width, b"\0") for k in keys), f"V{width}")
    return records


def _key_list_places(path: str) -> list[str]:
    """Where the key list may lie; the name changes with the database."""
    status = os.stat(os.path.join(path, "data.mdb"))
    identity = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    name = f"vljax-keys-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]}.npy"
    return [os.path.join(path, name), str(files.cache_folder() / name)]


def _load_keys(place: str, path: str) -> np.ndarray | None:
    try:
        keys = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    entries = _environment(path, os.getpid()).stat()["entries"]
    return keys if keys.dtype.names == ("length", "key") and len(keys) == entries else None


def _save_keys(place: str, keys: np.ndarray) -> bool:
    try:
        with files.replacing(place) as partial, partial.open("wb") as file:
            np.save(file, keys, allow_pickle=False)
    except OSError:
        return False
    return True


def open_prepared(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    split: str,
    decoders: Callable[[Mapping[str, Any], str], Mapping[str, Any]],
) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """The records of a data set that TensorFlow Datasets has prepared for random access.

    Only `tfds.data_source` is used: TensorFlow is not imported and nothing is downloaded.

    Args:
        name: Name, or `name/config:version`.
        data_dir: Folder it was prepared in; None for tensorflow-datasets' own.
        split: For instance `"train"` or `"train[:90%]"`.
        decoders: From the data set's features, and how errors call it, the decoders of features
            that should have one of their own. May raise where features are missing.

    Returns:
        Name, version and split, as errors call a record's place; and the records.

    Raises:
        UserError: No such data set or split, not prepared, without random access, or empty.
    """
    import tensorflow_datasets as tfds

    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    what = f"tfds data set '{name}' (split '{split}', data_dir {data_dir})"
    remedy = (
        f"prepare it with `tfds build {name.split('/')[0].split(':')[0]} "
        "--file_format=array_record --data_dir=…`"
    )
    if data_dir is not None and not os.path.isdir(data_dir):
        raise UserError(f"{what}: the data_dir does not exist; check the path or {remedy}")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"{what} is unknown; check the name's spelling, or {remedy}") from error
    if not builder.is_prepared():
        raise UserError(f"{what} is not prepared there; {remedy}")
    if split.split("[")[0] not in {*builder.info.splits, "all"}:
        splits = ", ".join(sorted(builder.info.splits))
        raise UserError(f"{what} has no such split; choose one of {splits}")
    try:
        examples = builder.as_data_source(
            split=split, decoders=dict(decoders(builder.info.features, what))
        )
    except NotImplementedError as error:
        raise UserError(
            f"{what} was prepared as {builder.info.file_format.value}, which has no random "
            f"access; {remedy}"
        ) from error
    except ValueError as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}; correct the split") from error
    if not len(examples):
        raise UserError(f"{what} is empty; choose another split")
    return f"{builder.info.full_name} {split}", examples


class Tfds:
    """The pictures of a data set that TensorFlow Datasets has prepared; see `open_prepared`.

    They are decoded by `vljax.data.pictures.images`, whatever their number of channels; further
    features (labels, text) come as tensorflow-datasets gives them.

    Args:
        name: Name, or `name/config:version`, of the data set.
        data_dir: Folder it was prepared in; by default tensorflow-datasets' own.
        split: For instance `"train"` or `"train[:90%]"`.

    Raises:
        UserError: No such data set or split, not prepared, in a format without random access, or
            without exactly one image feature (`"image"` is taken if there are several).
    """

    def __init__(
        self, name: str, data_dir: str | os.PathLike[str] | None = None, split: str = "train"
    ):
        import tensorflow_datasets as tfds  # a second's import that other sources need not pay

        def decoders(features: Mapping[str, Any], what: str) -> dict[str, Any]:
            self.image_feature = _image_feature(features, what)
            return {self.image_feature: tfds.decode.SkipDecoding()}

        self._where, self._examples = open_prepared(name, data_dir, split, decoders)
        told = f"{self._where} {len(self._examples)}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        check_index(index, len(self))
        key = f"{self._where} record {index}"
        try:
            example = dict(self._examples[index])
        except Exception as error:  # array_record and protobuf report damage in many ways.
            raise _corrupt(index, key, error) from error
        image = _decode(example.pop(self.image_feature), index, key)
        return {**example, "image": image, "key": key}


def _image_feature(features: Any, what: str) -> str:
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    found = ", ".join(images) or "none"
    raise UserError(
        f"{what} needs one image feature or one named 'image', has {found}; use another"
    )
