"""Which steps to train on: uniformly, or by how much each step's loss varies.

A timestep sampler is a small pytree with two pure methods: `sample` draws steps with the
importance weights that keep the expected loss unchanged, `update` returns the sampler that has
seen a batch's losses. Under `jit` over a sharded batch both act on the global batch, so every
device holds the same history.

Source: Nichol & Dhariwal, Improved DDPM, section 3.3 (loss-second-moment).
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError

TimestepSamplerName = Literal["uniform", "loss_second_moment"]


class TimestepSampler(Protocol):
    """A distribution over the steps of a schedule."""

    def sample(
        self, key: Key[Array, ""], batch: int
    ) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """Draw `batch` steps and the weights by which to multiply their losses."""

    def update(self, step: Int[Array, " b"], losses: Float[Array, " b"]) -> Self:
        """Take note of the (unweighted) losses of a batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UniformTimesteps:
    """Every step equally often, every weight 1.

    Attributes:
        steps: Length of the schedule; static.
    """

    steps: int = field(metadata={"static": True})

    def sample(
        self, key: Key[Array, ""], batch: int
    ) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """Draw `batch` steps and their weights."""
        return jax.random.randint(key, (batch,), 0, self.steps), jnp.ones(batch)

    def update(self, step: Int[Array, " b"], losses: Float[Array, " b"]) -> Self:
        """Return itself."""
        return self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSecondMomentTimesteps:
    """Steps in proportion to √E[loss²] over each step's recent losses.

    Uniform until every step has filled its history.

    Attributes:
        history: Recent losses of each step, a ring.
        counts: How many losses each step has seen.
        uniform: Share of the draws that stay uniform, so that no step starves.
    """

    history: Float[Array, "n recent"]
    counts: Int[Array, " n"]
    uniform: Float[Array, ""] | float = 1e-3

    @classmethod
    def create(cls, steps: int, recent: int = 10) -> Self:
        """Start with an empty history of `recent` losses for each of `steps` steps."""
        return cls(jnp.zeros((steps, recent)), jnp.zeros(steps, jnp.int32))

    def probabilities(self) -> Float[Array, " n"]:
        """Probability of each step."""
        steps, recent = self.history.shape
        moment = jnp.sqrt(jnp.square(self.history).mean(axis=1))
        # Losses may all be zero: the floor turns 0/0 into uniform.
        moment = jnp.maximum(moment, 1e-30)
        by_loss = (1 - self.uniform) * moment / moment.sum() + self.uniform / steps
        return jnp.where((self.counts >= recent).all(), by_loss, 1 / steps)

    def sample(
        self, key: Key[Array, ""], batch: int
    ) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
        """Draw `batch` steps and their weights 1 / (n·probability)."""
        probabilities = self.probabilities()
        step = jax.random.choice(key, len(probabilities), (batch,), p=probabilities)
        return step, 1 / (len(probabilities) * probabilities[step])

    def update(self, step: Int[Array, " b"], losses: Float[Array, " b"]) -> Self:
        """Append each loss to its step's history, in the batch's order, the oldest falling out."""
        steps, recent = self.history.shape
        order = jnp.argsort(step, stable=True)
        step, losses = step[order], losses[order].astype(jnp.float32)
        earlier = jnp.arange(len(step)) - jnp.searchsorted(step, step, side="left")
        later = jnp.searchsorted(step, step, side="right") - 1 - jnp.arange(len(step))
        slot = (self.counts[step] + earlier) % recent
        # Of more than `recent` losses for one step only the last would survive: drop the others.
        row = jnp.where(later < recent, step, steps)
        return type(self)(
            self.history.at[row, slot].set(losses, mode="drop"),
            self.counts.at[step].add(1),
            self.uniform,
        )


def named_timestep_sampler(name: TimestepSamplerName, steps: int) -> TimestepSampler:
    """Build a timestep sampler from its name in a config, for a schedule of `steps`.

    Args:
        name: `uniform` or `loss_second_moment`.
        steps: Of the schedule.

    Raises:
        UserError: If the name is unknown.
    """
    if name == "uniform":
        return UniformTimesteps(steps)
    if name == "loss_second_moment":
        return LossSecondMomentTimesteps.create(steps)
    raise UserError(f"timestep_sampler={name!r}: choose 'uniform' or 'loss_second_moment'")
