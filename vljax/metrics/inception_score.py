"""The Inception Score (Salimans et al., *Improved Techniques for Training GANs*, 2016).

For the tables of `text2image`, `semani_trans` and `semani_diff`, which report it.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.inception import InceptionV3
from vljax.ops.pixels import to_unit
from vljax.pretrained import load


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


def inception_logits(path: str | os.PathLike) -> Callable[[Any], Float[Array, "b 1008"]]:
    """The logits of published scores, without bias, from uint8 pictures [b h w 3]; jitted.

    Args:
        path: A checkpoint of `InceptionV3`.

    Raises:
        UserError: it does not hold one.
    """
    network = load(jax.eval_shape(lambda: InceptionV3(rngs=nnx.Rngs(0))), path)

    @jax.jit
    def logits(network: InceptionV3, pixels: Array) -> Float[Array, "b 1008"]:
        return network.logits(network.features(to_unit(pixels)), bias=False)

    return functools.partial(logits, jax.tree.map(jax.numpy.asarray, network))
