"""Noise schedules and their respacing.

A schedule is a pytree of float32 tables with one entry per diffusion step, computed in float64.
It is traced: a schedule with other values of the same length compiles nothing anew, so the
strength of an edit or the spacing of the steps can change between calls for free.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM), section 4 (linear);
Nichol & Dhariwal, "Improved DDPM", sections 3.2 (cosine) and 4 (respacing); Rombach et al.,
"High-Resolution Image Synthesis with Latent Diffusion Models" (scaled linear); Lin et al.,
"Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2 (spacings).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vljax.errors import UserError

ScheduleName = Literal["linear", "cosine", "scaled_linear"]
Spacing = Literal["leading", "trailing", "linspace"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """The tables of q(x_t | x_0) = N(signal·x_0, noise²) and of its reverse steps.

    Entry i belongs to the step from noise level i to the next cleaner one, level i - 1; the level
    before the first step is clean unless `respace(..., clean_end=False)` says otherwise. Leaves
    are float32 (`timesteps`: int32); NumPy on the host, so that they follow any device or mesh.

    Attributes:
        timesteps: The time of each step in the schedule the denoiser was trained on, ascending.
            This is what denoisers and guidance receive as `t`.
        betas: β, the variance that one forward step adds.
        log_betas: log β; the upper end of a learned variance range.
        log_alphas: log(1 - β). From it any respacing follows without loss of precision.
        signal: √ᾱ, the factor of x_0 in x_t.
        noise: √(1 - ᾱ), the factor of the noise in x_t.
        signal_previous: `signal` one level cleaner.
        noise_previous: `noise` one level cleaner.
        posterior_mean_x0: Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0); DDPM eq. 7.
        posterior_mean_xt: Factor of x_t in that mean.
        posterior_variance: Variance β̃ of q(x_{t-1} | x_t, x_0); 0 at a clean end.
        posterior_log_variance: log β̃, where β̃ = 0 replaced by the next entry, as in Improved DDPM.
        half_log_snr_step: λ_{t-1} - λ_t > 0 with λ = log(signal/noise); infinite at a clean end.
    """

    timesteps: Int[Array | np.ndarray, " n"]
    betas: Float[Array | np.ndarray, " n"]
    log_betas: Float[Array | np.ndarray, " n"]
    log_alphas: Float[Array | np.ndarray, " n"]
    signal: Float[Array | np.ndarray, " n"]
    noise: Float[Array | np.ndarray, " n"]
    signal_previous: Float[Array | np.ndarray, " n"]
    noise_previous: Float[Array | np.ndarray, " n"]
    posterior_mean_x0: Float[Array | np.ndarray, " n"]
    posterior_mean_xt: Float[Array | np.ndarray, " n"]
    posterior_variance: Float[Array | np.ndarray, " n"]
    posterior_log_variance: Float[Array | np.ndarray, " n"]
    half_log_snr_step: Float[Array | np.ndarray, " n"]

    def __len__(self) -> int:
        return self.betas.shape[0]

    @property
    def alphas_cumprod(self) -> Float[Array, " n"]:
        """ᾱ, the share of the variance of x_t that is signal."""
        return jnp.square(self.signal)


def schedule_from_betas(betas: Iterable[float]) -> Schedule:
    """Build a schedule from the forward variances β of its steps, 0 < β < 1.

    Args:
        betas: The variances, first step first.

    Raises:
        UserError: If `betas` is empty or leaves (0, 1).
    """
    betas = np.asarray(list(betas), np.float64)
    if betas.ndim != 1 or not betas.size or not ((betas > 0) & (betas < 1)).all():
        found = f"{betas.min():g} to {betas.max():g}" if betas.size else "none"
        raise UserError(
            f"betas={found}: each must lie strictly between 0 and 1; give more steps or another "
            "schedule"
        )
    return _tables(np.log1p(-betas), np.arange(len(betas)), log_end=0.0)


def linear_schedule(steps: int = 1000) -> Schedule:
    """β from 0.0001 to 0.02 in a straight line, scaled by 1000/steps so that x_T stays noise.

    Args:
        steps: How many.
    """
    scale = 1000 / steps
    return schedule_from_betas(np.linspace(1e-4 * scale, 0.02 * scale, steps))


def cosine_schedule(steps: int = 1000) -> Schedule:
    """ᾱ(u) = cos²((u + 0.008)/1.008 · π/2) over u in [0, 1], β at most 0.999 (Improved DDPM).

    Args:
        steps: How many.
    """
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2
    alphas_cumprod = np.cos(angle) ** 2
    return schedule_from_betas(np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999))


def scaled_linear_schedule(
    steps: int = 1000, start: float = 0.00085, end: float = 0.012
) -> Schedule:
    """√β in a straight line from √start to √end: latent diffusion and Stable Diffusion.

    Args:
        steps: How many.
        start: The first β.
        end: The last β.
    """
    return schedule_from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


def named_schedule(name: ScheduleName, steps: int = 1000) -> Schedule:
    """Build a schedule from its name in a config.

    Args:
        name: `linear`, `cosine` or `scaled_linear`.
        steps: How many.

    Raises:
        UserError: If the name is unknown or the schedule does not exist for so few steps.
    """
    builders = {
        "linear": linear_schedule,
        "cosine": cosine_schedule,
        "scaled_linear": scaled_linear_schedule,
    }
    if name not in builders:
        raise UserError(f"schedule={name!r}: choose one of {', '.join(builders)}")
    if steps < 1:
        raise UserError(f"num_steps={steps}: give at least 1")
    return builders[name](steps)


def respace(schedule: Schedule, timesteps: Iterable[int], *, clean_end: bool = True) -> Schedule:
    """Keep only some steps of a schedule; the marginals q(x_t | x_0) of those kept do not change.

    A subset that ends early starts generation from a partly noised picture (SDEdit, inversion to
    a middle level). Runs on the host: call it outside compiled functions and pass the result in.

    Args:
        schedule: The schedule to thin out.
        timesteps: Original times to keep, any order; each must be a time of `schedule`.
        clean_end: Whether the last step lands on a clean picture (ᾱ = 1). False lands on the
            first noise level of `schedule`, as Stable Diffusion's samplers are configured
            (`set_alpha_to_one=False`).

    Raises:
        UserError: If `timesteps` is empty or names a time that `schedule` does not have.
    """
    original = np.asarray(schedule.timesteps)
    kept = np.unique(np.fromiter(timesteps, np.int64))
    if not kept.size or not np.isin(kept, original).all():
        raise UserError(
            f"timesteps={kept.tolist()[:8]}: keep one or more of the schedule's {len(original)} "
            f"times, which go from {original[0]} to {original[-1]}"
        )
    log_start = 2 * np.log(np.float64(np.asarray(schedule.signal_previous)[0]))
    log_cumprod = log_start + np.cumsum(np.asarray(schedule.log_alphas, np.float64))
    log_end = 0.0 if clean_end else log_cumprod[0]
    log_kept = log_cumprod[np.searchsorted(original, kept)]
    return _tables(np.diff(log_kept, prepend=log_end), kept, log_end)


def section_timesteps(steps: int, counts: Iterable[int]) -> list[int]:
    """Spread `counts[k]` times evenly over the k-th of equal sections of `range(steps)`.

    The first time of each section is kept and, where it has at least two, the last (Improved
    DDPM's respacing). Earlier sections take the remainder of an uneven division.

    Args:
        steps: Of the whole schedule.
        counts: How many are kept of each section.

    Raises:
        UserError: If a section is asked for more times than it has, or for none at all.
    """
    counts = list(counts)
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))
        if not 0 < count <= size:
            raise UserError(
                f"steps={','.join(map(str, counts))}: a section of {size} of the {steps} steps "
                f"cannot give {count}; ask for 1 to {size}"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied: at exact halves only the sum's rounding gives the published sets.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += size
    return kept


def spaced_timesteps(steps: int, count: int, spacing: Spacing, offset: int = 0) -> list[int]:
    """Take `count` of `steps` times as `diffusers` does.

    "leading" counts up from 0 by `steps // count`, "trailing" down from `steps - 1` by
    `steps / count`, "linspace" includes both ends. `offset` is added to "leading" times (Stable
    Diffusion: 1). DPM-Solver++ in `diffusers` takes `count + 1` times and drops the first where
    the spacing is "leading" or "linspace".

    Args:
        steps: Of the whole schedule.
        count: How many are kept.
        spacing: `leading`, `trailing` or `linspace`.
        offset: Is added to leading times.

    Raises:
        UserError: If the spacing is unknown or the times leave `range(steps)`.
    """
    if spacing not in get_args(Spacing):
        raise UserError(f"spacing={spacing!r}: choose one of {', '.join(get_args(Spacing))}")
    if not 0 < count <= steps:
        raise UserError(f"steps={count}: there are {steps}; ask for 1 to {steps}")
    if offset and spacing != "leading":
        raise UserError(f"offset={offset}: only 'leading' spacing has one; leave it out")
    if spacing == "leading":
        times = np.arange(count) * (steps // count) + offset
    elif spacing == "trailing":
        times = np.round(np.arange(steps, 0, -steps / count)[:count])[::-1] - 1
    else:
        times = np.round(np.linspace(0, steps - 1, count))
    kept = [int(t) for t in times]
    if kept[-1] >= steps:
        raise UserError(
            f"offset={offset}: it moves the last of {count} times to {kept[-1]}, past the {steps} "
            "steps; give a smaller one"
        )
    return kept


def parse_timesteps(steps: int, text: str) -> list[int]:
    """Read a config's choice of times out of `range(steps)`.

    Args:
        steps: Length of the schedule.
        text: "100" (evenly, both ends), "10,10,5" (per section), "ddim50" (a whole-number
            stride giving exactly 50), "leading50", "leading50+1", "trailing50", "linspace50".

    Raises:
        UserError: If the text has none of these forms or asks for an impossible count.
    """
    text = text.replace(" ", "")
    if re.fullmatch(r"\d+(,\d+)*", text):
        return section_timesteps(steps, [int(count) for count in text.split(",")])
    form = re.fullmatch(r"(ddim|leading|trailing|linspace)(\d+)(?:\+(\d+))?", text)
    if form is None or (form[1] == "ddim" and form[3]):
        raise UserError(
            f"steps={text!r}: write 100, 10,10,5, ddim50, leading50, leading50+1, trailing50 or "
            "linspace50"
        )
    kind, count, offset = form[1], int(form[2]), int(form[3] or 0)
    if kind != "ddim":
        return spaced_timesteps(steps, count, kind, offset)  # type: ignore[arg-type]
    for stride in range(1, steps):
        times = range(0, steps, stride)
        if len(times) == count:
            return list(times)
    raise UserError(
        f"steps={text!r}: no whole-number stride takes exactly {count} of {steps}; write '{count}' "
        f"or 'trailing{count}'"
    )


def _tables(log_alphas: np.ndarray, timesteps: np.ndarray, log_end: float) -> Schedule:
    """Compute every table in float64 from log(1 - β) and log ᾱ of the level after the last step."""
    log_cumprod = log_end + np.cumsum(log_alphas)
    log_previous = np.concatenate([[log_end], log_cumprod[:-1]])
    # 0 - x rather than -x: a clean end must be +0, or its log ratio below turns into nan.
    betas, noise2, noise2_previous = (
        0 - np.expm1(values) for values in (log_alphas, log_cumprod, log_previous)
    )
    variance = betas * noise2_previous / noise2

    def log_or_next(values: np.ndarray) -> np.ndarray:
        # A zero can only stand at a clean end; a one-step schedule has no next entry but noise².
        first = values[0] or (variance[1] if len(variance) > 1 else noise2[0])
        return np.log(np.concatenate([[first], values[1:]]))

    with np.errstate(divide="ignore"):
        gain = np.log(noise2 / noise2_previous)
    exact = Schedule(
        timesteps=timesteps,
        betas=betas,
        log_betas=log_or_next(betas),
        log_alphas=log_alphas,
        signal=np.exp(log_cumprod / 2),
        noise=np.sqrt(noise2),
        signal_previous=np.exp(log_previous / 2),
        noise_previous=np.sqrt(noise2_previous),
        posterior_mean_x0=betas * np.exp(log_previous / 2) / noise2,
        posterior_mean_xt=noise2_previous * np.exp(log_alphas / 2) / noise2,
        posterior_variance=variance,
        posterior_log_variance=log_or_next(variance),
        half_log_snr_step=(gain - log_alphas) / 2,
    )
    tables = {f.name: np.asarray(getattr(exact, f.name), np.float32) for f in fields(Schedule)}
    return Schedule(**{**tables, "timesteps": timesteps.astype(np.int32)})
