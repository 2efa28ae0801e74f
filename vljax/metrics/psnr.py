"""How close pictures are to others, value by value: the peak signal-to-noise ratio."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vljax.errors import UserError


def psnr(
    made: UInt8[np.ndarray, "n h w 3"],
    real: UInt8[np.ndarray, "n h w 3"],
    where: Bool[np.ndarray, "n h w"] | None = None,
) -> Float[np.ndarray, " n"]:
    """The peak signal-to-noise ratio of each picture, 10 log₁₀(255² / mean squared error), in dB.

    A table gives the mean over pictures: one picture that failed then counts as one, while in the
    squared error of all together it would be nearly all there is.

    Args:
        made: Pictures.
        real: What they should be.
        where: The pixels that count; all, if left out.

    Returns:
        Decibels; infinite for equal pictures, and nan where no pixel counts.

    Raises:
        UserError: the arrays' shapes differ.
    """
    if made.shape != real.shape or (where is not None and where.shape != real.shape[:3]):
        shapes = [a.shape for a in (made, real, where) if a is not None]
        raise UserError(f"psnr: shapes {shapes} do not belong together; give one size for all")
    error = np.square(made.astype(np.float32) - real).mean(-1)
    counts = np.ones(error.shape, bool) if where is None else where
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (error * counts).sum((1, 2)) / counts.sum((1, 2))
        return 10 * np.log10(255**2 / mean)
