"""Shape-Guided Diffusion: edit an object of a picture and keep its shape.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 5; Park et
al., "Shape-Guided Diffusion with Inside-Outside Attention" (2024). The method (`method`) needs no
training: it takes Stable Diffusion as published (`--config.pretrained.sd=FOLDER`). Without, its
parts are trained here on scenes:

- `clip`, pictures and captions in one space; its text tower is what the U-Net reads, and it judges
  how well an edit fits its prompt;
- `autoencoder`, pictures to latents and back;
- `diffusion`, the text-conditional U-Net in these latents;
- `inpaint`, the baseline's U-Net of nine channels, which sees mask and surroundings;
- `segmenter`, CLIPSeg, which infers shapes from prompts.

The method and its baselines (`baselines`) are judged by table 5.2.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vljax.data.pictures.images import write_png
from vljax.request import add_flags, from_flags
from vljax.systems import System
from vljax.systems.shape_guided.evaluation import Judging, judge
from vljax.systems.shape_guided.model import ShapeGuided, make_model
from vljax.systems.shape_guided.recipe import get_config, get_published_config
from vljax.systems.shape_guided.training import stages
from vljax.systems.shape_guided.use import Request
from vljax.systems.shape_guided.use import generate as generate_results

__all__ = [
    "SYSTEM",
    "ShapeGuided",
    "get_config",
    "get_published_config",
    "make_model",
    "stages",
]

SYSTEM = System(
    name="shape_guided",
    get_config=get_config,
    make_model=make_model,
    stages=stages,
    request=Request,
    generate=generate_results,
    judging=Judging,
    judge=judge,
)

# For doors that do not know `System` yet ------------------------------------------------------


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Request`."""
    add_flags(parser, Request)


def add_evaluate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `Judging`."""
    add_flags(parser, Judging)


def generate(model: ShapeGuided, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Write what `SYSTEM.generate` yields."""
    for result in generate_results(model, config, from_flags(Request, args)):
        write_png(out / result.name, result.value, result.settings)  # type: ignore[arg-type]


def evaluate(
    model: ShapeGuided, config: ConfigDict, args: argparse.Namespace, out: Path
) -> dict[str, Any]:
    """Write the figures of `SYSTEM.judge` and return its notes and tables."""
    report = judge(model, config, from_flags(Judging, args))
    for name, picture in report.figures.items():
        write_png(out / f"{name}.png", picture, {})
    told = json.loads(report.as_json())
    return {**told["notes"], **told["tables"]}
