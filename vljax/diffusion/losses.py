"""Training losses of a denoiser: L_simple, L_vlb, their hybrid, and a batch's loss from them.

Each of the three calls the denoiser once and returns the loss of every example, unweighted and
unreduced, so that a timestep sampler can weight it, with the terms it is made of.
`denoising_loss` does this for a batch: of pictures, or of latents.

Sources: Ho et al., DDPM, eq. 14 (simple); Nichol & Dhariwal, Improved DDPM, eq. 4 (vlb) and
eq. 16 (hybrid).
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vljax.diffusion.likelihood import vlb_term
from vljax.diffusion.process import (
    Denoiser,
    Process,
    denoise,
    interpret,
    q_sample,
    split_output,
    training_target,
)
from vljax.diffusion.timesteps import TimestepSampler
from vljax.errors import UserError

LossName = Literal["simple", "vlb", "hybrid"]
ExampleLosses = tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]

VLB_WEIGHT = 1e-3
"""λ of the hybrid loss (Improved DDPM, section 3.1)."""


class Loss(Protocol):
    """`(process, denoiser, x0, step, noise) -> (loss per example, its named terms)`.

    Args:
        process: What is learned: schedule, prediction, variance.
        denoiser: The network.
        x0: Clean pictures in [-1, 1].
        step: Indices into the schedule.
        noise: Standard normal.
    """

    def __call__(
        self,
        process: Process,
        denoiser: Denoiser,
        x0: Float[Array, "b h w c"],
        step: Int[Array, " b"],
        noise: Float[Array, "b h w c"],
        /,
    ) -> ExampleLosses:
        """Noise `x0` to `step` with `noise`, denoise, compare."""


def simple_loss(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> ExampleLosses:
    """Mean squared error of the prediction (noise, x_0 or v).

    Variance channels, if the denoiser has them, receive no gradient from it.

    Args:
        process: What is learned: schedule, prediction, variance.
        denoiser: The network.
        x0: Clean pictures in [-1, 1].
        step: Indices into the schedule.
        noise: Standard normal.
    """
    x_t = q_sample(process.schedule, x0, step, noise)
    prediction, _ = split_output(process, denoise(process, denoiser, x_t, step))
    mse = _mean_squared(training_target(process, x0, noise, step) - prediction)
    return mse, {"mse": mse}


def vlb_loss(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> ExampleLosses:
    """Number of steps × this step's term: unbiased for the bound less its constant prior term.

    Bits per dimension. Trains mean and variance alike.

    Args:
        process: What is learned: schedule, prediction, variance.
        denoiser: The network.
        x0: Clean pictures in [-1, 1].
        step: Indices into the schedule.
        noise: Standard normal.
    """
    x_t = q_sample(process.schedule, x0, step, noise)
    output = denoise(process, denoiser, x_t, step)
    reverse = interpret(process, output, x_t, step)
    vlb = len(process.schedule) * vlb_term(process, reverse, x0, x_t, step)
    return vlb, {"vlb": vlb}


def hybrid_loss(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
    vlb_weight: float = VLB_WEIGHT,
) -> ExampleLosses:
    """L_simple + λ·L_vlb; the bound trains the variance only, its mean is detached.

    Args:
        process: With a learned variance.
        denoiser: Called once.
        x0: Clean pictures.
        step: Of each example.
        noise: Standard normal.
        vlb_weight: λ, on the bound in bits per dimension; 0.001 as published. A paper that weights
            the mean of the terms in nats by γ instead of their sum in bits has
            λ = γ · log 2 / number of steps.

    Raises:
        UserError: If the process has no learned variance.
    """
    if process.variance != "learned_range":
        raise UserError(
            f"loss='hybrid': it trains a learned variance, but variance={process.variance!r}; give "
            "loss='simple' or variance='learned_range'"
        )
    x_t = q_sample(process.schedule, x0, step, noise)
    output = denoise(process, denoiser, x_t, step)
    prediction, fraction = jnp.split(output, 2, axis=-1)
    mse = _mean_squared(training_target(process, x0, noise, step) - prediction)
    detached = jnp.concatenate([lax.stop_gradient(prediction), fraction], axis=-1)
    reverse = interpret(process, detached, x_t, step)
    vlb = len(process.schedule) * vlb_term(process, reverse, x0, x_t, step)
    return mse + vlb_weight * vlb, {"mse": mse, "vlb": vlb}


def denoising_loss(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    keys: Sequence[Key[Array, ""]] | Key[Array, " 2"],
    timesteps: TimestepSampler,
    loss: Loss = simple_loss,
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], TimestepSampler]]:
    """A batch at random times under fresh noise, its losses weighted by their times' rarity.

    Args:
        process: With the schedule of training.
        denoiser: The one being trained.
        x0: Clean pictures or latents.
        keys: Two: for the times and for the noise.
        timesteps: Draws the times, and learns what losses they had.
        loss: Of each example.

    Returns:
        The mean, and as training stages with a memory have it `(metrics, timesteps)`: the loss's
        terms, and the timestep sampler that has seen the batch.
    """
    step_key, noise_key = keys[0], keys[1]
    step, weight = timesteps.sample(step_key, len(x0))
    noise = jax.random.normal(noise_key, x0.shape)
    losses, terms = loss(process, denoiser, x0, step, noise)
    timesteps = timesteps.update(step, lax.stop_gradient(losses))
    metrics = {name: term.mean() for name, term in terms.items()}
    return (weight * losses).mean(), (metrics, timesteps)


def named_loss(name: LossName) -> Loss:
    """Look up a loss by its name in a config.

    Args:
        name: `simple`, `vlb` or `hybrid`.

    Raises:
        UserError: If the name is unknown.
    """
    losses: dict[str, Loss] = {"simple": simple_loss, "vlb": vlb_loss, "hybrid": hybrid_loss}
    if name not in losses:
        raise UserError(f"loss={name!r}: choose one of {', '.join(losses)}")
    return losses[name]


def _mean_squared(error: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    return jnp.square(error).mean(axis=tuple(range(1, error.ndim)))
