"""SDG: Semantic Diffusion Guidance of an unconditional diffusion model.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 4; Liu et
al., *More Control for Free! Image Synthesis with Semantic Diffusion Guidance* (2023). Three parts,
trained one after the other:

- `diffusion`, an unconditional ADM U-Net (section 4.3.1, equations 4.1 to 4.3);
- `clip`, which knows texts and clean pictures; published, or trained here on captions;
- `noisy_clip`, its image tower taught to see through noise, without captions (section 4.3.5).

Then texts and pictures guide the sampling (algorithm 2, equations 4.6 to 4.10: `method`). How well
they do is judged by tables 4.1 to 4.3 (`evaluation`).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.data.pictures.images import write_png
from vljax.request import add_flags, from_flags
from vljax.systems import System
from vljax.systems.sdg import use
from vljax.systems.sdg.evaluation import Judging, judge
from vljax.systems.sdg.model import SDG, make_model
from vljax.systems.sdg.recipe import get_config, get_published_config
from vljax.systems.sdg.training import stages
from vljax.systems.sdg.use import Request

SYSTEM = System(
    name="sdg",
    get_config=get_config,
    make_model=make_model,
    stages=stages,
    request=Request,
    generate=use.generate,
    judging=Judging,
    judge=judge,
)

__all__ = [
    "SDG",
    "SYSTEM",
    "add_evaluate_flags",
    "add_generate_flags",
    "evaluate",
    "generate",
    "get_config",
    "get_published_config",
    "make_model",
    "stages",
]


# For doors that do not know `SYSTEM` yet.


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Request`."""
    add_flags(parser, Request)


def generate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Write the results of a request."""
    for result in use.generate(model, config, from_flags(Request, args)):
        write_png(out / result.name, np.asarray(result.value), result.settings)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Judging`."""
    add_flags(parser, Judging)


def evaluate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Write a report's figures; its notes and tables."""
    report = judge(model, config, from_flags(Judging, args))
    for name, picture in report.figures.items():
        write_png(out / f"{name}.png", picture, {})
    return {**report.notes, **report.tables()}
