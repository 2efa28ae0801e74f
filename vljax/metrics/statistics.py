"""How sure a mean is, and a share of things that come several to a picture."""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def standard_error(values: ArrayLike) -> float:
    """Of the mean of independent values, their variance estimated without bias (n − 1).

    Args:
        values: One a picture, edit or dialogue [n].

    Returns:
        NaN of fewer than two values, which do not tell how they vary.
    """
    known = np.asarray(values, np.float64)
    return float(known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else float("nan")


def share_of(
    right: Float[np.ndarray, " n"], counts: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """The share of all things that are right, and its standard error by pictures.

    Things of one picture are alike, so that each picture counts by its things: the ratio of two
    sums, whose error is that of the mean of right − share × count, in mean counts.

    Args:
        right: How many things of each picture are right.
        counts: How many things each picture has.

    Returns:
        Share and error, 0 to 1; NaN both where there is nothing, the error of a single picture.
    """
    if not counts.sum():
        return float("nan"), float("nan")
    share = right.sum() / counts.sum()
    return float(share), standard_error(right - share * counts) / float(counts.mean())
