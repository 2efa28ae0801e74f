"""Vectors by their directions: unit length, cosines, and the contrast of a batch of pairs.

Lengths and products are float32. A vector shorter than `SHORTEST`, such as zero, has no direction:
it stays that short, its cosines are 0, and its gradients are finite.

Sources: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*
(2021), section 2.3, figure 3, and section 2.5 (the limit of the factor); Yao et al., *FILIP:
Fine-grained Interactive Language-Image Pre-Training* (2022), section 3.1 (late interaction).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

#: Vectors of less than this length count as zero.
SHORTEST = 1e-12
#: CLIP's factor on cosines never exceeds it.
LARGEST_SCALE = 100.0


def normalise(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors at unit length, float32.

    Args:
        x: vectors of any length but 0.
    """
    x = x.astype(jnp.float32)
    return x / _length(x)[..., None]


def cosine(a: Float[Array, "*b d"], b: Float[Array, "*c d"]) -> Float[Array, "*bc"]:
    """Cosines of the angles between vectors, float32; leading axes broadcast.

    Args:
        a: vectors of any length but 0.
        b: vectors as wide; their axes but the last broadcast against a's.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return (a * b).sum(-1) / (_length(a) * _length(b))


def _length(x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Euclidean length, or that of another vector where its gradient would be 0 / 0."""
    short = jnp.sum(x * x, -1, keepdims=True) < SHORTEST**2
    return jnp.linalg.norm(jnp.where(short, 1.0, x), axis=-1)


def clip_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """CLIP's factor on cosines (the inverse temperature) from its learned logarithm: 100 at most.

    At the limit it has no gradient, as in the original, which limits the parameter.

    Args:
        logit_scale: the learned logarithm.
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


def late_interaction(
    a: Float[Array, "b n d"],
    b: Float[Array, "c m d"],
    a_counts: Bool[Array, "b n"] | None = None,
    b_counts: Bool[Array, "c m"] | None = None,
) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """How well sequences of tokens fit each other, token by token (FILIP, equations 3 to 5).

    Every token takes its greatest cosine with a token of the other side; the mean over the tokens
    of one side is that side's similarity, so there are two.

    Args:
        a: Tokens of one side, of any length.
        b: Tokens of the other.
        a_counts: Which tokens there are; all, if left out. Each row has one at least.
        b_counts: Likewise.

    Returns:
        Seen from `a` and seen from `b`, both by rows of `a` and columns of `b`.
    """
    cosines = jnp.einsum("bnd,cmd->bcnm", normalise(a), normalise(b))
    # Less than any cosine, yet finite: a row without a token gives no NaN.
    least = -2.0
    if a_counts is None:
        a_counts = jnp.ones(a.shape[:2], bool)
    if b_counts is None:
        b_counts = jnp.ones(b.shape[:2], bool)

    def mean(best: Float[Array, "b c k"], counts: Float[Array, "#b #c k"]) -> Float[Array, "b c"]:
        return (best * counts).sum(-1) / jnp.maximum(counts.sum(-1), 1)

    from_a = jnp.where(b_counts[None, :, None], cosines, least).max(3)
    from_b = jnp.where(a_counts[:, None, :, None], cosines, least).max(2)
    return mean(from_a, a_counts[:, None]), mean(from_b, b_counts[None])


def late_interaction_loss(
    a: Float[Array, "b n d"],
    b: Float[Array, "b m d"],
    scale: float | Float[Array, ""],
    a_counts: Bool[Array, "b n"] | None = None,
    b_counts: Bool[Array, "b m"] | None = None,
) -> Float[Array, ""]:
    """`contrastive_loss` by late interaction: each row finds its partner by its own tokens.

    Args:
        a: Tokens of one side.
        b: Tokens of the other; partners are in the same rows.
        scale: The inverse temperature; traced.
        a_counts: True for the tokens of `a` that count; None for all.
        b_counts: And of `b`.
    """
    from_a, from_b = late_interaction(a, b, a_counts, b_counts)
    rows, columns = scale * from_a, scale * from_b
    losses = jax.nn.logsumexp(rows, 1) - jnp.diagonal(rows)
    losses += jax.nn.logsumexp(columns, 0) - jnp.diagonal(columns)
    return losses.mean() / 2
