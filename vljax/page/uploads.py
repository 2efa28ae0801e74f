"""Pictures that a browser gives: limited, decoded at once, kept in memory by what they hold.

No name of a file ever gets here, and nothing is written.
"""

import hashlib
import io
import threading
import warnings
from collections import OrderedDict

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vljax.data.pictures.images import FORMATS, decode_image, encode_png
from vljax.errors import UserError

MOST_BYTES = 20 * 2**20
MOST_PIXELS = 16 * 10**6
#: Longer side by shorter; beyond it nothing would be seen, and what is drawn beside it grows long.
MOST_PROPORTION = 20
#: Decoded bytes that are kept; beyond it the oldest are forgotten.
KEPT_BYTES = 2**28


class Uploads:
    """The pictures given, by key; the same picture has the same key."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, UInt8[np.ndarray, "h w 3"]] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.Lock()

    def add(self, data: bytes) -> tuple[str, UInt8[np.ndarray, "h w 3"]]:
        """Keep a PNG, JPEG or WebP file; its key and its pixels.

        Raises:
            UserError: it is too large, or no readable picture.
        """
        if len(data) > MOST_BYTES:
            raise too_large()
        key = hashlib.sha256(data).hexdigest()[:20]
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return key, known
        with self._decoding:  # one at a time: memory for one large picture, not for fifty
            pixels = _decoded(data)
        with self._lock:
            self._kept[key] = pixels
            while sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return key, pixels

    def __getitem__(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of a key.

        Raises:
            UserError: the picture is not kept (any more).
        """
        with self._lock:
            if (pixels := self._kept.get(key)) is None:
                raise UserError("that picture is not kept any more: give it again")
            self._kept.move_to_end(key)
            return pixels

    def png(self, key: str) -> bytes:
        """The picture of a key as a file.

        Raises:
            UserError: the picture is not kept (any more).
        """
        pixels = self[key]
        with self._decoding:  # one at a time, as they are decoded
            return encode_png(pixels)


def too_large() -> UserError:
    """Of a file with too many bytes."""
    return UserError(f"the file is larger than {MOST_BYTES >> 20} MiB: give a smaller one")


def _decoded(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a file, whose header is read before anything is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except Exception as error:  # Pillow raises nearly every built-in exception on damaged files.
        raise UserError("that file is no picture: give a PNG, JPEG or WebP file") from error
    if width * height > MOST_PIXELS:
        raise UserError(
            f"the picture has more than {MOST_PIXELS / 1e6:g} million pixels: give a smaller one"
        )
    if max(width, height) > MOST_PROPORTION * min(width, height):
        raise UserError(
            f"the picture of {width}×{height} pixels is longer than {MOST_PROPORTION}:1: crop it"
        )
    try:
        return decode_image(data)
    except ValueError as error:
        raise UserError("that picture is damaged: give another PNG, JPEG or WebP file") from error
