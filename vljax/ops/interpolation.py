"""Resampling as PyTorch's `interpolate` does it, without antialiasing, on the last two axes.

Where a published model was run behind it, its results depend on which pixels are read: shrinking
to a sixteenth, "bilinear" sees the four middle pixels of each cell and no other. (The antialiased
filters are Pillow's and `jax.image.resize`'s.) The weights are sizes only, made in numpy; the
picture may be numpy's or JAX's.
"""

import functools
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Array, Float

A = TypeVar("A", Array, np.ndarray)

# The cubic's free parameter: PyTorch's (Pillow and JAX take -0.5).
_CUBIC = -0.75


def interpolate(
    x: Float[A, "*b h w"], size: tuple[int, int], method: Literal["linear", "cubic"] = "linear"
) -> Float[A, "*b H W"]:
    """Pictures at another size, as `interpolate(x, size, mode)` with corners not aligned.

    Args:
        x: Pictures, one channel each.
        size: Rows and columns wanted.
        method: Two or four taps along each axis; borders repeat.
    """
    rows, columns = (_weights(n, m, method) for n, m in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int, method: str) -> Float[np.ndarray, "after before"]:
    places = (np.arange(after) + 0.5) * (before / after) - 0.5
    if method == "linear":
        places = np.maximum(places, 0.0)
    first = np.floor(places).astype(int)
    taps = range(2) if method == "linear" else range(-1, 3)
    weights = np.zeros((after, before))
    for tap in taps:
        distance = np.abs(places - (first + tap))
        share = 1 - distance if method == "linear" else _cubic(distance)
        np.add.at(weights, (np.arange(after), (first + tap).clip(0, before - 1)), share)
    return weights.astype(np.float32)


def _cubic(distance: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Keys's convolution kernel at distances from 0 to 2."""
    a, d = _CUBIC, distance
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, far)
