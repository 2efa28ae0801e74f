"""Latent diffusion: the loss of its first stage, the autoencoder, and how texts are drawn.

The loss of its second stage is `vljax.diffusion.losses.denoising_loss` of latents.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vljax.diffusion.editing import guided, keep_from, noised_trajectory
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import sample
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.control import Network
from vljax.models.stable_diffusion import with_and_without


def autoencoder_loss(
    vae: AutoencoderKL, images: Float[Array, "b h w c"], key: Key[Array, ""], kl_weight: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Squared error and a small divergence from the standard normal.

    Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), section
    3.1 and appendix G, without the perceptual and adversarial terms.

    Args:
        vae: The autoencoder.
        images: Pictures in [-1, 1].
        key: Draws the latents.
        kl_weight: Factor on the divergence, in nats a pixel value.

    Returns:
        The loss; the mean squared error, the divergence, and the spread of the latents.
    """
    latents = vae.encode(images)
    error = jnp.square(vae.decode(latents.sample(key)) - images).mean()
    divergence = latents.divergence().mean() / images[0].size
    metrics = {"mse": error, "divergence": divergence, "latents_std": latents.mean.std()}
    return error + kl_weight * divergence, metrics


def draw_latents(
    network: Network,
    process: Process,
    context: Float[Array, "b n d"],
    without: Float[Array, "#b n d"],
    guidance_scale: Float[Array, ""],
    keys: Key[Array, " b"],
    *,
    size: tuple[int, int, int],
    sampler: str = "ddim",
    start: Float[Array, "b h w c"] | None = None,
    keep: Float[Array, "#b h w"] | None = None,
    from_noise: bool = False,
    progress: Progress | None = None,
) -> Float[Array, "b h w c"]:
    """Latents of texts under classifier-free guidance, from noise or from a picture's latents.

    Args:
        network: Predicts from noisy latents under a context.
        process: Its process, respaced; of a picture that is changed only its first steps
            (`make_process(…, strength)`).
        context: The embedded texts.
        without: What guidance turns away from: the embedded empty text, or a negative prompt.
        guidance_scale: w of cond + w·(cond − uncond).
        keys: One a row, of its noise.
        size: Height, width and channels of the latents.
        sampler: One of `vljax.diffusion.samplers.SAMPLERS`.
        start: Begin with these latents under the noise of the process's last step (SDEdit, known
            as image to image), not with noise alone.
        keep: 1 where `start` stays: after each step its latents, as noisy, are put back there
            (Blended Latent Diffusion, Avrahami et al. 2023).
        from_noise: Begin with noise alone although there is `start`, as where everything under a
            mask is to be new.
        progress: Where to report steps.
    """
    denoiser = guided(with_and_without(network, context, without), guidance_scale)
    x = noise = start_noise(keys, size)
    after_step = None
    if start is not None:
        levels = noised_trajectory(process.schedule, start, noise)
        x = noise if from_noise else levels[-1]
        after_step = None if keep is None else keep_from(levels, keep)
    return sample(
        sampler, process, denoiser, x, keys, clip=False, after_step=after_step, progress=progress
    )
