"""Pictures at the edges (uint8) and inside (floats in [-1, 1])."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_unit(image: UInt8[Array, "*b"]) -> Float[Array, "*b"]:
    """Pixels 0…255 to [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(image: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to pixels 0…255."""
    return jnp.clip(jnp.round((image + 1.0) * 127.5), 0, 255).astype(jnp.uint8)
