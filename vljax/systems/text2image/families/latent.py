"""Latent diffusion: Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*.

Stages `autoencoder` and `diffusion`; none where a Stable Diffusion is given. After them those of
`vljax.systems.text2image.families.personal`, where the config has them. Of a picture
it begins with that picture under noise (SDEdit, image to image), under a mask it draws there only:
with a network that was trained to, where there is one, else by keeping what is outside.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.latent import autoencoder_loss, draw_latents
from vljax.diffusion.losses import denoising_loss
from vljax.diffusion.process import Process, make_process
from vljax.diffusion.progress import Progress
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.stable_diffusion import StableDiffusion, inpainting_network
from vljax.ops.inside_outside import resize_nearest
from vljax.ops.pixels import to_pixels, to_unit
from vljax.pretrained.concepts import with_concepts
from vljax.systems.text2image.families import personal
from vljax.systems.text2image.families.family import Family, Wish, drawings, make_stage
from vljax.systems.text2image.families.personal import personalised
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`autoencoder`, `diffusion` and what personalises: those that the config has."""
    length = config.model.text_encoder.get("context_length", 77)
    made = {
        "autoencoder": lambda name: make_stage(
            config, name, _autoencoder_loss(config), [(r"sd\.vae\.", 1.0)], length
        ),
        "diffusion": lambda name: make_stage(
            config,
            name,
            _diffusion_loss(config),
            [(r"sd\.unet\.", 1.0)],
            length,
            dropped=config.diffusion.caption_dropout,
            pictures=drawings(FAMILY, config),
        ),
    }
    own = [make(name) for name, make in made.items() if name in config.stages]
    return own + personal.stages(config)


def _autoencoder_loss(config: ConfigDict) -> Any:
    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        images = to_unit(batch["image"])
        return autoencoder_loss(model.sd.vae, images, key, config.autoencoder.kl_weight)

    return loss


def _diffusion_loss(config: ConfigDict) -> Any:
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        z0 = model.sd.encode(to_unit(batch["image"]))
        context = model.sd.embed(batch["tokens"])

        def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return model.sd.unet(z, t, context)

        value, _ = denoising_loss(process, denoiser, z0, jax.random.split(key), timesteps)
        return value, {}

    return loss


class Batch(NamedTuple):
    """A batch of pictures to draw; all of it is traced.

    Attributes:
        tokens: Of the texts.
        without: Of the negative prompt, or of the empty text.
        guidance_scale: w of cond + w·(cond − uncond).
        keys: One a picture.
        image: What it begins with, or None.
        mask: 1 where it draws, or None for everywhere.
    """

    tokens: Int[Array, "b n"]
    without: Int[Array, "1 n"]
    guidance_scale: Float[Array, ""]
    keys: Key[Array, " b"]
    image: UInt8[Array, "1 H W 3"] | None = None
    mask: Float[Array, "1 H W"] | None = None


@functools.partial(jax.jit, static_argnames=("size", "sampler", "from_noise"))
def draw_batch(
    sd: StableDiffusion,
    inpaint: ConditionalUNet | None,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
    *,
    size: tuple[int, int],
    sampler: str,
    from_noise: bool = True,
) -> UInt8[Array, "b H W 3"]:
    """The pictures, one program for all texts, scales, seeds, pictures and masks.

    Args:
        sd: Draws.
        inpaint: Draws under masks, where it is given.
        process: Respaced; of a picture that is changed its first steps only.
        batch: What to draw.
        progress: Where to report steps.
        size: Height and width of the pictures.
        sampler: One of `vljax.diffusion.samplers.SAMPLERS`.
        from_noise: Whether it begins with noise alone although there is a picture.
    """
    rows = len(batch.tokens)
    height, width = size[0] // sd.shrink, size[1] // sd.shrink
    network: Any = sd.unet
    given: dict[str, Any] = {}
    if batch.image is not None:
        images = jnp.broadcast_to(to_unit(batch.image), (rows, *size, 3))
        given = {"start": sd.encode(images), "from_noise": from_noise}
        if batch.mask is not None and inpaint is not None:
            network = inpainting_network(sd, inpaint, images, batch.mask)
        elif batch.mask is not None:
            small = resize_nearest(batch.mask, (height, width), rule="corner")
            given["keep"] = 1.0 - small
    latents = draw_latents(
        network,
        process,
        sd.embed(batch.tokens),
        sd.embed(batch.without),
        batch.guidance_scale,
        batch.keys,
        size=(height, width, sd.vae.decoder.conv_in.weight.shape[2]),
        sampler=sampler,
        progress=progress,
        **given,
    )
    return to_pixels(sd.decode(latents))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b H W 3"]:
    """The pictures of a filled wish.

    Raises:
        UserError: the size does not fit the network, or the sampler is none.
    """
    sd, tokenizer = personalised(model, config)
    side = config.data.image_size
    size = wish.size or (side, side)
    if wish.image is not None:
        size = (wish.image.shape[0], wish.image.shape[1])
    for name, length in zip(("height", "width"), size, strict=True):
        if length < sd.multiple or length % sd.multiple:
            raise UserError(f"--{name}={length}: give a multiple of {sd.multiple}")
    sd, tokenizer = with_concepts(sd, tokenizer, wish.concept)
    process = make_process(
        config,
        wish.steps or "",
        wish.strength if wish.image is not None else 1.0,
        # Of the others in diffusers, too, only DDIM ends at the first noise level.
        clean_end=config.diffusion.clean_end or wish.sampler != "ddim",
    )
    batch = Batch(
        jnp.asarray(tokenizer(wish.texts, sd.tokens)),
        jnp.asarray(tokenizer([wish.negative], sd.tokens)),
        jnp.float32(wish.guidance_scale),
        wish.keys(),
        None if wish.image is None else jnp.asarray(wish.image)[None],
        None if wish.mask is None else jnp.asarray(wish.mask, jnp.float32)[None],
    )
    return draw_batch(
        sd,
        model.inpaint,
        process,
        batch,
        progress,
        size=size,
        sampler=wish.sampler,
        from_noise=wish.mask is not None and wish.strength == 1.0,
    )


FAMILY = Family(
    name="latent",
    heeds=frozenset(
        {
            *("negative", "guidance_scale", "sampler", "steps"),
            *("height", "width", "image", "mask", "strength", "concept"),
        }
    ),
    stages=stages,
    draw=draw,
)
