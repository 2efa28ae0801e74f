"""What joins a picture's features with a question's: poolings without parameters of their own.

Every function broadcasts over leading axes, so that one question [b 1 1 d] meets a map [b h w c].
The learned projections around them are in `vljax.models.fusion`.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Over = Literal["map", "place"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def signed_sqrt(x: Float[Array, "*b"], floor: float = 0.03) -> Float[Array, "*b"]:
    """sign(x) √|x|, with a gradient that is finite at 0.

    The derivative 1 / (2 |y|) is infinite where y = √|x| is 0; the one used here is
    1 / (2 (|y| + floor)), that of the Caffe layer with which MCB and PJ-X were trained.

    Args:
        x: any shape and float dtype.
        floor: added to |y| in the derivative; static.
    """
    return jnp.sign(x) * jnp.sqrt(jnp.abs(x))


def _signed_sqrt_forward(x: Array, floor: float) -> tuple[Array, Array]:
    y = signed_sqrt(x, floor)
    return y, y


def _signed_sqrt_backward(floor: float, y: Array, gradient: Array) -> tuple[Array]:
    return (0.5 * gradient / (jnp.abs(y) + floor),)


signed_sqrt.defvjp(_signed_sqrt_forward, _signed_sqrt_backward)


def l2_normalise(
    x: Float[Array, "b *n c"], over: Over = "place", epsilon: float = 1e-7
) -> Float[Array, "b *n c"]:
    """Divide by √(Σ x² + ε), the sum in float32.

    Args:
        x: examples first, channels last.
        over: what has norm 1: `"map"`, all of an example (Caffe's layer, which sums over every
            axis but the first, so that a place of 14×14 has a norm near 1/14), or `"place"`, the
            channels of each place.
        epsilon: inside the root, so that the gradient is finite at 0.
    """
    axes = tuple(range(1, x.ndim)) if over == "map" else -1
    h = x.astype(jnp.float32)
    scale = jax.lax.rsqrt((h * h).sum(axes, keepdims=True) + epsilon)
    return (h * scale).astype(x.dtype)


def signed_unit(x: Float[Array, "b *n c"], over: Over = "place") -> Float[Array, "b *n c"]:
    """The signed root, then norm 1: what follows a bilinear pooling (MCB, sec. 3.1).

    Args:
        x: examples first, channels last.
        over: what has norm 1, see `l2_normalise`.
    """
    return l2_normalise(signed_sqrt(x), over)


def sketch_hashes(
    seed: int, features: int, size: int
) -> tuple[Int[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """The two hashes of a count sketch: a target in 0 … size-1 and a sign ±1 for every feature.

    They are constants of a network, not parameters: the same seed gives the same hashes with every
    version of numpy, so weights trained with them keep their meaning.

    Args:
        seed: of both hashes.
        features: how many are hashed.
        size: of the sketch.
    """
    raw = np.random.PCG64(seed).random_raw(2 * features)
    targets = (raw[:features] % np.uint64(size)).astype(np.int32)
    signs = np.where(raw[features:] >> np.uint64(63), 1.0, -1.0).astype(np.float32)
    return targets, signs


def count_sketch(
    x: Float[Array, "*b c"],
    targets: Int[np.ndarray, " c"],
    signs: Float[np.ndarray, " c"],
    size: int,
) -> Float[Array, "*b size"]:
    """Ψ(x)ⱼ = Σ of sᵢ xᵢ over the i with hᵢ = j (Charikar et al. 2002), float32.

    Args:
        x: features.
        targets: hᵢ in 0 … size-1, see `sketch_hashes`.
        signs: sᵢ, ±1.
        size: of the sketch; static.
    """
    signed = x.astype(jnp.float32) * signs
    return jnp.zeros((*x.shape[:-1], size)).at[..., targets].add(signed)


def compact_bilinear(
    x: Float[Array, "*#b c"],
    y: Float[Array, "*#b d"],
    x_hashes: tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]],
    y_hashes: tuple[Int[np.ndarray, " d"], Float[np.ndarray, " d"]],
    size: int,
) -> Float[Array, "*b size"]:
    """The sketch of the outer product of x and y, without the product: FFT⁻¹(FFT Ψx ∘ FFT Ψy).

    Fukui et al., "Multimodal Compact Bilinear Pooling" (2016), algorithm 1, after Pham & Pagh
    (2013): the sketch of x ⊗ y under hashes h(i) + h'(j) mod size and s(i) s'(j) is the circular
    convolution of the two sketches. Its inner products estimate ⟨x, x'⟩⟨y, y'⟩ without bias.

    Args:
        x: features; leading axes broadcast against y's.
        y: features.
        x_hashes: what `sketch_hashes` made for x.
        y_hashes: and, from another seed, for y.
        size: of the sketches and the result, 16,000 as published.
    """
    spectra = [
        jnp.fft.rfft(count_sketch(v, *hashes, size)) for v, hashes in ((x, x_hashes), (y, y_hashes))
    ]
    return jnp.fft.irfft(spectra[0] * spectra[1], n=size)


def factorised(
    x: Float[Array, "*#b k"], y: Float[Array, "*#b k"], factors: int
) -> Float[Array, "*b o"]:
    """Sum x ∘ y over every `factors` neighbours: a bilinear form of that rank for each output.

    Yu et al., "Multi-modal Factorized Bilinear Pooling" (2017), equation 3, of features already
    projected to o · factors; one factor leaves MLB's product (Kim et al. 2017, equation 6).

    Args:
        x: features.
        y: features; leading axes broadcast against x's.
        factors: how many neighbours are summed; divides k; static.
    """
    z = x * y
    return z.reshape(*z.shape[:-1], -1, factors).sum(-1)


def tucker(
    x: Float[Array, "*#b a"],
    y: Float[Array, "*#b c"],
    left: Float[Array, "r a o"],
    right: Float[Array, "r c o"],
) -> Float[Array, "*b o"]:
    """zₒ = xᵀ Tₒ y with every slice of the core tensor T of rank r: Σᵣ (x Lᵣ) ∘ (y Rᵣ).

    Ben-younes et al., "MUTAN" (2017), equation 7. With r = min(a, c) any core can be written so.

    Args:
        x: features.
        y: features; leading axes broadcast against x's.
        left: of each rank, what x is projected by.
        right: and what y is.
    """
    x_ranks = jnp.einsum("...a,rao->...ro", x, left)
    y_ranks = jnp.einsum("...c,rco->...ro", y, right)
    return (x_ranks * y_ranks).sum(-2)


def block_tucker(
    x: Float[Array, "*#b g a"],
    y: Float[Array, "*#b g c"],
    left: Float[Array, "g r a o"],
    right: Float[Array, "g r c o"],
) -> Float[Array, "*b g o"]:
    """`tucker` of each block of features with a core of its own (Ben-younes et al. 2019, eq. 8).

    The core of the whole is block-diagonal; with one block it is MUTAN's.

    Args:
        x: features in blocks.
        y: features in as many blocks; leading axes broadcast against x's.
        left: of each block and rank, what x is projected by.
        right: and what y is.
    """
    pooled = jax.vmap(tucker, in_axes=(-2, -2, 0, 0), out_axes=-2)
    return pooled(x, y, left, right)
