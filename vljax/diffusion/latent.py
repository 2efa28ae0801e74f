"""The loss of latent diffusion's first stage, the autoencoder.

The second stage is `vljax.diffusion.losses.denoising_loss` of latents.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vljax.models.autoencoder import AutoencoderKL


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
