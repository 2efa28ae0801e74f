"""Many things in parts of one size, so that one program makes them in bounded memory."""

from collections.abc import Iterable
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


def joined(parts: Iterable[T], count: int) -> T:
    """What was made of all numbers, part by part; on the host.

    Args:
        parts: Trees of arrays, whose first axis is that of the numbers.
        count: How many there are; at least 1.
    """
    return jax.tree.map(lambda *some: np.concatenate(some)[:count], *parts)
