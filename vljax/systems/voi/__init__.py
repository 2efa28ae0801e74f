"""VOI: discovering the order in which to write a sequence, by variational inference.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 3; Li et al.,
"Discovering Non-monotonic Autoregressive Orderings with Variational Inference" (ICLR 2021). The
permutation network φ reads a source and its whole target and gives a distribution over orders; the
insertion decoder θ learns to write the target in orders drawn from it, and rewards φ for orders in
which that succeeds (Algorithm 1, in `method`). Fixed orders train θ alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax import files
from vljax.data.pictures.images import write_png
from vljax.request import add_flags, from_flags
from vljax.systems import System
from vljax.systems.voi.evaluation import Judging, judge
from vljax.systems.voi.model import VOI, make_model
from vljax.systems.voi.recipe import (
    get_config,
    get_published_config,
    get_stage_config,
    use_distilled,
)
from vljax.systems.voi.training import stages
from vljax.systems.voi.use import Request
from vljax.systems.voi.use import generate as _generate

SYSTEM = System(
    name="voi",
    get_config=get_config,
    make_model=make_model,
    stages=stages,
    request=Request,
    generate=_generate,
    judging=Judging,
    judge=judge,
)

__all__ = [
    "SYSTEM",
    "VOI",
    "Judging",
    "Request",
    "add_evaluate_flags",
    "add_generate_flags",
    "evaluate",
    "generate",
    "get_config",
    "get_published_config",
    "get_stage_config",
    "judge",
    "make_model",
    "stages",
    "use_distilled",
]


# What the doors call until they ask `SYSTEM`.


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Request`."""
    add_flags(parser, Request)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Judging`."""
    add_flags(parser, Judging)


def generate(model: VOI, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Writes what `SYSTEM.generate` yields."""
    for result in _generate(model, config, from_flags(Request, args)):
        if isinstance(result.value, np.ndarray):
            write_png(out / result.name, result.value, dict(result.settings))
        else:
            files.write(out / result.name, result.value)
            if result.label:
                print(result.label)


def evaluate(model: VOI, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Writes the figures of `SYSTEM.judge` and tells its rows."""
    report = judge(model, config, from_flags(Judging, args))
    for name, figure in report.figures.items():
        write_png(out / f"{name}.png", figure, {})
    return json.loads(report.as_json())
