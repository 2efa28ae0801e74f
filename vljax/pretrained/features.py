"""Folders of features, filled by a published trunk."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from vljax import files
from vljax.data.pictures.features import Features, compute_features
from vljax.data.pictures.images import read_image, stretched
from vljax.errors import UserError
from vljax.models.trunk import make_trunk
from vljax.ops.pixels import to_unit
from vljax.pretrained.checkpoint import load


def keep_features(
    folder: str,
    find: Callable[[], Mapping[str, str | os.PathLike[str]]],
    trunk: Any,
    weights: str,
    size: int,
) -> None:
    """Fill a folder with what a published trunk makes of photographs; what is there stays.

    Args:
        folder: Where the features are, see `vljax.data.pictures.features`.
        find: Finds the photographs whose features are needed: their files by their names.
        trunk: A config's `model.trunk`.
        weights: Its file or folder.
        size: Side of the square to which photographs are stretched, in pixels.

    Raises:
        UserError: the trunk is none that is published, its weights or a photograph cannot be read.
    """
    if trunk.kind == "convolutions" or not weights:
        raise UserError(
            f"data.features={folder!r}: model.trunk.kind={trunk.kind!r} "
            "makes features to keep only with published weights: give pretrained.trunk, or leave "
            "data.features empty"
        )
    pictures, known = find(), Features(files.expanded(folder))
    if not (lacking := [name for name in pictures if name not in known]):
        return
    skeleton = jax.eval_shape(lambda: make_trunk(trunk, weights, rngs=nnx.Rngs(0))[0])
    network = load(skeleton, weights)

    def read(name: str) -> UInt8[np.ndarray, "s s 3"]:
        return stretched(read_image(pictures[name]), size)

    compute_features(folder, lacking, read, jax.jit(lambda images: network(to_unit(images))))
