"""Networks that look at many pictures for a metric, so many at a time."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vljax.ops.parts import filled_batches


def parts(
    images: UInt8[np.ndarray, "n h w 3"], batch_size: int
) -> list[UInt8[np.ndarray, "b h w 3"]]:
    """The pictures in their order, each once, `batch_size` at a time; the last part may be smaller.

    For what takes statistics of all; `features_of` compiles for one size alone.
    """
    return np.split(images, range(batch_size, len(images), batch_size))


def features_of(
    network: Callable[[Any], Any], images: UInt8[np.ndarray, "n h w 3"], batch_size: int
) -> Float[Array, "n d"]:
    """What a network makes of each picture.

    Args:
        network: From pictures [b h w 3] to [b d]; jitted by the caller.
        images: The pictures, at least one.
        batch_size: So many at a time.
    """
    batches = filled_batches(len(images), min(batch_size, len(images)))
    return jnp.concatenate([network(images[places]) for places in batches])[: len(images)]
