"""How different the pictures made from one guidance are (thesis section 4.4.2).

The mean distance between pairs of pictures that share their prompt or reference: LPIPS with its
published weights; where these are missing, a stand-in by any network's embeddings, whose label
says so and belongs beside every number.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.perceptual import LPIPS
from vljax.ops.similarity import cosine


@dataclass(frozen=True)
class Distance:
    """A distance between pictures.

    Attributes:
        label: What it is, for the column of a table.
        encode: From pictures [k, …] to a pytree of arrays [k, …], one entry a picture.
        between: From two such pytrees to the distances of their entries [k].
    """

    label: str
    encode: Callable[[Array], Any]
    between: Callable[[Any, Any], Array]


@dataclass(frozen=True)
class Diversity:
    """The result of `diversity`.

    Attributes:
        label: The distance's label.
        mean: Mean distance of pairs, over guidances.
        spread: Standard deviation (of the population) over guidances.
        pairs: How many pairs were compared.
    """

    label: str
    mean: float
    spread: float
    pairs: int


def lpips_distance(model: LPIPS) -> Distance:
    """LPIPS as a `Distance`."""
    encode = jax.jit(lambda model, images: model.encode(images))
    between = jax.jit(lambda model, a, b: model.distance(a, b))
    return Distance(
        f"LPIPS ({model.network})",
        lambda images: encode(model, images),
        lambda a, b: between(model, a, b),
    )


def embedding_distance(features: Callable[[Array], Array], network: str) -> Distance:
    """One minus the cosine similarity of embeddings, a stand-in for LPIPS.

    Args:
        features: From pictures to embeddings [k, d]; jitted by the caller.
        network: What the embeddings come from, for the label.
    """
    return Distance(
        f"1 − cosine of {network} (stand-in for LPIPS)",
        features,
        lambda a, b: 1 - cosine(a, b),
    )


def draw_pairs(
    generator: np.random.Generator, count: int, limit: int | None = None
) -> Int[np.ndarray, "p 2"]:
    """Pairs of different pictures: all, or `limit` of them drawn without repetition."""
    pairs = np.array(list(itertools.combinations(range(count), 2)), np.int32).reshape(-1, 2)
    if limit is None or limit >= len(pairs):
        return pairs
    return pairs[np.sort(generator.choice(len(pairs), limit, replace=False))]


def diversity(
    groups: Iterable[Float[Array, "k h w 3"]],
    distance: Distance,
    *,
    pairs: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Diversity:
    """Mean distance between pictures that share their guidance.

    Args:
        groups: For each guidance, the pictures made from it, two or more.
        distance: How pairs are compared; see `lpips_distance` and `embedding_distance`.
        pairs: Compare so many random pairs of each group; all by default.
        seed: Draws the pairs.
        batch_size: Pairs compared at once.

    Raises:
        UserError: there is no group, or a group is a single picture.
    """
    generator = np.random.default_rng(seed)
    means, count = [], 0
    for group in groups:
        if len(group) < 2:
            raise UserError(
                f"diversity needs 2 pictures or more for each guidance, got {len(group)}"
            )
        codes = distance.encode(group)
        chosen = draw_pairs(generator, len(group), pairs)
        values = [
            np.asarray(distance.between(_take(codes, part[:, 0]), _take(codes, part[:, 1])))
            for part in np.split(chosen, range(batch_size, len(chosen), batch_size))
        ]
        means.append(np.concatenate(values).mean(dtype=float))
        count += len(chosen)
    if not means:
        raise UserError("diversity needs pictures of one guidance or more, got none")
    return Diversity(distance.label, float(np.mean(means)), float(np.std(means)), count)


def _take(codes: Any, index: Int[np.ndarray, " p"]) -> Any:
    return jax.tree.map(lambda x: x[index], codes)
