"""Many things in parts of one size, so that one program makes them in bounded memory."""

import numpy as np
from jaxtyping import Int32


def equal_parts(count: int, most: int) -> list[Int32[np.ndarray, " n"]]:
    """The numbers 0 to `count` − 1 in parts of one size.

    The last part has its last number more than once: what is made of all is to be cut to `count`.

    Args:
        count: At least 1.
        most: No part has more numbers; at least 1.
    """
    size = -(-count // -(-count // most))
    starts = range(0, count, size)
    return [np.minimum(np.arange(i, i + size, dtype=np.int32), count - 1) for i in starts]
