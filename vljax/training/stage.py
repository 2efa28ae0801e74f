"""A stage: one training phase of a system."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from vljax.data.source import Source, Transform


@dataclass(frozen=True)
class Stage:
    """One training phase: a loss over named parts of a model.

    Attributes:
        name: The stage's name in the config, the console and the workdir.
        loss: `loss(model, batch, key) -> (scalar, metrics)`, pure; `metrics` are scalars. A loss
            with `memory` is called as `loss(model, batch, key, memory)` and returns
            `(scalar, (metrics, memory))`.
        train: Regular expressions over parameter names (searched from the start), each with the
            factor on the learning rate; the first that matches decides, the rest stays frozen.
        source: Random-access examples.
        transform: `transform(example, rng) -> dict of arrays`, on the host.
        config: `batch_size` (over all devices), `num_steps`, `accumulate`, `ema_decay` (0 is off)
            and `optimizer` (see `vljax.training.optimizer`).
        memory: Makes what the loss remembers from step to step (a timestep sampler's history),
            or None.
        pictures: `pictures(model) -> {name: uint8 [h w 3]}`, made during training with the
            averaged weights: what the model draws, or writes, as a picture of the text.
        start: `start(model) -> model`, pure: the model that the stage begins with, made from the
            one that earlier stages left; None where it is that one. Only the parts of it that the
            stage trains are taken.
        validation: Examples, as of `source`, by which `optimizer.schedule='validation'` chooses
            the model (see `vljax.training.validation`); None where the stage has none.
    """

    name: str
    loss: Callable[..., tuple[Array, Any]]
    train: Sequence[tuple[str, float]]
    source: Source
    transform: Transform
    config: ConfigDict
    memory: Callable[[], Any] | None = None
    pictures: Callable[[Any], dict[str, np.ndarray]] | None = None
    start: Callable[[Any], Any] | None = None
    validation: Source | None = None
