"""Vectors by their directions: unit length, cosines, and the contrast of a batch of pairs.

Lengths and products are float32. A vector shorter than `SHORTEST`, such as zero, has no direction:
it stays that short, its cosines are 0, and its gradients are finite.

Sources: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*
(2021), section 2.3, figure 3, and section 2.5 (the limit of the factor).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Vectors of less than this length count as zero.
SHORTEST = 1e-12
#: CLIP's factor on cosines never exceeds it.
LARGEST_SCALE = 100.0


def normalise(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors at unit length, float32."""
    x = x.astype(jnp.float32)
    return x / _length(x)[..., None]


def cosine(a: Float[Array, "*b d"], b: Float[Array, "*c d"]) -> Float[Array, "*bc"]:
    """Cosines of the angles between vectors, float32; leading axes broadcast."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return (a * b).sum(-1) / (_length(a) * _length(b))


def _length(x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Euclidean length, or that of another vector where its gradient would be 0 / 0."""
    short = jnp.sum(x * x, -1, keepdims=True) < SHORTEST**2
    return jnp.linalg.norm(jnp.where(short, 1.0, x), axis=-1)


def clip_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """CLIP's factor on cosines (the inverse temperature) from its learned logarithm: 100 at most.

    At the limit it has no gradient, as in the original, which limits the parameter.
    """
    return jnp.minimum(jnp.exp(logit_scale), LARGEST_SCALE)


def contrastive_loss(
    a: Float[Array, "b d"],
    b: Float[Array, "b d"],
    scale: float | Float[Array, ""],
    *,
    directions: Literal["mean", "sum"] = "mean",
) -> Float[Array, ""]:
    """How badly each embedding finds its partner in the batch, in both directions.

    The cross-entropies of the scaled cosines by rows and by columns, each the mean over the batch.
    The batch is the whole one over all devices: on a sharded array the compiler gathers the
    partners.

    Args:
        a: Embeddings, of any length.
        b: Their partners'.
        scale: Factor on the cosines, the inverse temperature; CLIP's is `clip_scale`.
        directions: What becomes of the two: their mean (CLIP) or their sum (the published
            noise-aware CLIP).
    """
    logits = scale * normalise(a) @ normalise(b).T
    own = jnp.diagonal(logits)
    both = sum((jax.nn.logsumexp(logits, axis) - own).mean() for axis in (0, 1))
    return both / 2 if directions == "mean" else both
