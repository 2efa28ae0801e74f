"""Diffusion of pixels under a text: GLIDE (Nichol et al. 2022) with classifier-free guidance.

Stage `diffusion`; the text Transformer learns with the U-Net.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.editing import guided
from vljax.diffusion.latent import SAMPLERS
from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.losses import denoising_loss
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import Process, make_process
from vljax.diffusion.progress import Progress
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.glide import GLIDE, Told
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.text2image.families.family import Family, Wish, drawings, make_stage
from vljax.systems.text2image.model import make_tokenizer
from vljax.training.stage import Stage

_BITS_STEPS = "50"


def stages(config: ConfigDict) -> list[Stage]:
    """`diffusion`, where the config has it."""
    if "diffusion" not in config.stages:
        return []
    return [
        make_stage(
            config,
            "diffusion",
            _diffusion_loss(config),
            [(r"glide\.", 1.0)],
            config.model.text_encoder.text_length,
            dropped=config.diffusion.caption_dropout,
            pictures=drawings(FAMILY, config),
        )
    ]


def up_to_end(tokens: Int[Array, "b n"]) -> Bool[Array, "b n"]:
    """Which tokens are no padding: those up to the end mark, whose index is the largest."""
    return jnp.arange(tokens.shape[1]) <= tokens.argmax(1)[:, None]


def _diffusion_loss(config: ConfigDict) -> Any:
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        glide: GLIDE = model.glide
        told = glide.tell(batch["tokens"], up_to_end(batch["tokens"]))

        def denoiser(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return glide.denoise(x, t, told)

        images = to_unit(batch["image"])
        value, _ = denoising_loss(process, denoiser, images, jax.random.split(key), timesteps)
        return value, {}

    return loss


@functools.partial(jax.jit, static_argnames=("side", "sampler"))
def draw_batch(
    glide: GLIDE,
    process: Process,
    tokens: Int[Array, "b n"],
    without: Int[Array, "1 n"],
    guidance_scale: Float[Array, ""],
    keys: Key[Array, " b"],
    progress: Progress | None = None,
    *,
    side: int,
    sampler: str,
) -> UInt8[Array, "b h w 3"]:
    """The pictures, one program for all texts, scales and seeds.

    Args:
        glide: Draws.
        process: Respaced.
        tokens: Of the texts.
        without: Of the negative prompt, or of the empty text.
        guidance_scale: w of cond + w·(cond − uncond).
        keys: One a picture.
        progress: Where to report steps.
        side: Of the pictures.
        sampler: Of `SAMPLERS`.
    """
    both = jnp.concatenate([tokens, jnp.broadcast_to(without, tokens.shape)])
    told: Told = glide.tell(both, up_to_end(both))
    denoiser = guided(lambda x, t: glide.denoise(x, t, told), guidance_scale)
    noise = start_noise(keys, (side, side, 3))
    more = {"keys": keys} if sampler == "ddpm" else {}
    return to_pixels(
        SAMPLERS[sampler](process, denoiser, noise, clip=True, progress=progress, **more)
    )


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish.

    Raises:
        UserError: the sampler is none.
    """
    if wish.sampler not in SAMPLERS:
        raise UserError(f"--sampler={wish.sampler}: choose one of {', '.join(SAMPLERS)}")
    tokenizer, length = make_tokenizer(config), model.glide.text_length
    return draw_batch(
        model.glide,
        make_process(config, wish.steps or ""),
        jnp.asarray(tokenizer(wish.texts, length)),
        jnp.asarray(tokenizer([wish.negative], length)),
        jnp.float32(wish.guidance_scale),
        wish.keys(),
        progress,
        side=config.data.image_size,
        sampler=wish.sampler,
    )


@jax.jit
def _bound(
    glide: GLIDE,
    process: Process,
    images: UInt8[Array, "b h w 3"],
    tokens: Int[Array, "b n"],
    keys: Key[Array, " b"],
) -> Float[Array, " b"]:
    told = glide.tell(tokens, up_to_end(tokens))
    found = bits_per_dimension(
        process, lambda x, t: glide.denoise(x, t, told), to_unit(images), keys, clip=True
    )
    return found.total


def bits(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """The variational bound in bits per dimension, of a process of 50 steps (thus a loose one)."""
    keys = jax.random.split(key, len(examples["image"]))
    process = make_process(config, _BITS_STEPS)
    return _bound(model.glide, process, examples["image"], examples["tokens"], keys)


FAMILY = Family(
    name="pixels",
    heeds=frozenset({"negative", "guidance_scale", "sampler", "steps"}),
    stages=stages,
    draw=draw,
    bits=bits,
)
