"""Files that are whole or absent, and the folder for what can be made again."""

import contextlib
import errno
import functools
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

# As configs name it; unset, the variable stands for ~/.cache (XDG Base Directory Specification).
CACHE = "$XDG_CACHE_HOME/vljax"

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
_DAY = 24 * 60 * 60.0


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """The name under which to write a file beside `path`; it takes that name once it is whole.

    Others, in whatever process, see the old file or the new one, never a part, even after the
    power failed. Folders to it are made. When the block raises, nothing is left of the new file;
    what a killed process left is swept out by the first that writes into the folder a day later.

    Raises:
        OSError: there is no room, or no right to write there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    # Those that write the same file at the same time must not share its parts; two processes may
    # have one number, on two hosts.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@functools.cache  # once in each process: a folder may hold a file for every picture of a data set
def _sweep(folder: Path) -> None:
    """Remove the parts of files of which nothing was written for a day."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _DAY:
                Path(entry.path).unlink(missing_ok=True)


def write(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file as `replacing` does, text as UTF-8 (`printable`).

    Raises:
        OSError: there is no room, or no right to write there.
    """
    with replacing(path) as partial:
        partial.write_bytes(printable(content).encode() if isinstance(content, str) else content)


def printable(text: str | os.PathLike[str]) -> str:
    r"""A text or path without lone surrogates, which could be written nowhere.

    Bytes of a file's name that are no UTF-8 come as such, and are shown as in `caf\xe9.png`.
    """

    def escaped(found: re.Match[str]) -> str:
        number = ord(found[0])
        byte = number - 0xDC00  # as Python's handler "surrogateescape" makes them
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{number:04x}"

    return re.sub("[\ud800-\udfff]", escaped, os.fspath(text))


def lacks_room(error: Exception) -> bool:
    """Whether a write failed because the disk, a quota or a file is full.

    Args:
        error: An `OSError`, or that of a library in Rust, which tells the number in words alone.
    """
    told = re.search(r"os error (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else told and int(told.group(1))
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def expanded(path: str | os.PathLike) -> Path:
    """A path with `~` and `$XDG_CACHE_HOME` written out."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(os.fspath(path).replace("$XDG_CACHE_HOME", cache)))


def cache_folder() -> Path:
    """Where vljax keeps what it can make again: indexes, counts, vocabularies, programs."""
    return expanded(CACHE)
