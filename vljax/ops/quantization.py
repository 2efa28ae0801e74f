"""Discrete choices that gradients pass through: nearest codes, and Gumbel's choice of a category.

Bengio et al., *Estimating or Propagating Gradients Through Stochastic Neurons* (2013); van den Oord
et al., *Neural Discrete Representation Learning* (2017), section 3.1; Jang et al., *Categorical
Reparameterization with Gumbel-Softmax* (2017), sections 2.1 and 2.2.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def nearest(z: Float[Array, "*b d"], codebook: Float[Array, "n d"]) -> Int[Array, "*b"]:
    """The index of the code nearest to each vector by Euclid's distance, int32; float32 inside.

    Args:
        z: vectors.
        codebook: the codes.
    """
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    # ‖z − e‖² without ‖z‖², which is the same for all codes. Full float32, also on accelerators:
    # at less, positions near a border between two codes change sides.
    products = jnp.einsum("...d,nd->...n", z, codebook, precision=jax.lax.Precision.HIGHEST)
    distances = (codebook**2).sum(-1) - 2 * products
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def straight_through(chosen: Float[Array, "*b"], soft: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The value of `chosen` with the gradient of `soft`.

    Args:
        chosen: what comes out.
        soft: what the gradient goes to; of the same shape.
    """
    return soft + jax.lax.stop_gradient(chosen - soft)


def gumbel_one_hot(
    logits: Float[Array, "*b n"],
    key: Key[Array, ""],
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*b n"]:
    """A category drawn from softmax(logits) as a one-hot vector, float32.

    Its gradient is that of softmax((logits + noise) / temperature) (the straight-through
    Gumbel-softmax estimator).

    Args:
        logits: Unnormalised log p.
        key: Draws the noise.
        temperature: Of the soft choice; the drawn category does not depend on it.
    """
    noisy = logits.astype(jnp.float32) + jax.random.gumbel(key, logits.shape, jnp.float32)
    soft = jax.nn.softmax(noisy / temperature, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), logits.shape[-1], dtype=jnp.float32)
    return straight_through(hard, soft)
