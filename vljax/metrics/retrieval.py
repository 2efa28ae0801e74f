"""Agreement of pictures with their guidance, by the embeddings of a joint network such as CLIP.

The protocol of Semantic Diffusion Guidance (thesis section 4.4.2): the guidance (a prompt or a
reference picture) is the query, and searches the picture made from it among 99 real pictures
drawn at random, by cosine similarity. R-precision turns the roles round.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.ops.similarity import cosine, normalise

# Rows compared at once: bounds the memory for their distractors.
_ROWS = 64


def draw_distractors(
    generator: np.random.Generator,
    queries: int,
    pool: int,
    count: int = 99,
    own: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, "n count"]:
    """Who competes with each query's target: indices into a pool, without repetition.

    Args:
        generator: Source of randomness.
        queries: How many queries.
        pool: Size of the pool.
        count: How many distractors each query has.
        own: For each query, the member of the pool that must not be drawn because it is the
            guidance itself (or the query's own prompt); None where the pool holds none.

    Raises:
        UserError: the pool is too small.
    """
    free = pool if own is None else pool - 1
    if free < count:
        raise UserError(
            f"retrieval among {count} distractors: only {free} can be drawn; "
            "take more real pictures (or prompts), or fewer distractors"
        )
    drawn = [generator.choice(free, count, replace=False) for _ in range(queries)]
    chosen = np.array(drawn, np.int32).reshape(queries, count)
    # Leave out the query's own by stepping over it.
    return chosen if own is None else chosen + (chosen >= np.asarray(own)[:, None])


def retrieval_accuracy(
    queries: Float[Array, "n d"],
    targets: Float[Array, "n d"],
    pool: Float[Array, "p d"],
    distractors: Int[Array, "n m"] | Int[np.ndarray, "n m"],
    ks: Sequence[int] = (1, 5, 10, 20),
) -> dict[str, float]:
    """How often each query finds its target among the first k.

    Equal similarities are ordered by chance, in expectation: embeddings that are all alike score
    k / (m + 1). What is not a number never counts as found.

    Args:
        queries: Embeddings of the guidance (prompts or reference pictures).
        targets: Embeddings of the pictures made from it.
        pool: Embeddings of real pictures, none of which served as guidance.
        distractors: For each query, indices into `pool`; see `draw_distractors`.
        ks: Numbers of places that count as found.

    Returns:
        `top1`, `top5`, …: shares of queries, in [0, 1].
    """
    before, level = (np.asarray(n) for n in _places(queries, targets, pool, distractors))
    return {f"top{k}": float(np.clip((k - before) / (1 + level), 0, 1).mean()) for k in ks}


@jax.jit
@jax.default_matmul_precision("float32")
def _places(
    queries: Float[Array, "n d"],
    targets: Float[Array, "n d"],
    pool: Float[Array, "p d"],
    distractors: Int[Array, "n m"],
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """For each query, how many distractors come before its target, and how many level with it."""
    pool = normalise(pool)

    def places(row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        query, target, others = row
        similarity = jnp.concatenate([target[None], pool[others]]) @ query
        own, rest = similarity[0], similarity[1:]
        return (~(rest <= own)).sum(), (rest == own).sum()

    rows = (normalise(queries), normalise(targets), jnp.asarray(distractors))
    return jax.lax.map(places, rows, batch_size=_ROWS)


def r_precision(
    images: Float[Array, "n d"],
    prompts: Float[Array, "n d"],
    pool: Float[Array, "p d"],
    distractors: Int[Array, "n m"] | Int[np.ndarray, "n m"],
) -> float:
    """How often a picture is closest to its own prompt (Xu et al. 2018, AttnGAN, with R = 1).

    Args:
        images: Embeddings of generated pictures.
        prompts: Embeddings of the prompt of each.
        pool: Embeddings of prompts.
        distractors: For each picture, indices into `pool` of prompts other than its own.
    """
    return retrieval_accuracy(images, prompts, pool, distractors, ks=(1,))["top1"]


def clip_score(
    images: Float[Array, "n d"], texts: Float[Array, "n d"], weight: float = 2.5
) -> Float[Array, " n"]:
    """CLIPScore of each pair: weight · max(cos, 0) (Hessel et al. 2021, equation 1).

    Args:
        images: CLIP embeddings of pictures.
        texts: CLIP embeddings of their texts.
        weight: 2.5 in the paper; papers on generation often report 100.
    """
    return weight * jnp.maximum(cosine(images, texts), 0)
