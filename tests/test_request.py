"""What a command line makes of the fields of a request."""

import argparse
import dataclasses

import pytest

from vljax.errors import UserError
from vljax.request import File, Picture, add_flags, from_flags, option


@dataclasses.dataclass(frozen=True)
class Request:
    turn: int = option(1, low=1, help="a number without an upper limit")
    image: Picture | None = option(None, help="a picture")
    concept: tuple[File, ...] = option((), help="files")


def asked(*argv):
    parser = argparse.ArgumentParser()
    add_flags(parser, Request)
    return from_flags(Request, parser.parse_args(argv))


def test_a_count_that_32_bits_do_not_hold_is_refused():
    assert asked("--turn", "1000000").turn == 1_000_000
    for turn in ("5000000000", "0"):
        with pytest.raises(UserError, match=rf"--turn={turn}: give 1 or more \(at most 1073741824"):
            asked("--turn", turn)


def test_the_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    made = asked("--image=~/a.png", "--concept", "~/b", "c~")
    assert (made.image, made.concept) == ("/home/x/a.png", ("/home/x/b", "c~"))
    assert (asked().image, asked().concept) == (None, ())
