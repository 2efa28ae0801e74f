"""Pictures at the edges (0 to 255) and inside (floats in [-1, 1]); for JAX's arrays and numpy's."""

from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

A = TypeVar("A", Array, np.ndarray)


def to_unit(pixels: Shaped[A, "*b"]) -> Float[A, "*b"]:
    """Pixels 0…255, of any type, to float32 in [-1, 1]."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_levels(image: Float[A, "*b"]) -> Float[A, "*b"]:
    """[-1, 1] to 0…255, neither rounded nor limited."""
    return (image + 1.0) * 127.5


def to_pixels(image: Float[A, "*b"]) -> UInt8[A, "*b"]:
    """[-1, 1] to the nearest pixels 0…255; what lies outside becomes the nearest end."""
    return to_levels(image).round().clip(0, 255).astype(np.uint8)
