"""Shape-Guided Diffusion: edit an object of a picture and keep its shape.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 5; Park et
al., "Shape-Guided Diffusion with Inside-Outside Attention" (2024). Algorithm 3, Inside-Outside
Attention, is `vljax.ops.inside_outside`, and in every layer of a network
`vljax.models.control.inside_outside`. Algorithm 4 is here:

    inverted = invert(process, unet, latents, source, shape)                         # line 4
    edited = generate(process, unet, inverted, edit, empty, shape, keep=1 - shape)   # lines 5-12

Both are pure and meant to be called under `jax.jit`; every argument that is an array or a number
is traced. By default they follow the paper. What the published code does otherwise
(shape-guided-diffusion on GitHub) is there under a name: `token_scale` with `published_scale`,
`self_schedule`, `noise_mixing`, `copied="left"` and `evaluate_at="current"`.

Which side of the shape changes is said by `keep`: `1 - shape` edits the object, `shape` its
surroundings (an "outside edit"), zeros both at once ("simultaneous").
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from vljax.diffusion.editing import guided, keep_from, steps_done
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import Latents, ddim, ddim_inversion
from vljax.models.control import Control, Network, Place, inside_outside, plain
from vljax.ops.inside_outside import Schedule as StrengthSchedule
from vljax.ops.inside_outside import resize_nearest, schedule_strength

GUIDANCE_SCALE = 3.5
"""w_g of algorithm 4 (published code)."""

PUBLISHED_SCALE = 2.5
"""The published code's factor on the attention to new tokens."""


def token_split(tokens: int) -> tuple[int, int]:
    """How many tokens describe the inside and the outside: half each of all but the first."""
    return (tokens - 1) // 2, (tokens - 1) // 2


def invert(
    process: Process,
    network: Network,
    z0: Float[Array, "b h w c"],
    source: Float[Array, "b n d"],
    shape: Float[Array, "#b H W"],
    *,
    attention: bool = True,
    token_scale: Float[Array, "#b n"] | float = 1.0,
    evaluate_at: Literal["next", "current"] = "next",
    progress: Progress | None = None,
) -> Float[Array, "n+1 b h w c"]:
    """Inside-Outside Inversion (section 5.3.2): the noise that makes a picture, and the way there.

    Only the conditional model runs, without guidance.

    Args:
        process: The process of the generation.
        network: The network.
        z0: Latents of the picture.
        source: Embedded source prompts of both sides, see `vljax.ops.inside_outside.join_prompts`.
        shape: 1 inside the object, 0 outside; at any resolution of the picture's aspect.
        attention: Whether Inside-Outside Attention acts; False is DDIM inversion.
        token_scale: Factor on the attention to each token; the published code takes 2.5 for all.
        evaluate_at: See `ddim_inversion`; the published code takes "current", with a process whose
            `clean_end` is False.
        progress: Where to report steps.

    Returns:
        The latents by noise level: entry 0 is `z0`, the last one the inverted noise.
    """
    control = _control(shape, source.shape[1], attention, (1.0, 1.0), token_scale)

    def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        return network(z, t, source, control=control)

    return ddim_inversion(
        process, denoiser, z0, evaluate_at=evaluate_at, progress=progress, trajectory=True
    )


def generate(
    process: Process,
    network: Network,
    inverted: Float[Array, "n+1 b h w c"],
    edit: Float[Array, "b n d"],
    empty: Float[Array, "#b n d"],
    shape: Float[Array, "#b H W"],
    keep: Float[Array, "#b H W"],
    *,
    guidance_scale: Float[Array, "*b"] | float = GUIDANCE_SCALE,
    attention: bool = True,
    token_scale: Float[Array, "#b n"] | float = 1.0,
    self_schedule: StrengthSchedule = "constant",
    shape_until: Float[Array, ""] | float = 1.0,
    copied: Literal["reached", "left"] = "reached",
    noise: Float[Array, "b h w c"] | None = None,
    noise_mixing: Float[Array, ""] | float = 0.0,
    progress: Progress | None = None,
    trajectory: bool = False,
) -> Latents:
    """The generation of algorithm 4 (lines 5 to 12).

    Args:
        process: The process of the inversion.
        network: The network.
        inverted: What `invert` returned.
        edit: Embedded edit prompts of both sides.
        empty: The embedded empty prompt.
        shape: As in `invert`.
        keep: 1 where the picture stays ("copy background"), 0 where it is edited.
        guidance_scale: w_g.
        attention: Whether Inside-Outside Attention acts; False is "Ours (w/o IOA)".
        token_scale: Factor on the attention to each token, see `published_scale`.
        self_schedule: How the mask on self-attention fades over the steps (published code).
        shape_until: The share of the steps, from the first on, in which the shape guides: by
            attention, and by what is kept. Afterwards neither does (figure 5.7: 0.5).
        copied: See `keep_from`.
        noise: Standard normal, for `noise_mixing`.
        noise_mixing: Share, by `slerp`, of `noise` in the start inside the shape (published code).
        progress: Where to report steps.
        trajectory: Return all latents, by noise level.

    Returns:
        The edited latents, or all latents.
    """
    z_T = inverted[-1]
    size = (z_T.shape[1], z_T.shape[2])
    if noise is not None:
        inside = resize_nearest(shape, size, rule="centre")[..., None]
        z_T = jnp.where(inside == 1, slerp(z_T, noise, noise_mixing), z_T)
    # The network sees the conditional and the unconditional batch at once.
    twice = jnp.concatenate([jnp.broadcast_to(shape, (len(edit), *shape.shape[1:]))] * 2)
    if jnp.ndim(token_scale) == 2:
        token_scale = jnp.concatenate([jnp.broadcast_to(token_scale, edit.shape[:2])] * 2)

    steps = len(process.schedule)
    copy = keep_from(inverted, resize_nearest(keep, size, rule="centre"), copied)

    def control_at(t: Int[Array, " b"]) -> Control:
        strength = _strengths(steps, steps_done(process.schedule, t), self_schedule, shape_until)
        return _control(twice, edit.shape[1], attention, strength, token_scale)

    def after_step(step: Int[Array, ""], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return jnp.where(_guides(steps, steps - 1 - step, shape_until), copy(step, x), x)

    return ddim(
        process,
        guided(network, edit, empty, guidance_scale, control_at),
        z_T,
        clip=False,
        after_step=after_step,
        progress=progress,
        trajectory=trajectory,
    )


def slerp(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], share: Float[Array, ""] | float
) -> Float[Array, "b h w c"]:
    """On the arc from `a` (share 0) to `b` (share 1), so that mixed noise stays as long as noise.

    Shoemake, "Animating Rotation with Quaternion Curves", 1985; each example by itself.
    """

    def dot(x: Array, y: Array) -> Float[Array, "b 1 1 1"]:
        return (x * y).sum((1, 2, 3), keepdims=True)

    cosine = dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b))
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    return (jnp.sin((1.0 - share) * angle) * a + jnp.sin(share * angle) * b) / jnp.sin(angle)


def published_scale(
    source: tuple[Sequence[int], Sequence[int]],
    edit: tuple[Sequence[int], Sequence[int]],
    scale: float = PUBLISHED_SCALE,
) -> Float[np.ndarray, " n"]:
    """The published code's factors on the attention to each token during generation.

    Tokens of the edit prompt that stand in the source prompt as well keep 1, those that are new,
    and whatever follows the end of a changed prompt, get `scale`. As in the published code the
    last place of each side always counts as new.

    Args:
        source: Tokens of the two source prompts, for inside and outside, each with its start, its
            end and what pads it (the last token).
        edit: Tokens of the two edit prompts.
        scale: The factor on new tokens.
    """
    tokens = len(edit[0])
    split = token_split(tokens)
    factors = np.full(tokens, scale, np.float32)
    for before, after, count, offset in zip(source, edit, split, (0, split[0]), strict=True):
        old, new = list(map(int, before)), list(map(int, after))
        end = new.index(new[-1])
        for kind, _, _, first, last in difflib.SequenceMatcher(None, old, new).get_opcodes():
            if kind == "equal" and first < end:
                shared = np.arange(max(first, 1), min(last, count))
                factors[offset + shared] = 1.0
    return factors


def attention_maps(
    process: Process,
    observed: Callable[..., tuple[Array, dict[str, Any]]],
    latents: Float[Array, "n+1 b h w c"],
    prompt: Float[Array, "b n d"],
    shape: Float[Array, "#b H W"],
    *,
    attention: bool = True,
    token_scale: Float[Array, "#b n"] | float = 1.0,
    self_schedule: StrengthSchedule = "constant",
    shape_until: Float[Array, ""] | float = 1.0,
) -> Float[Array, "b n h w"]:
    """How much each pixel attends to each token, over heads, layers and steps (figure 5.4).

    Args:
        process: The process of the generation.
        observed: `ConditionalUNet.observed`.
        latents: A trajectory by noise level, as `invert` and `generate` give it.
        prompt: Embedded prompts of both sides.
        shape: As in `invert`.
        attention: Whether Inside-Outside Attention acts.
        token_scale: As in `generate`.
        self_schedule: As in `generate`.
        shape_until: As in `generate`.

    Returns:
        The mean maps of the conditional model at the latents' resolution.
    """
    size = latents.shape[2:4]
    tokens = prompt.shape[1]
    places: dict[str, Place] = {}

    def cross(place: Place) -> bool:
        places[place.name] = place
        return place.kind == "cross"

    def add(total: Array, level: tuple[Array, Array]) -> tuple[Array, None]:
        z, t = level
        done = steps_done(process.schedule, t[None])
        strength = _strengths(len(process.schedule), done, self_schedule, shape_until)
        control = _control(shape, tokens, attention, strength, token_scale, record=cross)
        _, records = observed(z, jnp.full(z.shape[:1], t), prompt, control=control)
        maps = []
        for name, weights in records.items():
            here = weights.mean(1).swapaxes(1, 2)
            here = here.reshape(*here.shape[:2], places[name].height, places[name].width)
            maps.append(jax.image.resize(here, (*here.shape[:2], *size), "linear"))
        return total + sum(maps) / len(maps), None

    start = jnp.zeros((latents.shape[1], tokens, *size))
    levels = latents[1:], jnp.asarray(process.schedule.timesteps)
    return lax.scan(add, start, levels)[0] / len(process.schedule)


def _guides(
    steps: int, done: Int[Array, ""], shape_until: Float[Array, ""] | float
) -> Bool[Array, ""]:
    """Whether the shape guides a step that comes after so many of them."""
    return done < jnp.round(shape_until * steps)


def _strengths(
    steps: int,
    done: Int[Array, ""],
    self_schedule: StrengthSchedule,
    shape_until: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How strongly self- and cross-attention are masked after so many steps."""
    guides = _guides(steps, done, shape_until).astype(jnp.float32)
    return guides * schedule_strength(self_schedule, done / steps), guides


def _control(
    shape: Float[Array, "#b H W"],
    tokens: int,
    attention: bool,
    strength: tuple[Float[Array, ""] | float, Float[Array, ""] | float],
    token_scale: Float[Array, "#b n"] | float,
    record: Callable[[Place], bool] | None = None,
) -> Control:
    """Algorithm 3 in every layer; without `attention`, what changes nothing."""
    if not attention and record is None:
        return plain
    return inside_outside(
        shape,
        strength=strength[0] if attention else 0.0,
        split=token_split(tokens) if attention else None,
        tokens=tokens,
        token_scale=token_scale,
        token_strength=strength[1],
        rule="centre",
        record=record or (lambda place: False),
    )
