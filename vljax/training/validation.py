"""Validation decides: the best model stays, the rate falls, training ends.

Of a stage with `optimizer.schedule='validation'`, every `decay_every` steps the mean loss over its
validation examples is compared with the lowest so far. If it is lower the model is kept; if not,
the model is set back to the one kept, and the rate is multiplied by `decay_factor`. After
`patience` such restorations the stage ends, at the latest after `num_steps`, with the model kept
(Wang, *A Diffusion-based Method for Multi-turn Compositional Image Generation*, 2023, section 4.2;
there every ten epochs, by one half, five times).

The mean is over whole batches of the stage's size, for a loss tells that of a batch: of the
examples beyond the last whole batch none is seen, and where there are fewer than a batch some of
them count twice. Choose a `batch_size` that divides their number where that matters.

All of it is in the optimizer's state, so a run that was stopped goes on bit for bit. Each batch has
a key of its own, the same each time: diffusion times and noise do not make the comparison noise.
The optimizer's moments are not set back.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from vljax.data import pipeline
from vljax.errors import UserError
from vljax.training import mesh as meshes
from vljax.training.stage import Stage

SCHEDULE = "validation"


class Selection(NamedTuple):
    """What validation remembers, as an optimizer's state.

    Attributes:
        best: The parameters kept.
        loss: Their validation loss; infinite before the first.
        rate: What the learning rate is multiplied by.
        restorations: How often the model was set back.
    """

    best: dict[str, Array]
    loss: Float[Array, ""]
    rate: Float[Array, ""]
    restorations: Int[Array, ""]


def selecting() -> optax.GradientTransformation:
    """Multiplies updates by the rate that validation has left, and holds a `Selection`."""

    def init(parameters: optax.Params) -> Selection:
        # A copy: both are donated, and separately.
        best = jax.tree.map(jnp.copy, parameters)
        return Selection(best, jnp.float32(jnp.inf), jnp.float32(1), jnp.int32(0))

    def update(
        updates: optax.Updates, state: Any, parameters: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        return jax.tree.map(lambda u: u * state.rate, updates), state

    return optax.GradientTransformation(init, update)


def _is_selection(node: Any) -> bool:
    return isinstance(node, Selection)


def selection_of(optimizer: optax.OptState) -> Selection | None:
    """The selection in an optimizer's state, or None."""
    nodes = jax.tree.leaves(optimizer, is_leaf=_is_selection)
    return next((node for node in nodes if isinstance(node, Selection)), None)


def decide(
    parameters: dict[str, Array],
    optimizer: optax.OptState,
    loss: Float[Array, ""],
    factor: float,
) -> tuple[dict[str, Array], optax.OptState]:
    """Keep the model, or set it back and lower the rate; a loss that is no number is no lower.

    Args:
        parameters: Of the model.
        optimizer: Its optimizer's state.
        loss: The mean over the validation examples.
        factor: What the rate is multiplied by.

    Returns:
        Parameters and optimizer state to go on with.
    """
    before = selection_of(optimizer)
    assert before is not None
    better = loss < before.loss
    chosen = {n: jnp.where(better, p, before.best[n]) for n, p in parameters.items()}
    after = Selection(
        jax.tree.map(jnp.copy, chosen),
        jnp.where(better, loss, before.loss),
        jnp.where(better, before.rate, before.rate * factor),
        before.restorations + jnp.where(better, 0, 1),
    )
    state = jax.tree.map(
        lambda node: after if _is_selection(node) else node, optimizer, is_leaf=_is_selection
    )
    return chosen, state


@dataclass(frozen=True)
class Validation:
    """A stage's validation within a run.

    Attributes:
        stage: With `validation` examples.
        run: The run's config.
        mesh: The devices.
        loss: `loss(parameters, frozen, batch, index, memory) -> scalar`, jitted.
        decide: `decide(state, loss) -> state`, jitted.
    """

    stage: Stage
    run: ConfigDict
    mesh: Mesh
    loss: Callable
    decide: Callable

    def due(self, step: int) -> bool:
        """Whether to validate after so many steps: also after the last."""
        every = self.stage.config.optimizer.decay_every
        return step % every == 0 or step == self.stage.config.num_steps

    def ended(self, state: Any) -> bool:
        """Whether the model was set back so often that the stage ends."""
        selection = selection_of(state.optimizer)
        assert selection is not None
        return int(selection.restorations) >= self.stage.config.optimizer.patience

    def __call__(self, state: Any, frozen: dict[str, Array]) -> tuple[Any, dict[str, float]]:
        """The state after a validation, and what to log of it."""
        losses = [
            self.loss(state.parameters, frozen, batch, np.uint32(index), state.memory)
            for index, batch in enumerate(self._batches())
        ]
        loss = np.float32(np.mean([np.asarray(one) for one in losses]))
        state = self.decide(state, loss)
        selection = selection_of(state.optimizer)
        assert selection is not None
        return state, {
            "validation_loss": float(loss),
            "lowest_validation_loss": float(selection.loss),
            "rate": float(selection.rate),
            "restorations": float(selection.restorations),
        }

    def _batches(self) -> Iterator[dict[str, Array]]:
        """The validation examples in their order, in whole batches, the same each time."""
        stage, size = self.stage, self.stage.config.batch_size
        source = stage.validation
        assert source is not None
        with pipeline.batches(
            source,
            transform=stage.transform,
            batch_size=size,
            seed=self.run.seed,
            shuffle=False,
            num_batches=max(1, len(source) // size),
            rows=meshes.process_rows(self.mesh, size),
            on_corrupt=self.run.data.on_corrupt,
        ) as batches:
            for batch in batches:
                arrays = {n: v for n, v in batch.items() if n not in ("index", "substituted")}
                yield meshes.to_devices(arrays, self.mesh, size)


def check(stage: Stage) -> None:
    """Refuse a validated stage that cannot be.

    Raises:
        UserError: it has no validation examples, an average, or impossible numbers.
    """
    config, field = stage.config, f"stages.{stage.name}"
    told = f"{field}.optimizer.schedule={SCHEDULE!r}"
    if stage.validation is None:
        raise UserError(f"{told}: this stage has no validation examples; choose another schedule")
    if config.ema_decay:
        raise UserError(f"{told}: needs {field}.ema_decay=0, as it is one model that is kept")
    for name in ("decay_every", "patience"):
        if config.optimizer[name] < 1:
            raise UserError(
                f"{field}.optimizer.{name}={config.optimizer[name]}: schedule {SCHEDULE!r} needs "
                "1 or more"
            )
