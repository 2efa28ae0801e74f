"""Many things in parts of one size, so that one program makes them in bounded memory."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int32, PyTree

T = TypeVar("T", bound=PyTree)


def filled_batches(count: int, size: int) -> list[Int32[np.ndarray, " size"]]:
    """The numbers 0 to `count` − 1 in batches of `size`.

    The last batch is filled up with its last number: what is made of all is to be cut to `count`.

    Args:
        count: At least 0.
        size: At least 1.
    """
    starts = range(0, count, size)
    return [np.minimum(np.arange(i, i + size, dtype=np.int32), count - 1) for i in starts]


def equal_parts(count: int, most: int) -> list[Int32[np.ndarray, " n"]]:
    """As `filled_batches`, of the smallest size with which there are no more of them.

    Args:
        count: At least 1.
        most: No part has more numbers; at least 1.
    """
    return filled_batches(count, -(-count // -(-count // most)))


def in_batches(make: Callable[[Int32[np.ndarray, " size"]], T], count: int, size: int) -> T:
    """What is made of the numbers 0 to `count` − 1, a batch at a time; on the host.

    Args:
        make: Makes a tree of arrays of the numbers of a batch, whose rows come first.
        count: At least 1.
        size: Of a batch, at least 1; of `count` where that is less.

    Returns:
        The tree, with `count` rows.
    """
    parts = [make(places) for places in filled_batches(count, min(size, count))]
    return jax.tree.map(lambda *some: np.concatenate(some)[:count], *parts)
