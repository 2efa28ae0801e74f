"""The method: Shape-Guided Diffusion (section 5.3).

Park, *Vision and Language Understanding Through Generative Modeling* (2023), chapter 5; Park et
al., "Shape-Guided Diffusion with Inside-Outside Attention" (2024).

| thesis                                                  | here                       |
|---------------------------------------------------------|----------------------------|
| 5.3.1, algorithm 3: Inside-Outside Attention            | `inside_outside_attention` |
| 5.3.2, algorithm 4, line 4: Inside-Outside Inversion    | `invert`                   |
| 5.3.3, algorithm 4, lines 5 to 13                       | `generate`                 |
| algorithm 4, lines 1 to 3: InferShape                   | `use.infer_shape`          |
| figure 5.4, cross-attention maps                        | `attention_maps`           |
| figure 5.7, the shape in the first steps only           | `Batch.shape_until`        |
| table 5.2, "Ours (w/o IOA)"                             | `plain_attention`          |

Which side of the shape changes is said by `Batch.keep`: what is outside of the shape edits the
object, what is inside its surroundings, nothing both at once (section 5.5.2).

By default all follows the paper. What the published code does otherwise
(shape-guided-diffusion on GitHub) is there under a name: `Batch.edit_scale`, `Batch.noise_mixing`,
`self_schedule`, `copied="left"` and `evaluate_at="current"`.

`invert`, `generate` and `attention_maps` are one compiled program each; of their arguments only
those after the star, and the number of steps, make another.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from vljax.diffusion.editing import guided, keep_from, steps_done
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import ddim, ddim_inversion
from vljax.models.control import Control, Place, inside_outside, plain
from vljax.models.stable_diffusion import StableDiffusion, with_and_without
from vljax.ops.inside_outside import StrengthSchedule, schedule_strength
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.shape_guided.batch import Batch, at_latents, embed, token_split

# 5.3.1 Inside-Outside Attention ----------------------------------------------------------------


class Strength(NamedTuple):
    """How strongly attention is masked: 1 is algorithm 3, 0 plain attention."""

    pixels: Float[Array, ""] | float = 1.0
    tokens: Float[Array, ""] | float = 1.0


Record = Callable[[Place], bool]
"""Says at which places of the network attention maps are handed out."""

Attention = Callable[..., Control]
"""Who does the attention: `(shape, token_scale, strength, record=None) -> Control`."""


def inside_outside_attention(
    shape: Float[Array, "b H W"],
    token_scale: Float[Array, "b n"],
    strength: Strength,
    record: Record | None = None,
) -> Control:
    """Algorithm 3 in every layer: pixels and tokens act on their own side of the shape.

    Half of the tokens describe the inside, half the outside; the first acts nowhere (section 5.5).

    Args:
        shape: 1 inside the object, 0 outside; at any resolution of the picture's aspect.
        token_scale: Factor on the attention to each token (published code; 1 in the paper).
        strength: Of the masks.
        record: Where to hand out the masked maps.
    """
    tokens = token_scale.shape[-1]
    return inside_outside(
        shape,
        strength=strength.pixels,
        split=token_split(tokens),
        tokens=tokens,
        token_scale=token_scale,
        token_strength=strength.tokens,
        rule="centre",
        record=record or (lambda place: False),
    )


def plain_attention(
    shape: Float[Array, "b H W"],
    token_scale: Float[Array, "b n"],
    strength: Strength,
    record: Record | None = None,
) -> Control:
    """The network's own attention: "Ours (w/o IOA)" of table 5.2. Arguments as above."""
    if record is None:
        return plain
    return inside_outside(shape, strength=0.0, split=None, rule="centre", record=record)


# 5.3.2 Inside-Outside Inversion ----------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("attention", "evaluate_at"))
def invert(
    sd: StableDiffusion,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
    *,
    attention: Attention = inside_outside_attention,
    evaluate_at: Literal["next", "current"] = "next",
) -> Float[Array, "n+1 b h w c"]:
    """Algorithm 4, line 4: the noise that makes the pictures, and the way there.

    Only the conditional model runs, under the source prompt and without guidance.

    Args:
        sd: The networks.
        process: The process of the generation; for "current", one whose `clean_end` is False.
        batch: What is to be edited; how does not matter here.
        progress: Where to report steps.
        attention: Who does the attention.
        evaluate_at: See `ddim_inversion`; the published code takes "current".

    Returns:
        The latents z̄ by noise level: entry 0 is the picture, the last one the inverted noise.
    """
    source = embed(sd, batch.source, sd.embed(batch.empty))
    control = attention(batch.shape, batch.source_scale, Strength())

    def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        return sd.unet(z, t, source, control=control)

    return ddim_inversion(
        process,
        denoiser,
        sd.encode(to_unit(batch.image)),
        evaluate_at=evaluate_at,
        progress=progress,
        trajectory=True,
    )


# 5.3.3 Method Summary --------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("attention", "self_schedule", "copied"))
def generate(
    sd: StableDiffusion,
    process: Process,
    batch: Batch,
    inverted: Float[Array, "n+1 b h w c"],
    progress: Progress | None = None,
    *,
    attention: Attention = inside_outside_attention,
    self_schedule: StrengthSchedule = "constant",
    copied: Literal["reached", "left"] = "reached",
) -> tuple[UInt8[Array, "b H W 3"], Float[Array, "n+1 b h w c"]]:
    """Algorithm 4, lines 5 to 13: the edited pictures, and their latents by noise level.

    Args:
        sd: The networks.
        process: The process of the inversion, but always with a clean end: `invert` at "current"
            takes one without.
        batch: What to edit, and how.
        inverted: What `invert` returned.
        progress: Where to report steps.
        attention: Who does the attention, of the conditional and the unconditional model.
        self_schedule: How the mask on self-attention fades over the steps (published code).
        copied: See `keep_from`.
    """
    empty = sd.embed(batch.empty)
    edit = embed(sd, batch.edit, empty)
    # The network sees the conditional and the unconditional batch at once.
    shape, token_scale = (jnp.concatenate([x, x]) for x in (batch.shape, batch.edit_scale))
    steps = len(process.schedule)
    copy = keep_from(inverted, at_latents(batch.keep, inverted[0]), copied)

    def control_at(t: Int[Array, " 2*b"]) -> Control:  # line 7
        done = steps_done(process.schedule, t)
        strength = _strength(steps, done, self_schedule, batch.shape_until)
        return attention(shape, token_scale, strength)

    def after_step(step: Int[Array, ""], z: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        guides = _guides(steps, steps - 1 - step, batch.shape_until)
        return jnp.where(guides, copy(step, z), z)  # line 11

    latents = ddim(
        process,
        # Lines 8 to 10.
        guided(with_and_without(sd.unet, edit, empty, control_at), batch.guidance_scale),
        _start(batch, inverted[-1]),
        clip=False,
        after_step=after_step,
        progress=progress,
        trajectory=True,
    )
    return to_pixels(sd.decode(latents[0])), latents  # line 13


def _start(batch: Batch, z_T: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Line 5; in the published code a share of fresh noise is mixed in inside the shape."""
    inside = at_latents(batch.shape, z_T)[..., None] == 1
    return jnp.where(inside, slerp(z_T, batch.noise(z_T), batch.noise_mixing), z_T)


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


def _guides(steps: int, done: Int[Array, ""], shape_until: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the shape guides a step that comes after so many of them (figure 5.7)."""
    return done < jnp.round(shape_until * steps)


def _strength(
    steps: int,
    done: Int[Array, ""],
    self_schedule: StrengthSchedule,
    shape_until: Float[Array, ""],
) -> Strength:
    """How strongly attention is masked after so many steps."""
    guides = _guides(steps, done, shape_until).astype(jnp.float32)
    return Strength(guides * schedule_strength(self_schedule, done / steps), guides)


# Figure 5.4 ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("attention", "self_schedule"))
def attention_maps(
    sd: StableDiffusion,
    process: Process,
    batch: Batch,
    latents: Float[Array, "n+1 b h w c"],
    *,
    attention: Attention = inside_outside_attention,
    self_schedule: StrengthSchedule = "constant",
) -> Float[Array, "b n h w"]:
    """How much each pixel attends to each token of the edit prompts.

    Args:
        sd: The networks.
        process: The process of the generation.
        batch: What was edited.
        latents: A trajectory by noise level, as `generate` gives it.
        attention: Who does the attention.
        self_schedule: As in `generate`.

    Returns:
        The conditional model's maps at the latents' resolution, the mean over heads, layers and
        steps.
    """
    prompt = embed(sd, batch.edit, sd.embed(batch.empty))
    steps, size = len(process.schedule), latents.shape[2:4]
    places: dict[str, Place] = {}

    def cross(place: Place) -> bool:
        places[place.name] = place
        return place.kind == "cross"

    def add(total: Array, level: tuple[Array, Array]) -> tuple[Array, None]:
        z, t = level
        done = steps_done(process.schedule, t[None])
        strength = _strength(steps, done, self_schedule, batch.shape_until)
        control = attention(batch.shape, batch.edit_scale, strength, cross)
        records: dict[str, Any]
        _, records = sd.unet.observed(z, jnp.full(z.shape[:1], t), prompt, control=control)
        maps = []
        for name, weights in records.items():
            here = weights.mean(1).swapaxes(1, 2)
            here = here.reshape(*here.shape[:2], places[name].height, places[name].width)
            maps.append(jax.image.resize(here, (*here.shape[:2], *size), "linear"))
        return total + sum(maps) / len(maps), None

    start = jnp.zeros((latents.shape[1], prompt.shape[1], *size))
    levels = latents[1:], jnp.asarray(process.schedule.timesteps)
    return lax.scan(add, start, levels)[0] / steps
