"""Files appear whole or not at all; what can be made again lies where users keep such things."""

import errno
import os
import time
from pathlib import Path

import pytest

from vljax import config, files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_texts_and_bytes_replace_what_was_there(tmp_path):
    place = tmp_path / "made" / "a.txt"
    files.write(place, "Käse\n")
    assert place.read_bytes() == "Käse\n".encode()
    files.write(str(place), b"\x00\xff")
    assert place.read_bytes() == b"\x00\xff"
    files.write(place, "é of " + os.fsdecode(b"caf\xe9.png"))
    assert place.read_text("utf-8") == r"é of caf\xe9.png"
    assert names(place.parent) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    place = tmp_path / "a.txt"
    files.write(place, "old")

    def stopped():
        with files.replacing(place) as partial:
            partial.write_text("ne")
            assert place.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert place.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_lacks_room():
    assert files.lacks_room(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert files.lacks_room(ValueError("I/O error: No space left on device (os error 28)"))
    assert not files.lacks_room(PermissionError(errno.EACCES, "Permission denied"))
    assert not files.lacks_room(ValueError("no number"))


def test_two_that_write_one_file_at_a_time_share_no_parts(tmp_path):
    """Threads, or processes of two hosts with the same number."""
    place = tmp_path / "a.txt"
    with files.replacing(place) as one, files.replacing(place) as other:
        one.write_text("one")
        other.write_text("other")
    assert place.read_text() == "one"
    assert names(tmp_path) == ["a.txt"]


def test_what_a_killed_write_left_is_swept_out_after_a_day(tmp_path):
    dead, alive, other = ".b.json.0123abcd.partial", ".a.txt.89abcdef.partial", ".notes.partial"
    for name, days in ((dead, 1.1), (alive, 0.9), (other, 9)):
        (tmp_path / name).write_text("par")
        then = time.time() - days * 24 * 60 * 60
        os.utime(tmp_path / name, (then, then))
    files.write(tmp_path / "a.txt", "whole")
    assert names(tmp_path) == sorted([alive, other, "a.txt"])


def test_a_file_takes_its_name_after_it_lies_on_the_disk(tmp_path, monkeypatch):
    place, seen = tmp_path / "a.txt", []

    def fsync(number):
        seen.append((os.readlink(f"/proc/self/fd/{number}"), place.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with files.replacing(place) as partial:
        partial.write_text("new")
    assert seen == [(str(partial), False)]
    assert place.read_text() == "new"


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    programs = config.get_base_config("sdg").compilation_cache
    for folder in (files.cache_folder(), files.expanded(programs)):
        assert folder == tmp_path / ".cache" / "vljax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    for folder in (files.cache_folder(), files.expanded(programs)):
        assert folder == tmp_path / "elsewhere" / "vljax"
    # A user that is not there has no home.
    assert files.expanded("~nobody-here/runs") == Path("~nobody-here/runs")
    # What older workdirs say.
    assert files.expanded("~/.cache/vljax") == tmp_path / ".cache" / "vljax"
