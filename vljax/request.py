"""Requests: what a person asks of a trained system, and how a command line or a form asks it.

A request is a frozen dataclass whose fields are made by `option`; each carries its type, default,
range and help. `add_flags` and `from_flags` make a command line of it. Judging options are requests
too.

```
@dataclass(frozen=True)
class Request:
    prompt: str | None = option(None, help="a text that the pictures should fit")
    image: Picture | None = option(None, help="a picture whose content they should have")
    num_images: int = option(16, low=1, help="how many pictures")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples.sampler")
```
"""

import argparse
import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from vljax.errors import UserError

#: A picture that a person gives: a file, or pixels (uint8 [h w 3]). Masks are pictures.
Picture = str | os.PathLike[str] | np.ndarray
#: A file or folder that a person names: published weights, features, texts.
File = typing.NewType("File", str)

R = TypeVar("R")
# JAX's keys and NumPy's generators take it, and as many more as there are pictures.
_LARGEST_SEED = 2**31 - 1
# Of counts without a limit of their own: 32 bits hold it and what is added to it.
_MOST = 2**30


def option(
    default: Any,
    *,
    help: str,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    metavar: str | None = None,
    repeat: bool = False,
    seed: bool = False,
    form: bool = True,
) -> Any:
    """A field of a request.

    Args:
        default: What it is where a person says nothing.
        help: What it does, for `--help` and the form; a few words.
        choices: The values that it may take.
        low: The least value.
        high: The greatest value.
        metavar: What stands for the value in `--help`.
        repeat: Of a tuple: whether a command line repeats the flag for each value, instead of
            giving all values after one.
        seed: Of what is drawn: whether the range is that of seeds, which every generator takes.
        form: Whether the page's form has it as well. What takes hours is the command line's alone.
    """
    if seed:
        low, high = 0, _LARGEST_SEED
    told = {"help": help, "choices": tuple(choices), "low": low, "high": high}
    told |= {"metavar": metavar, "repeat": repeat, "form": form}
    return dataclasses.field(default=default, metadata=told)


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a request as doors see it.

    Attributes:
        name: Of the field and of its flag.
        type: `bool`, `int`, `float`, `str`, `Picture` or `File`.
        many: Whether the value is a tuple of these.
        default: What it is where a person says nothing.
        help: What it does.
        choices: The values that it may take, or none for any.
        low: The least value, or None.
        high: The greatest value, or None.
        metavar: What stands for the value in `--help`, or None.
        repeat: Whether a command line repeats the flag for each of many values.
        form: Whether the page's form has it.
    """

    name: str
    type: Any
    many: bool
    default: Any
    help: str
    choices: tuple[str, ...]
    low: float | None
    high: float | None
    metavar: str | None
    repeat: bool
    form: bool


def options(request: type) -> list[Option]:
    """The fields of a request, in their order.

    Raises:
        TypeError: a field is not made by `option`, or has a type that no flag can have.
    """
    hints = typing.get_type_hints(request)
    found = []
    for field in dataclasses.fields(request):
        if "help" not in field.metadata:
            raise TypeError(f"{request.__name__}.{field.name} is not made by `option`")
        kind, many = _plain(hints[field.name])
        if kind not in (bool, int, float, str, Picture, File):
            raise TypeError(f"{request.__name__}.{field.name}: no flag has the type {kind}")
        found.append(
            Option(name=field.name, type=kind, many=many, default=field.default, **field.metadata)
        )
    return found


def _plain(hint: Any) -> tuple[Any, bool]:
    """A type hint without `| None` and `tuple[…, ...]`, and whether it was the latter."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and hint != Picture:
        rest = [one for one in typing.get_args(hint) if one is not types.NoneType]
        hint = rest[0] if len(rest) == 1 else Picture
    if typing.get_origin(hint) is tuple:
        return _plain(typing.get_args(hint)[0])[0], True
    return hint, False


def is_given(picture: Picture | None) -> typing.TypeGuard[Picture]:
    """Whether a person gave a picture: pixels, or the name of a file."""
    return isinstance(picture, np.ndarray) or bool(picture)


def changed(request: Any) -> dict[str, Any]:
    """The fields that say something else than their default, in their order, with what they say."""
    found = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if isinstance(value, np.ndarray) or value != field.default:
            found[field.name] = value
    return found


def add_flags(parser: argparse.ArgumentParser, request: type) -> None:
    """A flag for each field of a request, with its name."""
    for one in options(request):
        told: dict[str, Any] = {"help": one.help.replace("%", "%%")}
        if one.type is bool:
            parser.add_argument(f"--{one.name}", action="store_true", **told)
            continue
        told["default"] = one.default
        if one.choices:
            told["choices"] = one.choices
        else:
            told["metavar"] = one.metavar or ("FILE" if one.type in (Picture, File) else None)
        if one.type in (int, float):
            told["type"] = one.type
        if one.many:
            told |= {"action": "append", "default": None} if one.repeat else {"nargs": "+"}
        parser.add_argument(f"--{one.name}", **told)


def from_flags(request: type[R], flags: argparse.Namespace) -> R:
    """The request that a parsed command line makes, checked.

    Raises:
        UserError: a value is out of its range.
    """
    values = {}
    for one in options(request):
        value = getattr(flags, one.name)
        if one.many:
            value = one.default if value is None else tuple(value)
        if one.type in (Picture, File):
            # After `=` a shell leaves `~` as it is.
            home = os.path.expanduser
            value = tuple(map(home, value)) if one.many else value and home(value)
        values[one.name] = value
    made = request(**values)
    check(made)
    return made


def from_texts(request: type[R], texts: Mapping[str, Sequence[str | np.ndarray]]) -> R:
    """The request that a filled form makes, checked.

    Args:
        request: Its dataclass.
        texts: For each field that is filled, its values: of pictures their pixels, of switches
            "on", else texts. A field whose texts are all empty keeps its default.

    Raises:
        UserError: there is no such field, or a value has the wrong type or is out of its range.
    """
    fields = {one.name: one for one in options(request)}
    values: dict[str, Any] = {}
    for name, given in texts.items():
        if name not in fields:
            raise UserError(f"--{name}: there is no such field; choose among {', '.join(fields)}")
        one = fields[name]
        # A text of nothing else than spaces is somebody's empty field too.
        found = [_typed(one, text) for text in given if not isinstance(text, str) or text.strip()]
        if found:
            values[name] = tuple(found) if one.many else found[-1]
    made = request(**values)
    check(made)
    return made


def _typed(one: Option, text: str | np.ndarray) -> Any:
    """A form's text as a value of a field's type."""
    if one.type == Picture:
        if isinstance(text, str):
            raise UserError(f"--{one.name}={text}: give a picture's pixels")
        return text
    if isinstance(text, np.ndarray):
        raise UserError(f"--{one.name}: give a text, not a picture")
    if one.type in (str, File):
        return text
    if one.type is bool:
        if text not in ("on", "off"):
            raise UserError(f"--{one.name}={text}: give on or off")
        return text == "on"
    try:
        return one.type(text)
    except ValueError as error:
        kind = "a whole number" if one.type is int else "a number"
        raise UserError(f"--{one.name}={text}: give {kind}") from error


def check(request: Any) -> None:
    """Refuse numbers that are out of their range or not finite, and values that are no choice.

    Raises:
        UserError: there is such a value.
    """
    for one in options(type(request)):
        given = getattr(request, one.name)
        for value in given if one.many and given is not None else (given,):
            if value is None:
                continue
            if one.choices and value not in one.choices:
                raise UserError(f"--{one.name}={value}: choose one of {', '.join(one.choices)}")
            if one.type not in (int, float):
                continue
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{one.name}={value}: give a finite number")
            least, most = (-_MOST, _MOST) if one.type is int else (-math.inf, math.inf)
            low = least if one.low is None else one.low
            high = most if one.high is None else one.high
            if not low <= value <= high:
                raise UserError(f"--{one.name}={value}: give {_range(one)}")


def _range(one: Option) -> str:
    if one.high is None:
        most = f" (at most {_MOST})" if one.type is int else ""
        return f"{_shown(one.low)} or more{most}"
    if one.low is None:
        return f"{_shown(one.high)} or less"
    return f"a number from {_shown(one.low)} to {_shown(one.high)}"


def _shown(end: float | None) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"
