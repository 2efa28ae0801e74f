"""From noise to pictures and back, each sampler one `lax.scan`.

The functions are pure and meant to be called under `jax.jit`, where everything but the number of
steps is traced: schedule values, start, keys, eta, and whatever the denoiser and the guidance
close over. Conditioning and classifier-free guidance are the denoiser's business; `guidance` is
the gradient of a score.

Trajectories are indexed by noise level: entry 0 is the cleanest, entry i + 1 the latent at step
i of the schedule, entry n the start of generation or the end of inversion. So after step i of a
generation, its latent and `inversion[i]` carry the same noise:

    inversion = ddim_inversion(process, denoiser, photo, trajectory=True)
    edited = ddim(process, edit, inversion[-1], clip=False,
                  after_step=lambda i, x: jnp.where(shape, x, inversion[i]))

Sources: Ho et al., DDPM, algorithm 2; Song et al., "Denoising Diffusion Implicit Models" (DDIM),
eq. 12 and 16; Lu et al., "DPM-Solver++", algorithm 2 (2M); Dhariwal & Nichol, "Diffusion Models
Beat GANs", algorithms 1 and 2 (guidance).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from vljax.diffusion.noise import step_noise
from vljax.diffusion.process import (
    Denoiser,
    Guidance,
    Process,
    ReverseStep,
    at,
    condition_mean,
    condition_score,
    p_mean_variance,
)
from vljax.diffusion.progress import Progress, report
from vljax.diffusion.schedules import Schedule
from vljax.errors import UserError

#: Those that `sample` knows by name.
SAMPLERS = ("ddpm", "ddim", "dpm_solver")

AfterStep = Callable[[Int[Array, ""], Float[Array, "b h w c"]], Float[Array, "b h w c"]]
Latents = Float[Array, "b h w c"] | Float[Array, "n+1 b h w c"]
S = TypeVar("S", bound=PyTree)


def check_sampler(sampler: str, field: str = "sampler", eta: float = 0.0) -> None:
    """Refuse a name that is none of `SAMPLERS`, and an eta where it is not heeded.

    Args:
        sampler: The name.
        field: Where it was given.
        eta: DDIM's share of DDPM's noise.

    Raises:
        UserError: It is none, or eta is for nothing.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"{field}={sampler!r}: choose one of {', '.join(SAMPLERS)}")
    if eta and sampler != "ddim":
        raise UserError(
            f"eta={eta:g}: DDIM alone heeds it, and the sampler is {sampler}; choose ddim, or "
            "leave eta out"
        )


def sample(
    sampler: str,
    process: Process,
    denoiser: Denoiser,
    x_T: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    *,
    clip: bool,
    eta: float | Float[Array, ""] = 0.0,
    guidance: Guidance | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """From noise to pictures by a sampler that is named.

    Args:
        sampler: "ddpm", "ddim" or "dpm_solver" (`dpm_solver_pp_2m`).
        process: As in `ddpm`, and so are those that follow.
        denoiser: Called once a step.
        x_T: Start noise.
        keys: One per example; DPM-Solver++ draws nothing.
        clip: Whether predicted pictures are clipped.
        eta: Of DDIM, the only one that heeds it; the number 0 draws no noise.
        guidance: Gradient of a score at x_t.
        after_step: Applied to the latent after each step.
        progress: Where to report steps.

    Raises:
        UserError: The sampler is none of `SAMPLERS`.
    """
    check_sampler(sampler)
    bent: dict[str, Any] = {
        "clip": clip,
        "guidance": guidance,
        "after_step": after_step,
        "progress": progress,
    }
    if sampler == "ddpm":
        return ddpm(process, denoiser, x_T, keys, **bent)
    if sampler == "ddim":
        drawn = None if isinstance(eta, int | float) and eta == 0 else keys
        return ddim(process, denoiser, x_T, eta=eta, keys=drawn, **bent)
    return dpm_solver_pp_2m(process, denoiser, x_T, **bent)


def ddpm(
    process: Process,
    denoiser: Denoiser,
    x_T: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    *,
    clip: bool,
    guidance: Guidance | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
    trajectory: bool = False,
) -> Latents:
    """Ancestral sampling (DDPM, algorithm 2).

    Args:
        process: Schedule (respaced or not), prediction and variance.
        denoiser: Called once a step.
        x_T: Start noise; see `vljax.diffusion.noise.start_noise`.
        keys: One per example. An example's noise depends on its key only.
        clip: Whether predicted pictures are clipped to [-1, 1]: True for pixels, False for
            latents.
        guidance: Gradient at x_t that shifts the mean by variance·gradient.
        after_step: `(step, x) -> x`, applied to the latent after each step.
        progress: Where to report steps; see `vljax.diffusion.progress`.
        trajectory: Return all latents, by noise level, instead of the last one.

    Returns:
        Samples (b h w c), or the trajectory (n+1 b h w c) with the samples as entry 0; float32.
    """

    def move(
        x: Float[Array, "b h w c"], _: None, step: Int[Array, ""], index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b h w c"], None]:
        reverse = p_mean_variance(process, denoiser, x, index, clip=clip)
        if guidance is not None:
            t = jnp.asarray(process.schedule.timesteps)[index]
            reverse = condition_mean(reverse, guidance(x, t))
        spread = jnp.exp(0.5 * reverse.log_variance) * step_noise(keys, step, x.shape[1:])
        return reverse.mean + jnp.where(step > 0, spread, 0.0), None

    return _scan(process.schedule, x_T, None, move, after_step, progress, trajectory)


def ddim(
    process: Process,
    denoiser: Denoiser,
    x_T: Float[Array, "b h w c"],
    *,
    clip: bool,
    eta: float | Float[Array, ""] = 0.0,
    keys: Key[Array, " b"] | None = None,
    guidance: Guidance | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
    trajectory: bool = False,
) -> Latents:
    """DDIM (eq. 12 and 16): deterministic without `keys`, the more random the larger `eta`.

    Args:
        process: Schedule and prediction; the variance channels, if any, are not used.
        denoiser: Called once a step.
        x_T: Start noise, or the end of an inversion.
        clip: As in `ddpm`.
        eta: 0 is the ODE, 1 adds DDPM's noise; traced. Other than the number 0, needs `keys`.
        keys: One per example; left out, no noise is drawn.
        guidance: Gradient at x_t that corrects the predicted noise.
        after_step: As in `ddpm`.
        progress: As in `ddpm`.
        trajectory: As in `ddpm`.

    Returns:
        As `ddpm`.

    Raises:
        UserError: If `eta` is not 0 and `keys` are missing.
    """
    schedule = process.schedule
    if keys is None and not (isinstance(eta, int | float) and eta == 0):
        raise UserError(f"eta={eta}: it draws noise, but there are no keys; give keys, or eta=0")

    def move(
        x: Float[Array, "b h w c"], _: None, step: Int[Array, ""], index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b h w c"], None]:
        reverse = _guided(process, denoiser, guidance, x, index, clip)
        variance = jnp.square(eta) * at(schedule.posterior_variance, index, x)
        direction = jnp.square(at(schedule.noise_previous, index, x)) - variance
        mean = at(schedule.signal_previous, index, x) * reverse.x0
        mean += jnp.sqrt(jnp.maximum(direction, 0.0)) * reverse.noise
        if keys is None:
            return mean, None
        return mean + jnp.sqrt(variance) * step_noise(keys, step, x.shape[1:]), None

    return _scan(schedule, x_T, None, move, after_step, progress, trajectory)


def dpm_solver_pp_2m(
    process: Process,
    denoiser: Denoiser,
    x_T: Float[Array, "b h w c"],
    *,
    clip: bool,
    guidance: Guidance | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
    trajectory: bool = False,
) -> Latents:
    """DPM-Solver++(2M): the same ODE as `ddim`, second order in the step size.

    The multistep method of algorithm 2, data prediction, midpoint form; first and last steps are
    of first order. Results as `ddim` without noise. Step counts of 10 to 25 do.

    Args:
        process: Whose schedule is stepped through.
        denoiser: The network.
        x_T: Start noise.
        clip: As in `ddpm`.
        guidance: Gradient at x_t that corrects the predicted noise.
        after_step: As in `ddpm`.
        progress: As in `ddpm`.
        trajectory: As in `ddpm`.
    """
    schedule = process.schedule
    last = len(schedule) - 1

    def move(
        x: Float[Array, "b h w c"],
        x0_before: Float[Array, "b h w c"],
        step: Int[Array, ""],
        index: Int[Array, " b"],
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        x0 = _guided(process, denoiser, guidance, x, index, clip).x0
        h = at(schedule.half_log_snr_step, index, x)
        h_before = at(schedule.half_log_snr_step, jnp.minimum(index + 1, last), x)
        is_second_order = (step > 0) & (step < last)
        weight = jnp.where(is_second_order, h / (2 * h_before), 0.0)
        ratio = at(schedule.noise_previous, index, x) / at(schedule.noise, index, x)
        growth = at(schedule.signal_previous, index, x) * -jnp.expm1(-h)
        return ratio * x + growth * (x0 + weight * (x0 - x0_before)), x0

    start = jnp.zeros(x_T.shape, jnp.float32)
    return _scan(schedule, x_T, start, move, after_step, progress, trajectory)


def ddim_inversion(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    *,
    evaluate_at: Literal["next", "current"] = "next",
    progress: Progress | None = None,
    trajectory: bool = False,
) -> Latents:
    """Run DDIM backwards: the noise from which `ddim` with the same process makes `x0`.

    Exact in the limit of many steps. The denoiser should be the one without guidance.

    Args:
        process: As for `ddim`; also how the clean end is treated (`respace(clean_end=…)`).
        denoiser: Called once a step.
        x0: Pictures or latents.
        evaluate_at: Which time the denoiser is told on the way from one noise level to the next:
            "next" the level to come (the usual choice for Stable Diffusion), "current" the level
            of x itself (guided-diffusion; the clean picture passes as the first level).
        progress: As in `ddpm`.
        trajectory: Return all latents, by noise level, instead of the last one.

    Returns:
        Noise (b h w c), or the trajectory (n+1 b h w c) with `x0` as entry 0; float32.

    Raises:
        UserError: If `evaluate_at` is unknown.
    """
    if evaluate_at not in ("next", "current"):
        raise UserError(f"evaluate_at={evaluate_at!r}: choose 'next' or 'current'")
    schedule = process.schedule
    # On the way to level i the latent still has level i - 1: read predictions with its factors.
    source = replace(schedule, signal=schedule.signal_previous, noise=schedule.noise_previous)
    if evaluate_at == "current":
        times = jnp.asarray(schedule.timesteps)
        source = replace(source, timesteps=jnp.concatenate([times[:1], times[:-1]]))
    if process.prediction == "x0":
        # A clean latent shows no noise to divide by; what it differs by is taken as level 0's.
        clean = jnp.asarray(schedule.noise_previous) == 0
        source = replace(source, noise=jnp.where(clean, schedule.noise, schedule.noise_previous))
    source_process = replace(process, schedule=source)

    def move(
        x: Float[Array, "b h w c"], _: None, step: Int[Array, ""], index: Int[Array, " b"]
    ) -> tuple[Float[Array, "b h w c"], None]:
        reverse = p_mean_variance(source_process, denoiser, x, index)
        signal, noise = at(schedule.signal, index, x), at(schedule.noise, index, x)
        return signal * reverse.x0 + noise * reverse.noise, None

    return _scan(schedule, x0, None, move, None, progress, trajectory, reverse=False)


Move = Callable[
    [Float[Array, "b h w c"], S, Int[Array, ""], Int[Array, " b"]],
    tuple[Float[Array, "b h w c"], S],
]


def _guided(
    process: Process,
    denoiser: Denoiser,
    guidance: Guidance | None,
    x: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    clip: bool,
) -> ReverseStep:
    reverse = p_mean_variance(process, denoiser, x, index, clip=clip)
    if guidance is None:
        return reverse
    gradient = guidance(x, jnp.asarray(process.schedule.timesteps)[index])
    return condition_score(process, reverse, gradient, x, index)


def _scan(
    schedule: Schedule,
    x: Float[Array, "b h w c"],
    state: S,
    move: Move[S],
    after_step: AfterStep | None,
    progress: Progress | None,
    trajectory: bool,
    *,
    reverse: bool = True,
) -> Latents:
    """Apply `move` over all steps, downwards if `reverse`; keep every latent if asked."""
    steps = len(schedule)
    start = jnp.asarray(x, jnp.float32)

    def body(
        carry: tuple[Float[Array, "b h w c"], S, Int[Array, ""]], step: Int[Array, ""]
    ) -> tuple[tuple[Float[Array, "b h w c"], S, Int[Array, ""]], Float[Array, "b h w c"] | None]:
        x, state, due = carry
        x, state = move(x, state, step, jnp.full(start.shape[:1], step))
        if after_step is not None:
            x = after_step(step, x).astype(jnp.float32)
        due, x = report(progress, due, steps - step if reverse else step + 1, steps, x)
        return (x, state, due), x if trajectory else None

    carry = (start, state, jnp.int32(0))
    (end, *_), passed = lax.scan(body, carry, jnp.arange(steps, dtype=jnp.int32), reverse=reverse)
    if passed is None:
        return end
    return jnp.concatenate([passed, start[None]] if reverse else [start[None], passed])
