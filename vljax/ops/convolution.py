"""Two-dimensional convolution that is fast on CPU too where pixels are few and channels many.

There, at the deep end of a large U-Net, XLA's CPU backend spends most of its time on reading the
kernel, and again on its gradients. The convolution is then what it is in the textbook: what each
output sees laid out as columns, times the kernel (im2col; Chellapilla et al., "High Performance
Convolutional Neural Networks for Document Processing", 2006). JAX differentiates it. Everywhere
else XLA's own is as fast or faster.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vljax.ops.projection import project

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
    x: Float[Array, "b h w i"],
    weight: Float[Array, "kh kw i o"],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | Sequence[tuple[int, int]] = 0,
) -> Float[Array, "b p q o"]:
    """Convolve images with a kernel, without bias.

    In the convention of learning (a cross-correlation): out[p, q] = Σᵢⱼ x[s·p + i, s·q + j] W[i, j]
    on the zero-padded x. Every transformation of JAX works, derivatives of any order and both modes
    among them.

    Args:
        x: images, channels last.
        weight: kernel, of the images' dtype.
        stride: step between outputs, one for both axes or (vertical, horizontal).
        padding: zeros around the image: one number for all sides, or
            ((top, bottom), (left, right)).

    Returns:
        The convolved images, of the images' dtype.
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    (top, bottom), (left, right) = padding
    pads = ((top, bottom), (left, right))
    if weight.shape[:2] == strides == (1, 1) and pads == ((0, 0), (0, 0)):
        return project(x, weight[0, 0])

    def by_xla(x: Array, weight: Array) -> Array:
        return lax.conv_general_dilated(
            x, weight, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def by_columns(x: Array, weight: Array) -> Array:
        height, width, _, outputs = weight.shape
        return _columns(x, (height, width), strides, pads) @ weight.reshape(-1, outputs)

    *pixels, outputs = jax.eval_shape(by_xla, x, weight).shape
    # With few pixels the kernel is most of what is read; columns read it once.
    if math.prod(pixels) > outputs:
        return by_xla(x, weight)
    return lax.platform_dependent(x, weight, cpu=by_columns, default=by_xla)


def _columns(
    x: Float[Array, "b h w c"], kernel: tuple[int, int], strides: tuple[int, int], pads: Pads
) -> Float[Array, "b p q n"]:
    """What each output of a convolution sees: its taps side by side, n = kernel size × c."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    high, wide = (
        size - taps + 1 for size, taps in zip(x.shape[1:3], kernel, strict=True)
    )  # places of the kernel's first tap
    return jnp.concatenate(
        [
            x[:, i : i + high : strides[0], j : j + wide : strides[1]]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ],
        axis=-1,
    )
