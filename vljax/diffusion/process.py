"""The forward process q, the learned reverse process p, and the three parametrisations.

A **denoiser** is any callable `(x_t, t) -> prediction`; `t` is in the time of the schedule it was
trained on (`schedule.timesteps[step]`), also after respacing. Everything else is addressed by
`step`, the index into the schedule at hand. Tables, results and arithmetic are float32 whatever
the denoiser's dtype.

Sources: Ho et al., DDPM, equations 4 to 7 and 11; Nichol & Dhariwal, Improved DDPM, eq. 15
(learned variance); Salimans & Ho, "Progressive Distillation", section 4 and appendix D (v);
Dhariwal & Nichol, "Diffusion Models Beat GANs", algorithms 1 and 2 (guidance). Equations 4.2 to 4.5
of Park, *Vision and Language Understanding Through Generative Modeling* (2023, "thesis").
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped
from ml_collections import ConfigDict

from vljax.diffusion.schedules import Schedule, named_schedule, parse_timesteps, respace
from vljax.errors import UserError

PredictionType = Literal["epsilon", "x0", "v"]
VarianceType = Literal["fixed_small", "fixed_large", "learned_range"]


class Denoiser(Protocol):
    """A network seen by diffusion: conditioning is closed over or wrapped around it.

    Args:
        x_t: Noised pictures.
        t: The time of each, as the network was trained.
    """

    def __call__(
        self, x_t: Float[Array, "b h w c"], t: Int[Array, " b"], /
    ) -> Float[Array, "b h w k"]:
        """Predict from `x_t` at original times `t`; k = c, or 2c with a learned variance."""


class Guidance(Protocol):
    """The gradient of a log-probability (times a scale) with respect to x_t.

    Args:
        x_t: Noised pictures.
        t: The original time of each.
    """

    def __call__(
        self, x_t: Float[Array, "b h w c"], t: Int[Array, " b"], /
    ) -> Float[Array, "b h w c"]:
        """Gradient at `x_t` and original times `t`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Process:
    """A schedule and how a denoiser's output is to be read.

    Attributes:
        schedule: The (possibly respaced) noise schedule; traced.
        prediction: What the denoiser predicts: the noise, the clean picture, or
            v = signal·noise - noise·x_0; static.
        variance: Of the reverse steps: β̃, β (β̃ at the last step), or interpolated between their
            logarithms by c further output channels in [-1, 1]; static.

    Raises:
        UserError: If `prediction` or `variance` is unknown.
    """

    schedule: Schedule
    prediction: PredictionType = field(default="epsilon", metadata={"static": True})
    variance: VarianceType = field(default="fixed_small", metadata={"static": True})

    def __post_init__(self) -> None:
        for name, kinds in (("prediction", PredictionType), ("variance", VarianceType)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                raise UserError(f"{name}={value!r}: choose one of {', '.join(get_args(kinds))}")


def make_process(
    config: ConfigDict, steps: str = "", strength: float = 1.0, *, clean_end: bool = True
) -> Process:
    """The process of a config.

    Args:
        config: Its `diffusion` has `schedule`, `num_steps`, `prediction` and, unless it is
            `"fixed_small"`, `variance`.
        steps: Respaced so (`"100"`, `"ddim50"`, `"leading50"`), or not at all.
        strength: Only the first share of these steps, counted from the clean end.
        clean_end: See `respace`.

    Raises:
        UserError: a field or `steps` cannot be.
    """
    fields = config.diffusion
    schedule = named_schedule(fields.schedule, fields.num_steps)
    if steps:
        times = parse_timesteps(fields.num_steps, steps)
        kept = times[: max(1, round(strength * len(times)))]
        schedule = respace(schedule, kept, clean_end=clean_end)
    return Process(schedule, fields.prediction, fields.get("variance", "fixed_small"))


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0): its mean, and the variance β̃ shared by all pixels of an example.

    Attributes:
        mean: Of x_{t-1}.
        variance: β̃.
        log_variance: Its logarithm, finite at the first step.
    """

    mean: Float[Array, "b h w c"]
    variance: Float[Array, "b 1 1 1"]
    log_variance: Float[Array, "b 1 1 1"]


class ReverseStep(NamedTuple):
    """p(x_{t-1} | x_t) and the clean picture and noise that it rests on.

    Attributes:
        mean: Of x_{t-1}.
        variance: Of x_{t-1}.
        log_variance: Its logarithm.
        x0: The clean picture.
        noise: And the noise.
    """

    mean: Float[Array, "b h w c"]
    variance: Float[Array, "b h w c"]
    log_variance: Float[Array, "b h w c"]
    x0: Float[Array, "b h w c"]
    noise: Float[Array, "b h w c"]


def at(
    table: Shaped[Array | np.ndarray, " n"], step: Int[Array, " b"], like: Float[Array, "b h w c"]
) -> Shaped[Array, "b 1 1 1"]:
    """Each example's entry of a schedule's table, shaped to broadcast over its pixels."""
    return jnp.asarray(table)[step].reshape(step.shape + (1,) * (like.ndim - step.ndim))


# Forward ---------------------------------------------------------------------------------------


def q_sample(
    schedule: Schedule,
    x0: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    noise: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """x_t for clean `x0` and given standard normal noise (DDPM eq. 4, thesis 4.2).

    Args:
        schedule: The schedule of `step`.
        x0: Clean pictures.
        step: Indices into the schedule.
        noise: Standard normal.
    """
    return at(schedule.signal, step, x0) * x0 + at(schedule.noise, step, x0) * noise


def q_posterior(
    schedule: Schedule,
    x0: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Posterior:
    """q(x_{t-1} | x_t, x_0) (DDPM eq. 6 and 7).

    Args:
        schedule: The schedule of `step`.
        x0: Clean pictures.
        x_t: Noised pictures.
        step: Indices into the schedule.
    """
    mean = (
        at(schedule.posterior_mean_x0, step, x0) * x0
        + at(schedule.posterior_mean_xt, step, x0) * x_t
    )
    return Posterior(
        mean,
        at(schedule.posterior_variance, step, x0),
        at(schedule.posterior_log_variance, step, x0),
    )


# Parametrisations ------------------------------------------------------------------------------


def x0_from_noise(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The clean picture of which `x_t` is made, given its noise.

    Args:
        schedule: The schedule of `step`.
        x_t: Noised pictures.
        noise: Of which they are made.
        step: Indices into the schedule.
    """
    return (x_t - at(schedule.noise, step, x_t) * noise) / at(schedule.signal, step, x_t)


def noise_from_x0(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    x0: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The noise of which `x_t` is made, given its clean picture.

    Args:
        schedule: The schedule of `step`.
        x_t: Noised pictures.
        x0: Clean pictures.
        step: Indices into the schedule.
    """
    return (x_t - at(schedule.signal, step, x_t) * x0) / at(schedule.noise, step, x_t)


def v_from_x0(
    schedule: Schedule,
    x0: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The v of x_t: signal·noise - noise·x_0.

    Args:
        schedule: The schedule of `step`.
        x0: Clean pictures.
        noise: Standard normal.
        step: Indices into the schedule.
    """
    return at(schedule.signal, step, x0) * noise - at(schedule.noise, step, x0) * x0


def x0_from_v(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    v: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The clean picture of `x_t`, given v.

    Args:
        schedule: The schedule of `step`.
        x_t: Noised pictures.
        v: signal·noise - noise·x_0.
        step: Indices into the schedule.
    """
    return at(schedule.signal, step, x_t) * x_t - at(schedule.noise, step, x_t) * v


def noise_from_v(
    schedule: Schedule,
    x_t: Float[Array, "b h w c"],
    v: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The noise of `x_t`, given v.

    Args:
        schedule: The schedule of `step`.
        x_t: Noised pictures.
        v: signal·noise - noise·x_0.
        step: Indices into the schedule.
    """
    return at(schedule.noise, step, x_t) * x_t + at(schedule.signal, step, x_t) * v


def training_target(
    process: Process,
    x0: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
    """What a perfect denoiser of this process would predict for x_t made of `x0` and `noise`."""
    if process.prediction == "epsilon":
        return noise
    if process.prediction == "x0":
        return x0
    return v_from_x0(process.schedule, x0, noise, step)


# Reverse ---------------------------------------------------------------------------------------


def denoise(
    process: Process,
    denoiser: Denoiser,
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> Float[Array, "b h w k"]:
    """Call the denoiser at the original time of each step; its raw output in float32.

    Args:
        process: Whose times and channels count.
        denoiser: The network.
        x_t: Noised pictures.
        step: Indices into the schedule.

    Raises:
        UserError: If the output's shape does not fit `process.variance`.
    """
    output = denoiser(x_t, jnp.asarray(process.schedule.timesteps)[step])
    channels = x_t.shape[-1] * (2 if process.variance == "learned_range" else 1)
    if output.shape != (*x_t.shape[:-1], channels):
        raise UserError(
            f"variance={process.variance!r}: the denoiser gives {output.shape} for x_t {x_t.shape} "
            f"instead of {(*x_t.shape[:-1], channels)}; give the variance that it was built for"
        )
    return output.astype(jnp.float32)


def split_output(
    process: Process, output: Float[Array, "b h w k"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"] | None]:
    """A denoiser's output as (prediction, variance channels or None)."""
    if process.variance != "learned_range":
        return output, None
    prediction, variance = jnp.split(output, 2, axis=-1)
    return prediction, variance


def interpret(
    process: Process,
    output: Float[Array, "b h w k"],
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    *,
    clip: bool = False,
) -> ReverseStep:
    """Read a denoiser's float32 output at `x_t` as p(x_{t-1} | x_t) (thesis 4.3).

    Args:
        process: How to read it.
        output: From `denoise`.
        x_t: What the denoiser saw.
        step: Its steps.
        clip: Whether to clip the clean picture to [-1, 1], the range of pixels; the noise then
            follows the clipped picture. Leave off for latents.
    """
    schedule = process.schedule
    prediction, fraction = split_output(process, output)
    if process.prediction == "epsilon":
        x0, noise = x0_from_noise(schedule, x_t, prediction, step), prediction
    elif process.prediction == "x0":
        x0, noise = prediction, noise_from_x0(schedule, x_t, prediction, step)
    else:
        x0 = x0_from_v(schedule, x_t, prediction, step)
        noise = noise_from_v(schedule, x_t, prediction, step)
    if clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        noise = noise_from_x0(schedule, x_t, x0, step)

    mean, variance, log_variance = q_posterior(schedule, x0, x_t, step)
    if fraction is not None:
        fraction = (fraction + 1) / 2
        log_variance = fraction * at(schedule.log_betas, step, x_t) + (1 - fraction) * log_variance
        variance = jnp.exp(log_variance)
    elif process.variance == "fixed_large":
        is_last = at(np.arange(len(schedule)) == 0, step, x_t)
        log_variance = jnp.where(is_last, log_variance, at(schedule.log_betas, step, x_t))
        variance = jnp.exp(log_variance)
    return ReverseStep(
        mean,
        jnp.broadcast_to(variance, x_t.shape),
        jnp.broadcast_to(log_variance, x_t.shape),
        x0,
        noise,
    )


def p_mean_variance(
    process: Process,
    denoiser: Denoiser,
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
    *,
    clip: bool = False,
) -> ReverseStep:
    """p(x_{t-1} | x_t) from one call of the denoiser; see `interpret`.

    Args:
        process: Whose step it is.
        denoiser: The network.
        x_t: Noised pictures.
        step: Indices into the schedule.
        clip: Whether the clean picture is held within [-1, 1].
    """
    return interpret(process, denoise(process, denoiser, x_t, step), x_t, step, clip=clip)


def condition_mean(reverse: ReverseStep, gradient: Float[Array, "b h w c"]) -> ReverseStep:
    """Shift the mean of an ancestral step by Σ·gradient.

    Diffusion Models Beat GANs, algorithm 1; so p(x_{t-1} | x_t) p(y | x_{t-1}) is a normal
    distribution again (thesis 4.4 and 4.5).

    Args:
        reverse: The step.
        gradient: Of log p(y | x_t) with respect to x_t, scaled.
    """
    return reverse._replace(mean=reverse.mean + reverse.variance * gradient.astype(jnp.float32))


def condition_score(
    process: Process,
    reverse: ReverseStep,
    gradient: Float[Array, "b h w c"],
    x_t: Float[Array, "b h w c"],
    step: Int[Array, " b"],
) -> ReverseStep:
    """Correct the predicted noise by -noise·gradient, for DDIM and ODE steps (ibid., alg. 2).

    Args:
        process: Whose step it is.
        reverse: The step.
        gradient: Of log p(y | x_t) with respect to x_t, scaled.
        x_t: Noised pictures.
        step: Indices into the schedule.
    """
    schedule = process.schedule
    noise = reverse.noise - at(schedule.noise, step, x_t) * gradient.astype(jnp.float32)
    x0 = x0_from_noise(schedule, x_t, noise, step)
    return reverse._replace(mean=q_posterior(schedule, x0, x_t, step).mean, x0=x0, noise=noise)
