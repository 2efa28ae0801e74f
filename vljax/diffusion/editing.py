"""Editing a part of a picture: what every method shares, and the ones that need no attention maps.

SDEdit (Meng et al. 2022) noises a picture part of the way and denoises it again under another
prompt. Blended Diffusion (Avrahami et al. 2022) guides a model without text inside a mask and puts
the picture's own, noised, back outside it after every step. All are functions of a denoiser.

Putting the picture back outside the mask ("copy background") is `keep_from` for all of them: it
reads a trajectory indexed by noise level as in `vljax.diffusion.samplers`, from an inversion or
from `noised_trajectory`. Where to keep is traced, and a mask of zeros keeps nothing.

Classifier-free guidance is cond + w·(cond − uncond) throughout (Ho & Salimans 2022, eq. 6). The
more usual uncond + s·(cond − uncond) is the same with w = s − 1.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vljax.diffusion.noise import step_noise
from vljax.diffusion.process import Denoiser, Process, p_mean_variance, q_sample
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import AfterStep, ddim, ddpm
from vljax.diffusion.schedules import Schedule


def guided(denoiser: Denoiser, scale: Float[Array, "*b"] | float) -> Denoiser:
    """Classifier-free guidance: cond + w·(cond − uncond), both in one call of the network.

    Args:
        denoiser: Sees each batch twice over: the first half it conditions on the texts, the second
            on none.
        scale: w; one number, or one for each example.

    A learned variance, on further channels, is that under the texts.
    """

    def guided_denoiser(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
        both = denoiser(jnp.concatenate([x, x]), jnp.concatenate([t, t])).astype(jnp.float32)
        conditional, unconditional = jnp.split(both, 2)
        weight = jnp.reshape(jnp.asarray(scale, jnp.float32), (-1, 1, 1, 1))
        apart = weight * (conditional - unconditional)
        if (channels := x.shape[-1]) == apart.shape[-1]:
            return conditional + apart
        return conditional.at[..., :channels].add(apart[..., :channels])

    return guided_denoiser


def step_at(schedule: Schedule, t: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """The steps of a schedule at its times `t`, which are what a denoiser is told."""
    return jnp.searchsorted(jnp.asarray(schedule.timesteps), t)


def steps_done(schedule: Schedule, t: Int[Array, " b"]) -> Int[Array, ""]:
    """How many steps of a generation lie behind the time `t`, the same for the whole batch."""
    return len(schedule) - 1 - step_at(schedule, t[0])


def noised_trajectory(
    schedule: Schedule, z0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"]
) -> Float[Array, "n+1 b h w c"]:
    """A picture at every noise level, all with the same noise; entry 0 is the picture.

    Args:
        schedule: Of n steps.
        z0: Clean pictures or latents.
        noise: Standard normal, of their shape.
    """
    signal, spread = (
        jnp.asarray(table)[:, None, None, None, None] for table in (schedule.signal, schedule.noise)
    )
    return jnp.concatenate([z0[None], signal * z0 + spread * noise])


def keep_from(
    trajectory: Float[Array, "n+1 b h w c"],
    keep: Float[Array, "#b h w"],
    copied: Literal["reached", "left"] = "reached",
) -> AfterStep:
    """After each step, where `keep` is 1, take the latent of a trajectory (algorithm 4, line 11).

    Args:
        trajectory: Latents by noise level.
        keep: 1 where the picture stays, 0 where it is edited; at the latents' resolution.
        copied: The level that is copied: the one that the step has reached (the paper), or the
            noisier one that it has left (the published code; the last step copies entry 1).
    """
    where = keep[..., None]
    offset = 1 if copied == "left" else 0

    def after_step(step: Int[Array, ""], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        # A choice and not a blend of two products: what is kept is kept bit for bit.
        return jnp.where(where == 1, trajectory[step + offset], x)

    return after_step


def sdedit(
    process: Process,
    denoiser: Denoiser,
    z0: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"],
    keep: Float[Array, "#b h w"],
    *,
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """SDEdit: noise to the last level of the process, then denoise.

    Args:
        process: Its schedule ends at the strength of the edit: `respace` it to the first
            round(strength · n) of the n timesteps.
        denoiser: Guided by the edit prompt.
        z0: Pictures or latents.
        noise: Standard normal, of the same shape.
        keep: Where the picture, noised by the same noise, is put back after each step; zeros for
            SDEdit as published.
        progress: Where to report steps.
    """
    levels = noised_trajectory(process.schedule, z0, noise)
    after_step = keep_from(levels, keep)
    return ddim(process, denoiser, levels[-1], clip=False, after_step=after_step, progress=progress)


def blended_diffusion(
    process: Process,
    denoiser: Denoiser,
    x0: Float[Array, "b h w c"],
    keep: Float[Array, "#b h w"],
    keys: Key[Array, " b"],
    *,
    score: Callable[[Float[Array, "b h w c"]], Float[Array, " b"]],
    scale: float,
    clip: bool = True,
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """Blended Diffusion: guided ancestral steps inside, the noised picture outside (alg. 2).

    Args:
        process: Its schedule ends where the edit starts, as in `sdedit`.
        denoiser: A model without text.
        x0: Pictures in [-1, 1], or latents.
        keep: 1 where the picture stays.
        keys: One per example.
        score: How well the clean pictures that a step predicts fit their texts, such as CLIP's
            cosines.
        scale: Factor on the score's gradient.
        clip: As in `ddpm`.
        progress: Where to report steps.
    """
    schedule, last = process.schedule, len(process.schedule) - 1
    where = keep[..., None] == 1

    def at_level(step: Int[Array, ""]) -> Float[Array, "b h w c"]:
        """The picture under fresh noise at the level of `step`."""
        noise = step_noise(keys, len(schedule) + step, x0.shape[1:])
        return q_sample(schedule, x0, jnp.full(x0.shape[:1], step), noise)

    def after_step(step: Int[Array, ""], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        reached = jnp.where(step > 0, at_level(jnp.maximum(step - 1, 0)), x0)
        return jnp.where(where, reached, x)

    def guidance(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        def agreement(x: Float[Array, "b h w c"]) -> Float[Array, ""]:
            return score(p_mean_variance(process, denoiser, x, step_at(schedule, t)).x0).sum()

        return scale * jax.grad(agreement)(x)

    start = at_level(jnp.asarray(last))
    return ddpm(
        process,
        denoiser,
        start,
        keys,
        clip=clip,
        guidance=guidance,
        after_step=after_step,
        progress=progress,
    )
