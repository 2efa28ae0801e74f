"""Two-dimensional convolution that is fast on CPU too, with its gradient.

XLA's CPU backend runs most forward convolutions and the gradient with respect to the input near
the speed of oneDNN, but not two: the weight gradient, which it treats as a convolution with a
kernel the size of the image, and few pixels with many channels, the deep end of a U-Net. Here both
are what they are in the textbook: shifted copies of one side laid out as columns, times the other
side (im2col; Chellapilla et al., "High Performance Convolutional Neural Networks for Document
Processing", 2006); for the gradient a few images at a time, so that the columns stay in the caches.
Other platforms keep XLA's.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vljax.ops.projection import project

# Columns held at once by the weight gradient on CPU.
_COLUMN_BYTES = 8 * 2**20

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
    on the zero-padded x. Reverse-mode derivatives of any order, `vmap`, `scan` and
    `jax.checkpoint` work; forward mode (`jvp`) only for 1×1 kernels with stride 1.

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
    return _convolve(x, weight, strides, pads)


def _xla_convolve(x: Array, weight: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return lax.conv_general_dilated(
        x, weight, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, weight: Array, strides: tuple[int, int], pads: Pads) -> Array:
    by_xla = functools.partial(_xla_convolve, strides=strides, pads=pads)

    def by_columns(x: Array, weight: Array) -> Array:
        return _columns(x, (weight.shape[0], weight.shape[1]), strides, pads) @ weight.reshape(
            -1, weight.shape[-1]
        )

    *pixels, outputs = jax.eval_shape(by_xla, x, weight).shape
    # With few pixels the kernel is most of what is read; columns read it once.
    if math.prod(pixels) > outputs:
        return by_xla(x, weight)
    return lax.platform_dependent(x, weight, cpu=by_columns, default=by_xla)


def _forward(
    x: Array, weight: Array, strides: tuple[int, int], pads: Pads
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, weight, strides, pads), (x, weight)


def _backward(
    strides: tuple[int, int], pads: Pads, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, weight = residuals
    convolve = functools.partial(_xla_convolve, strides=strides, pads=pads)
    to_x = jax.vjp(lambda x: convolve(x, weight), x)[1](gradient)[0]

    def by_xla(x: Array, gradient: Array) -> Array:
        return jax.vjp(lambda weight: convolve(x, weight), weight)[1](gradient)[0]

    def by_columns(x: Array, gradient: Array) -> Array:
        return _weight_gradient(x, gradient, weight.shape, strides, pads).astype(weight.dtype)

    to_weight = lax.platform_dependent(x, gradient, cpu=by_columns, default=by_xla)
    return to_x, to_weight


_convolve.defvjp(_forward, _backward)


def _weight_gradient(
    x: Float[Array, "b h w i"],
    gradient: Float[Array, "b p q o"],
    shape: tuple[int, ...],
    strides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "kh kw i o"]:
    """Gradient with respect to the kernel, float32: columns of the narrower side times the other.

    With stride 1 the shifts may act on either side, Σₚ x[p + i] g[p] = Σᵤ x[u] g[u − i]; then the
    taps come out mirrored.
    """
    height, width, inputs, outputs = shape
    mirrored = strides == (1, 1) and outputs <= inputs
    if mirrored:
        (top, bottom), (left, right) = pads
        pads = (
            (height - 1 - top, height - 1 - bottom),
            (width - 1 - left, width - 1 - right),
        )

    def images(x: Array, gradient: Array) -> Array:
        x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
        moving, still = (gradient, x) if mirrored else (x, gradient)
        columns = _columns(moving, (height, width), strides, pads)
        columns = columns.reshape(-1, columns.shape[-1])
        still = still.reshape(-1, still.shape[-1])
        if mirrored:
            taps = (still.T @ columns).reshape(inputs, height, width, outputs)
            return jnp.flip(taps, axis=(1, 2)).transpose(1, 2, 0, 3)
        return (columns.T @ still).reshape(shape)

    batch = x.shape[0]
    pixels = math.prod((x if mirrored else gradient).shape[1:3])
    column_bytes = 4 * pixels * height * width * (outputs if mirrored else inputs)
    together = max(
        (n for n in range(1, batch + 1) if batch % n == 0 and n * column_bytes <= _COLUMN_BYTES),
        default=1,
    )
    x, gradient = (a.reshape(together, -1, *a.shape[1:]) for a in (x, gradient))

    def accumulate(total: Array, step: Array) -> tuple[Array, None]:
        return total + images(x[:, step], gradient[:, step]), None

    zero = jnp.zeros(shape, jnp.float32)
    return lax.scan(accumulate, zero, jnp.arange(batch // together))[0]


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
