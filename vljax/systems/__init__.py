"""The systems, one package each, and the seam between them and the doors.

A system is a package `vljax.systems.NAME` with a `SYSTEM`: its config, model and training stages,
the request that a person can make of it, and how it is judged. Doors, page and tests know nothing
else of it. Inside a system imports go one way: recipe ← model ← method ← training, and
model ← use ← evaluation.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.data.text.tokenizers import Tokenizer
from vljax.errors import UserError
from vljax.metrics.report import Report
from vljax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class Result:
    """One thing that comes back from a request.

    Attributes:
        name: Its file in the folder of results: `samples.png`, `written.json`, `answer.txt`.
        value: A picture (uint8 [h w 3]) for a `.png`, else the file's text.
        label: What a person reads beside it; of a text, what the console shows.
        settings: What it was made with; a PNG carries them as text.
    """

    name: str
    value: np.ndarray | str
    label: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class System:
    """A method of the papers, as the doors, the page and the contract test see it.

    Attributes:
        name: Of its package in `vljax.systems`, and of `config.system`.
        get_config: `get_config() -> config`: all its fields, with a recipe on scenes.
        make_model: `make_model(config) -> model` at its random start, pure; its parts are the
            model's attributes.
        stages: `stages(config) -> list of stages`, in the order in which they train.
        request: The frozen dataclass of what a person asks; who makes one checks it
            (`vljax.request.check`, as `from_flags` does). So of `judging`.
        generate: `generate(model, config, request)` yields results as they are made.
        judging: The frozen dataclass of how to judge (`vljax.request`).
        judge: `judge(model, config, judging) -> report`: the paper's tables and figures.
        make_tokenizer: `make_tokenizer(config) -> tokenizer` of the model's CLIP or text tower;
            None where it has none.
    """

    name: str
    get_config: Callable[[], ConfigDict]
    make_model: Callable[[ConfigDict], Any]
    stages: Callable[[ConfigDict], list[Stage]]
    request: type
    generate: Callable[[Any, ConfigDict, Any], Iterator[Result]]
    judging: type
    judge: Callable[[Any, ConfigDict, Any], Report]
    make_tokenizer: Callable[[ConfigDict], Tokenizer] | None = None


def names() -> list[str]:
    """The names of all systems."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__) if found.ispkg)


def load_system(name: str) -> System:
    """The system of a name.

    Raises:
        UserError: there is none.
    """
    if name not in names():
        raise UserError(f"--config.system={name}: choose one of {', '.join(names())}")
    return importlib.import_module(f"vljax.systems.{name}").SYSTEM
