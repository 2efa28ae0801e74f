"""The training stages of VOI: as published `joint`, `separate` and `tune`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vljax.data.text import Text, pad_text
from vljax.systems.voi.method import order_loss, start_memory
from vljax.systems.voi.model import VOI, texts
from vljax.systems.voi.recipe import check_stage, learns_order, stage_names
from vljax.systems.voi.writing import Line, first_example, lines, order_picture, write_all
from vljax.training.mesh import gather
from vljax.training.stage import Stage

# Sources of so many examples are kept in memory.
REMEMBERED = 1000


def stages(config: ConfigDict) -> list[Stage]:
    """The stages in the order in which they train.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    source = texts(config)
    transform = pad_text(config.data.max_source, config.data.max_target)
    example = first_example(config, source)
    made = []
    for name in stage_names(config):
        stage = config.stages[name]
        check_stage(config, name)
        made.append(
            Stage(
                name=name,
                loss=order_loss(config, stage, source.vocabulary.frequencies),
                train=_trained(stage),
                source=Remembered(source) if len(source) <= REMEMBERED else source,
                transform=transform,
                config=stage,
                memory=functools.partial(start_memory, stage, config.num_orders, example),
                pictures=written_pictures(config),
            )
        )
    return made


def _trained(stage: ConfigDict) -> list[tuple[str, float]]:
    """Patterns of the parameters that a stage trains."""
    decoder = [(r"decoder\.", 1.0)]
    if not learns_order(stage):
        return decoder
    if stage.trains == "permutation":
        return [(r"permutation\.", 1.0)]
    shared = [(r"permutation\.source\.", 1.0)] if stage.shared else []
    return [*decoder, *shared, (r"permutation\.", stage.permutation_rate)]


def written_pictures(config: ConfigDict) -> Callable[[VOI], dict[str, np.ndarray]]:
    """Draws what the decoder writes for a few training examples, and when it writes each word."""
    source = texts(config)
    count, beams = config.samples.count, config.samples.beams

    def draw(model: VOI) -> dict[str, np.ndarray]:
        told: list[Line] = []
        for written, _ in write_all(
            jax.tree.map(gather, model), config, source, count, count, beams
        ):
            told += lines(written, source.vocabulary)
        return {"orders": order_picture(told)}

    return draw


class Remembered:
    """A small source whose examples are read once.

    Order recovery passes over the same few pictures thousands of times; decoding them anew would
    take ten times as long as the step.
    """

    def __init__(self, source: Text) -> None:
        self.source = source
        self._examples: dict[int, dict[str, Any]] = {}

    @property
    def fingerprint(self) -> str:
        """The source's."""
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._examples:
            self._examples[index] = self.source[index]
        return self._examples[index]
