"""Rooms: a run with its form, made from the request of its system.

A form has two parts. What a person says comes first: pictures and texts, up to the first field that
is a number, a choice or a switch. From there on fields are settings. Files and folders of the
server (`File`), and what a request says is no matter for a form, are the command line's alone.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.errors import UserError
from vljax.request import File, Option, Picture, from_texts, options
from vljax.systems import Result, System

#: Most that a count without a limit of its own (`num_images`, `batch_size`) may be.
MOST_COUNT = 256
#: Most characters of a text, and texts of a field.
MOST_CHARACTERS, MOST_TEXTS = 2000, 64
#: Values of a form as a browser sends them, and as they stand in a permalink.
Values = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Field:
    """A field of a form.

    Attributes:
        option: What it asks for.
        kind: `picture`, `mask`, `texts`, `text`, `choice`, `switch`, `slider` or `number`.
        says: Whether it says what is wanted, rather than how it is made.
        paints: Of a mask, the name of the field whose picture it is painted on.
        step: Of a slider or number, between two values: "1" or "any".
    """

    option: Option
    kind: str
    says: bool
    paints: str = ""
    step: str = "any"

    @property
    def label(self) -> str:
        """Its name as a person reads it."""
        return self.option.name.replace("_", " ")

    @property
    def help(self) -> str:
        """What it does; other fields by their labels instead of their flags."""
        return re.sub(r"--([a-z]\w*)", lambda found: found[1].replace("_", " "), self.option.help)

    @property
    def example(self) -> str:
        """A value that its help names, or nothing."""
        found = re.search(r'such as "([^"]+)"', self.option.help)
        return found.group(1) if found else ""

    @property
    def default(self) -> list[str]:
        """Its default as a form's texts; none where the config decides."""
        value = self.option.default
        if value is None or value == () or value == "":
            return []
        if isinstance(value, bool):
            return ["on"] if value else []
        return [str(one) for one in value] if isinstance(value, tuple) else [f"{value}"]


def fields(request: type) -> list[Field]:
    """The form of a request."""
    offered = [one for one in options(request) if one.form and one.type is not File]
    pictures = [one.name for one in offered if one.type == Picture and one.name != "mask"]
    made, says = [], True
    for one in offered:
        says = says and not one.choices and (one.type == Picture or one.type is str)
        paints = ""
        if one.type == Picture:
            kind = "picture"
            if one.name == "mask" and pictures:
                kind, paints = "mask", pictures[0]
        elif one.type is bool:
            kind = "switch"
        elif one.many:
            kind = "texts"
        elif one.choices:
            kind = "choice"
        elif one.type is str:
            kind = "text"
        else:
            kind = "slider" if 0 < _reach(one) <= MOST_COUNT else "number"
        step = "any"
        if one.type is int:
            step = "1"
        elif kind == "slider":
            step = f"{10 ** math.floor(math.log10(_reach(one) / 50)):g}"
        made.append(Field(one, kind, says, paints, step))
    return made


def _reach(one: Option) -> float:
    """How far a slider would go; 0 for what has no ends, or no value of its own to stand at."""
    if one.low is None or one.high is None or one.default is None:
        return 0
    return one.high - one.low


@dataclass(frozen=True)
class Room:
    """A run that can be asked.

    Attributes:
        name: In addresses: the system's, with a number where several runs have one.
        title: What a person reads: the system and the run's own name.
        system: Whose run it is.
        config: Its config.
        model: With its weights.
    """

    name: str
    title: str
    system: System
    config: ConfigDict
    model: Any

    @property
    def about(self) -> str:
        """What can be asked here: the first sentence of the request's docstring."""
        line = (inspect.getdoc(self.system.request) or "").partition("\n")[0]
        return line.partition(". ")[0].removesuffix(".") + "."

    @property
    def fields(self) -> list[Field]:
        """Its form."""
        return fields(self.system.request)

    def ask(self, values: Values, picture: Callable[[str], np.ndarray]) -> Any:
        """The request that a filled form makes.

        Args:
            values: The form's texts; of pictures the keys of what was uploaded.
            picture: Gives an upload's pixels.

        Raises:
            UserError: a value cannot be, in the words of the command line.
        """
        form = {field.option.name: field.option for field in self.fields}
        texts: dict[str, list[str | np.ndarray]] = {}
        for name, given in values.items():
            one = form.get(name)
            if one is None:
                raise UserError(f"--{name}: this form has no such field")
            if len(given) > MOST_TEXTS or any(len(text) > MOST_CHARACTERS for text in given):
                raise UserError(
                    f"--{name}: give at most {MOST_TEXTS} texts of {MOST_CHARACTERS:,} characters"
                )
            if one.type == Picture:
                texts[name] = [picture(key) for key in given if key]
            else:
                texts[name] = list(given)
        asked: Any = from_texts(self.system.request, texts)
        for one in form.values():
            value = getattr(asked, one.name)
            counts = one.type is int and not one.many and one.low is not None and one.high is None
            if counts and value is not None and value > MOST_COUNT:
                raise UserError(f"--{one.name}={value}: give at most {MOST_COUNT} on the page")
        return asked

    def draw(self, asked: Any) -> Iterable[Result]:
        """What comes back, as it is made.

        Raises:
            UserError: the request cannot be.
        """
        return self.system.generate(self.model, self.config, asked)

    def settings(self, values: Values) -> dict[str, str]:
        """What every picture tells of how it was asked for, beside the system's own words."""
        return {"system": self.system.name, "request": json.dumps(values, ensure_ascii=False)}


def name_rooms(systems: Sequence[str]) -> list[str]:
    """A name for each room: its system's, numbered where it comes again."""
    made: list[str] = []
    for i, name in enumerate(systems):
        before = systems[:i].count(name)
        made.append(f"{name}-{before + 1}" if before else name)
    return made
