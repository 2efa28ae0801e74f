"""Stable Diffusion's inpainting network: what it sees."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.models.stable_diffusion import inpainting_network


def test_an_inpainting_network_sees_mask_and_surroundings():
    """The mask at the latents' size is torch's `nearest`, as when it was trained."""
    torch = pytest.importorskip("torch")
    images, x = (jax.random.normal(jax.random.key(i), (2, 18, 18, 3)) for i in range(2))
    x = x[:, :6, :6].repeat(2, axis=0)
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (2, 18, 18)).astype(jnp.float32)
    # Latents that are pixels: the last of each cell of three.
    sd = SimpleNamespace(encode=lambda images: images[:, 2::3, 2::3])
    seen = []

    def unet(x, t, context, /, *, control):
        seen.append(x)
        return x[..., :3]

    inpainting_network(sd, unet, images, mask)(x, jnp.zeros(4), jnp.zeros((4, 5, 3)))
    latents, where, masked = np.split(seen[0], (3, 4), axis=-1)
    np.testing.assert_array_equal(latents, x)
    small = torch.nn.functional.interpolate(torch.from_numpy(np.array(mask))[:, None], (6, 6))
    # Once for the conditional batch, once for the unconditional one.
    np.testing.assert_array_equal(where, np.tile(small.permute(0, 2, 3, 1), (2, 1, 1, 1)))
    grey = jnp.where(mask[..., None] == 1, 0.0, images)[:, 2::3, 2::3]
    np.testing.assert_array_equal(masked, np.tile(grey, (2, 1, 1, 1)))
