"""The Fréchet distance between sets of pictures, by the features of a network.

Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*
(2017), equation 6: each set is summed up by the mean and covariance of its features. With
`vljax.models.inception` as the network this is the FID; with any other, say which.

Statistics are kept on the host in float64: float32 covariances have noise where their small
eigenvalues should be, the matrix square root magnifies it, and fewer pictures than features then
differ from the published implementations in the fourth digit. Only features leave the device, a
few kilobytes a picture.
"""

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from vljax.errors import RunError, UserError
from vljax.models.inception import InceptionV3
from vljax.ops.pixels import to_unit
from vljax.pretrained import load


@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set of pictures.

    Attributes:
        mean: Mean of the features.
        covariance: Their covariance, normalised by the count less one.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


@dataclass(frozen=True)
class Moments:
    """Streaming mean and scatter of features, in float64 on the host.

    Batches are merged by the pairwise formulas of Chan, Golub & LeVeque (1979), which subtract
    means before they square. `Moments()` is the empty set.

    Attributes:
        count: How many vectors have been seen.
        mean: Their mean [d].
        scatter: Sum of the outer products of their deviations from it [d, d].
    """

    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(()))
    scatter: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def update(self, features: Float[Array, "b d"] | Float[np.ndarray, "b d"]) -> "Moments":
        """These moments and those of a batch.

        Args:
            features: One vector a picture.

        Raises:
            RunError: a feature is not finite.
        """
        rows = np.asarray(features).astype(np.float64)
        if not len(rows):
            return self
        mean = rows.mean(0)
        if not np.isfinite(mean).all():
            raise RunError(
                f"features of pictures {self.count} to {self.count + len(rows) - 1} are not "
                "finite: look at these pictures and at the feature network's weights"
            )
        centred = rows - mean
        return self.merge(Moments(len(rows), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        count = self.count + other.count
        if not count:
            return self
        shift = other.mean - self.mean
        share = other.count / count
        between = (self.count * share) * np.multiply.outer(shift, shift)
        return Moments(count, self.mean + share * shift, self.scatter + other.scatter + between)

    def finish(self) -> Gaussian:
        """Mean and covariance.

        Raises:
            UserError: there are fewer than two pictures.
        """
        if self.count < 2:
            raise UserError(
                f"a Fréchet distance needs 2 pictures or more on each side, got {self.count}"
            )
        return Gaussian(self.mean, self.scatter / (self.count - 1))


def moments(features: Callable[[Any], Array], batches: Iterable[Any]) -> Moments:
    """The moments of a network's features over batches of pictures.

    Args:
        features: The network, from a batch to [b, d]; jitted by the caller.
        batches: Pictures as the network takes them.
    """
    total = Moments()
    for images in batches:
        total = total.update(features(images))
    return total


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians (Dowson & Landau 1982).

    ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½, where the last trace is the sum of the singular
    values of F₁ᵀF₂ for any factors Σ = F Fᵀ. Factors come from symmetric eigendecompositions
    without their numerical null space: unlike the square root of the product, this stays real,
    and exact where covariances are singular (fewer pictures than features).

    Args:
        a: One Gaussian.
        b: The other, of as many features.
    """
    overlap = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap.sum()
    # Rounding can leave equal Gaussians a little below zero.
    return max(0.0, float(((a.mean - b.mean) ** 2).sum() + spread))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


def object_crops(
    pictures: Iterable[UInt8[np.ndarray, "h w 3"]],
    boxes: Iterable[Float[np.ndarray, "k 4"]],
    side: int,
) -> UInt8[np.ndarray, "n side side 3"]:
    """Every object of every picture by itself, stretched to a square: what SceneFID compares.

    Sylvain et al., *Object-Centric Image Generation from Layouts* (2021): the Fréchet
    distance of objects instead of pictures. Boxes are those of a layout, or of a detector that
    looks at real pictures, too.

    Args:
        pictures: The pictures.
        boxes: Of each picture its objects' x0, y0, x1, y1 in pixels, ends excluded; what is outside
            of the picture or empty is left out.
        side: Of the squares, in pixels.
    """
    found = []
    for picture, some in zip(pictures, boxes, strict=True):
        height, width = picture.shape[:2]
        for box in some:
            x0, y0 = np.floor(np.maximum(box[:2], 0)).astype(int)
            x1, y1 = np.ceil(np.minimum(box[2:], (width, height))).astype(int)
            if x1 > x0 and y1 > y0:
                crop = Image.fromarray(np.ascontiguousarray(picture[y0:y1, x0:x1]))
                found.append(np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(found) if found else np.zeros((0, side, side, 3), np.uint8)


def inception_features(path: str | os.PathLike) -> Callable[[Any], Float[Array, "b 2048"]]:
    """The features of FID from uint8 pictures [b h w 3], by its published weights; jitted.

    Args:
        path: A checkpoint of `InceptionV3`.

    Raises:
        UserError: it does not hold one.
    """
    network = load(jax.eval_shape(lambda: InceptionV3(rngs=nnx.Rngs(0))), path)
    features = jax.jit(lambda network, pixels: network.features(to_unit(pixels)))
    return functools.partial(features, jax.tree.map(jax.numpy.asarray, network))
