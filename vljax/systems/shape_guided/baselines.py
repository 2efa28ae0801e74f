"""The methods that table 5.2 compares with, each one compiled program over a `Batch`.

Section 5.5, "Baselines": Blended Diffusion (Avrahami et al. 2022), Stable Diffusion's inpainting
(Rombach et al. 2022), SDEdit (Meng et al. 2022) and Prompt-to-Prompt (Hertz et al. 2022), all on
the same Stable Diffusion. Where `Batch.keep` is 1 the picture is copied back after each step
("+ Shape"); zeros leave the structure preserving ones as published.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vljax.diffusion.editing import (
    blended_diffusion,
    guided,
    keep_from,
    noised_trajectory,
    sdedit,
)
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import ddim
from vljax.models.clip import CLIP
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.stable_diffusion import StableDiffusion, inpainting_network, with_and_without
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine
from vljax.systems.shape_guided import prompt_to_prompt
from vljax.systems.shape_guided.batch import Batch, at_latents, embed

SDEDIT_STRENGTH = 0.8
"""SDEdit's share of the steps (Stable Diffusion's img2img), also Blended Diffusion's here."""

BLENDED_GUIDANCE = 300.0
"""Blended Diffusion's factor on the gradient of CLIP's cosine."""


@jax.jit
def edit_by_prompt_to_prompt(
    sd: StableDiffusion,
    process: Process,
    batch: Batch,
    inverted: Float[Array, "n+1 b h w c"],
    progress: Progress | None = None,
) -> UInt8[Array, "b H W 3"]:
    """Prompt-to-Prompt from the inverted noise."""
    empty = sd.embed(batch.empty)
    latents = prompt_to_prompt.prompt_to_prompt(
        process,
        sd.unet,
        inverted,
        embed(sd, batch.source, empty),
        embed(sd, batch.edit, empty),
        empty,
        batch.mapping,
        at_latents(batch.keep, inverted[0]),
        guidance_scale=batch.guidance_scale,
        progress=progress,
    )
    return to_pixels(sd.decode(latents))


@jax.jit
def edit_by_sdedit(
    sd: StableDiffusion, process: Process, batch: Batch, progress: Progress | None = None
) -> UInt8[Array, "b H W 3"]:
    """SDEdit; the process ends at its strength."""
    empty = sd.embed(batch.empty)
    network = with_and_without(sd.unet, embed(sd, batch.edit, empty), empty)
    z0 = sd.encode(to_unit(batch.image))
    latents = sdedit(
        process,
        guided(network, batch.guidance_scale),
        z0,
        batch.noise(z0),
        at_latents(batch.keep, z0),
        progress=progress,
    )
    return to_pixels(sd.decode(latents))


@jax.jit
def edit_by_inpainting(
    sd: StableDiffusion,
    unet: ConditionalUNet,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
) -> UInt8[Array, "b H W 3"]:
    """Stable Diffusion's inpainting from noise, by the U-Net that sees mask and surroundings."""
    empty = sd.embed(batch.empty)
    images = to_unit(batch.image)
    network = with_and_without(
        inpainting_network(sd, unet, images, batch.shape), embed(sd, batch.edit, empty), empty
    )
    z0 = sd.encode(images)
    noise = batch.noise(z0)
    levels = noised_trajectory(process.schedule, z0, noise)
    latents = ddim(
        process,
        guided(network, batch.guidance_scale),
        noise,
        clip=False,
        after_step=keep_from(levels, at_latents(batch.keep, z0)),
        progress=progress,
    )
    return to_pixels(sd.decode(latents))


@jax.jit
def edit_by_blended_diffusion(
    sd: StableDiffusion,
    clip: CLIP,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
) -> UInt8[Array, "b H W 3"]:
    """Blended Diffusion in latents: the U-Net without text, guided by CLIP's view of its guess."""
    empty = sd.embed(batch.empty)
    z0 = sd.encode(to_unit(batch.image))
    nothing = jnp.broadcast_to(empty, (len(z0), *empty.shape[1:]))
    wanted = clip.encode_text(batch.edit[:, 0])

    def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        return sd.unet(z, t, nothing)

    def score(guess: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        # CLIP looks at the object alone.
        seen = jnp.where(batch.keep[..., None] == 1, 0.0, sd.decode(guess))
        return cosine(clip.encode_image(seen), wanted)

    latents = blended_diffusion(
        process,
        denoiser,
        z0,
        at_latents(batch.keep, z0),
        jax.vmap(jax.random.key)(batch.seeds),
        score=score,
        scale=BLENDED_GUIDANCE,
        clip=False,
        progress=progress,
    )
    return to_pixels(sd.decode(latents))
