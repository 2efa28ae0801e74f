"""How different the pictures made from one guidance are (thesis section 4.4.2).

The mean distance between all pairs of pictures that share their prompt or reference: LPIPS with its
published weights; where these are missing, a stand-in by any network's embeddings, whose label
says so and belongs beside every number.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.perceptual import LPIPS
from vljax.ops.pixels import to_pixels
from vljax.ops.similarity import cosine
from vljax.pretrained import assign, read_tensors


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


def load_lpips(files: Sequence[str | os.PathLike[str]], network: str = "vgg") -> LPIPS:
    """LPIPS with its published weights.

    Args:
        files: LPIPS 0.1's heads (`vgg.pth`) and torchvision's trunk (`vgg16-397923af.pth`), in
            either order, or one file with the tensors of both.
        network: The trunk; see `LPIPS`.

    Raises:
        UserError: heads or trunk are missing, or they are not this network's.
    """
    origin = f"--lpips={' '.join(map(str, files))}"
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    for prefix, missing in (
        ("lin", "the heads (LPIPS 0.1's vgg.pth)"),
        ("features.", "the trunk (torchvision's vgg16-397923af.pth)"),
    ):
        if not any(name.startswith(prefix) for name in tensors):
            raise UserError(f"{origin}: {missing} is missing; give heads and trunk, two files")
    skeleton = jax.eval_shape(lambda: LPIPS(network, rngs=nnx.Rngs(0)))
    return assign(skeleton, tensors, origin=origin, ignore=("classifier.",))


def lpips_distance(model: LPIPS) -> Distance:
    """LPIPS as a `Distance`.

    Args:
        model: The network with its weights, see `load_lpips`.
    """
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


def picture_distance(
    lpips: Sequence[str | os.PathLike[str]], embed: Callable[[Any], Array], network: str
) -> Distance:
    """LPIPS where its files are given, else a stand-in by the embeddings at hand.

    Args:
        lpips: As `load_lpips` reads them, or none.
        embed: From uint8 pictures to embeddings [k, d]; jitted by the caller.
        network: What the embeddings come from, for the label.

    Raises:
        UserError: as `load_lpips`.
    """
    if lpips:
        return lpips_distance(load_lpips(lpips))
    return embedding_distance(lambda images: embed(to_pixels(images)), network)


def diversity(
    groups: Iterable[Float[Array, "k h w 3"]],
    distance: Distance,
    *,
    batch_size: int = 16,
) -> Diversity:
    """Mean distance between pictures that share their guidance.

    Args:
        groups: For each guidance, the pictures made from it, two or more.
        distance: How pairs are compared; see `lpips_distance` and `embedding_distance`.
        batch_size: Pairs compared at once.

    Raises:
        UserError: there is no group, or a group is a single picture.
    """
    means, count = [], 0
    for group in groups:
        if len(group) < 2:
            raise UserError(
                f"diversity needs 2 pictures or more for each guidance, got {len(group)}"
            )
        codes = distance.encode(group)
        chosen = np.array(list(itertools.combinations(range(len(group)), 2)), np.int32)
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
