"""Pictures at the edges (0 to 255) and inside (floats in [-1, 1]); for JAX's arrays and numpy's."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

A = TypeVar("A", Array, np.ndarray)

# ImageNet's red, green and blue in [0, 1]: what networks trained on it subtract and divide by.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_unit(pixels: Shaped[A, "*b"]) -> Float[A, "*b"]:
    """Pixels 0…255, of any type, to float32 in [-1, 1].

    Args:
        pixels: any shape, numpy or JAX.
    """
    return pixels.astype(np.float32) / 127.5 - 1.0


def standardise(
    image: Float[Array, "*b 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b 3"]:
    """[-1, 1] to zero mean and unit variance, of red, green and blue whose statistics are given.

    Args:
        image: Pictures.
        mean: Of each colour in [0, 1].
        std: Its standard deviation.
    """
    return (image * 0.5 + (0.5 - jnp.asarray(mean))) / jnp.asarray(std)


def to_levels(image: Float[A, "*b"]) -> Float[A, "*b"]:
    """[-1, 1] to 0…255, neither rounded nor limited.

    Args:
        image: any shape, numpy or JAX.
    """
    return (image + 1.0) * 127.5


def to_pixels(image: Float[A, "*b"]) -> UInt8[A, "*b"]:
    """[-1, 1] to the nearest pixels 0…255; what lies outside becomes the nearest end.

    Args:
        image: any shape, numpy or JAX.
    """
    return to_levels(image).round().clip(0, 255).astype(np.uint8)
