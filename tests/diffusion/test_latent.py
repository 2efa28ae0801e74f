"""The autoencoder's loss in closed form."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from vljax.diffusion.latent import autoencoder_loss
from vljax.models.autoencoder import Gaussian


def test_the_autoencoder_is_told_its_error_and_divergence():
    """Latents at the mean 1 with variance 1: 1/2 nat each; decoded as 0, the error is x²."""
    images = 0.5 * jnp.ones((2, 4, 4, 3))
    moments = Gaussian(jnp.ones((2, 2, 2, 4)), jnp.zeros((2, 2, 2, 4)))
    vae = SimpleNamespace(encode=lambda x: moments, decode=lambda z: jnp.zeros((2, 4, 4, 3)))
    loss, metrics = autoencoder_loss(vae, images, jax.random.key(0), 0.1)
    divergence = 0.5 * 16 / 48
    np.testing.assert_allclose(metrics["mse"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["divergence"], divergence, rtol=1e-6)
    np.testing.assert_allclose(loss, 0.25 + 0.1 * divergence, rtol=1e-6)
