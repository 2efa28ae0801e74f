"""The variational bound on -log p(x_0), in bits per dimension.

All terms are averages over an example's pixels and channels, in bits (base 2).

Sources: Ho et al., DDPM, eq. 5 and 13 (the terms, the discretised decoder); Nichol & Dhariwal,
Improved DDPM, section 2.2 and appendix A. As published, the decoder uses the tanh approximation
of the normal distribution function and each pixel's probability is at least 1e-12.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vljax.diffusion.noise import step_noise
from vljax.diffusion.process import (
    Denoiser,
    Process,
    ReverseStep,
    noise_from_x0,
    p_mean_variance,
    q_posterior,
    q_sample,
)
from vljax.diffusion.progress import Progress, report
from vljax.diffusion.schedules import Schedule

LOG_PROBABILITY_FLOOR = math.log(1e-12)


def normal_kl(
    mean1: Float[Array, "..."],
    log_variance1: Float[Array, "..."],
    mean2: Float[Array, "..."],
    log_variance2: Float[Array, "..."],
) -> Float[Array, "..."]:
    """KL(N(mean1, variance1) ‖ N(mean2, variance2)) of each element, in nats.

    Args:
        mean1: Of the first.
        log_variance1: Of the first.
        mean2: Of the second.
        log_variance2: Of the second.
    """
    log_ratio = log_variance2 - log_variance1
    distance = jnp.square(mean1 - mean2) * jnp.exp(-log_variance2)
    return 0.5 * (log_ratio + jnp.expm1(-log_ratio) + distance)


def discretized_gaussian_log_likelihood(
    x: Float[Array, "..."], mean: Float[Array, "..."], log_scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Log-probability of the 8-bit level of each element under N(mean, exp(log_scale)²), in nats.

    `x` holds levels 0…255 mapped to [-1, 1]; the outermost levels own the tails.

    Args:
        x: Pictures in [-1, 1].
        mean: Of the normal distribution.
        log_scale: The logarithm of its deviation.
    """

    def twice_tanh_argument(bound: float) -> Float[Array, "..."]:
        z = (x - mean + bound) * jnp.exp(-log_scale)
        return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)

    upper, lower = twice_tanh_argument(1 / 255), twice_tanh_argument(-1 / 255)
    below_upper = jax.nn.log_sigmoid(upper)
    above_lower = jax.nn.log_sigmoid(-lower)
    # σ(u) - σ(l) = σ(u)·σ(-l)·(1 - e^(l-u)): no difference of nearly equal probabilities.
    width = jnp.maximum(upper - lower, jnp.finfo(jnp.float32).tiny)
    between = below_upper + above_lower + jnp.log(-jnp.expm1(-width))
    log_probability = jnp.where(x < -0.999, below_upper, jnp.where(x > 0.999, above_lower, between))
    return jnp.maximum(log_probability, LOG_PROBABILITY_FLOOR)


def vlb_term(
    process: Process,
    reverse: ReverseStep,
    x0: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, " b"]:
    """L_{t-1} of each example: KL(q(x_{t-1} | x_t, x_0) ‖ p), at step 0 the decoder's -log p.

    Bits per dimension. Summed over all steps, plus `prior_term`, it is the variational bound.
    """
    posterior = q_posterior(process.schedule, x0, x_t, step)
    kl = normal_kl(posterior.mean, posterior.log_variance, reverse.mean, reverse.log_variance)
    decoder = -discretized_gaussian_log_likelihood(x0, reverse.mean, reverse.log_variance / 2)
    return jnp.where(step == 0, _mean(decoder), _mean(kl)) / math.log(2)


def prior_term(schedule: Schedule, x0: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """L_T = KL(q(x_T | x_0) ‖ N(0, 1)) in bits per dimension; it depends on no parameter."""
    signal2 = jnp.asarray(schedule.alphas_cumprod)[-1]
    return _mean(0.5 * (signal2 * (jnp.square(x0) - 1) - jnp.log1p(-signal2))) / math.log(2)


class BitsPerDimension(NamedTuple):
    """The variational bound of each example and what it is made of, indexed by step.

    Attributes:
        total: The bound.
        prior: What x_T keeps of the picture.
        vlb: Each step's term.
        x0_mse: Squared error of the clean picture at each step.
        noise_mse: And of the noise.
    """

    total: Float[Array, " b"]
    prior: Float[Array, " b"]
    vlb: Float[Array, "b n"]
    x0_mse: Float[Array, "b n"]
    noise_mse: Float[Array, "b n"]


def bits_per_dimension(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    *,
    clip: bool,
    progress: Progress | None = None,
) -> BitsPerDimension:
    """The whole variational bound by one noise draw per step, one scan over all steps.

    Args:
        process: May be respaced (an estimate with fewer steps is a looser bound).
        denoiser: Called once per step.
        x0: Pictures in [-1, 1] at 8-bit levels.
        keys: One per example.
        clip: Whether predicted pictures are clipped to [-1, 1].
        progress: Where to report steps; see `vljax.diffusion.progress`.
    """
    schedule = process.schedule
    x0 = jnp.asarray(x0, jnp.float32)

    def body(due: Int[Array, ""], step: Int[Array, ""]) -> tuple[Int[Array, ""], tuple]:
        index = jnp.full(x0.shape[:1], step)
        noise = step_noise(keys, step, x0.shape[1:])
        x_t = q_sample(schedule, x0, index, noise)
        reverse = p_mean_variance(process, denoiser, x_t, index, clip=clip)
        predicted_noise = noise_from_x0(schedule, x_t, reverse.x0, index)
        terms = (
            vlb_term(process, reverse, x0, x_t, index),
            _mean(jnp.square(reverse.x0 - x0)),
            _mean(jnp.square(predicted_noise - noise)),
        )
        return report(progress, due, len(schedule) - step, len(schedule), terms)

    _, terms = jax.lax.scan(
        body, jnp.int32(0), jnp.arange(len(schedule), dtype=jnp.int32), reverse=True
    )
    vlb, x0_mse, noise_mse = (term.T for term in terms)
    prior = prior_term(schedule, x0)
    return BitsPerDimension(prior + vlb.sum(axis=1), prior, vlb, x0_mse, noise_mse)


def _mean(values: Float[Array, "b ..."]) -> Float[Array, " b"]:
    return values.mean(axis=tuple(range(1, values.ndim)))
