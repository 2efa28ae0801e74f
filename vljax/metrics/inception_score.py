"""The Inception Score (Salimans et al., *Improved Techniques for Training GANs*, 2016).

For the tables of `text2image`, `semani_trans` and `semani_diff`, which report it.
"""

import itertools

import numpy as np
from jaxtyping import Array, Float

from vljax.errors import UserError


def inception_score(
    logits: Float[Array, "n c"] | Float[np.ndarray, "n c"], splits: int = 10
) -> tuple[float, float]:
    """Exponential of the mean KL divergence of each picture's classes from the classes of all.

    From 1 (all pictures alike, or no class recognised) to the number of classes. Published values
    use logits without bias (`InceptionV3.logits(features, bias=False)`) and 50,000 pictures; the
    score grows with the number of pictures in a split.

    Args:
        logits: One row a picture.
        splits: Consecutive parts, nearly equal, that are scored one by one.

    Returns:
        Mean and standard deviation (of the population) over the parts.

    Raises:
        UserError: there are fewer pictures than parts.
    """
    scores = np.asarray(logits).astype(np.float64)
    if not 1 <= splits <= len(scores):
        raise UserError(
            f"inception score splits={splits} for {len(scores)} pictures: "
            f"choose between 1 and {len(scores)}"
        )
    scores -= scores.max(1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    bounds = [i * len(log_p) // splits for i in range(splits + 1)]
    values = []
    for start, stop in itertools.pairwise(bounds):
        part = log_p[start:stop]
        p = np.exp(part)
        marginal = np.maximum(p.mean(0), np.finfo(float).tiny)
        values.append(np.exp((p * (part - np.log(marginal))).sum(1).mean()))
    return float(np.mean(values)), float(np.std(values))
