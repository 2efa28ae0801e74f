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
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from vljax import files
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

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Gaussian":
        """Read published statistics: an `.npz` with `mu` and `sigma`, as FID's authors use.

        Raises:
            UserError: the file does not hold them.
        """
        try:
            with np.load(path) as file:
                mean, covariance = file["mu"].astype(float), file["sigma"].astype(float)
        except Exception as error:  # numpy and zipfile name damage in many ways
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{path} holds no statistics for FID ({reason}): "
                "it should be an .npz file with 'mu' and 'sigma'"
            ) from error
        if covariance.shape != 2 * mean.shape or mean.ndim != 1:
            raise UserError(
                f"{path} holds no statistics for FID: mu is {list(mean.shape)}, sigma is "
                f"{list(covariance.shape)}, but they should be [d] and [d, d]"
            )
        return cls(mean, covariance)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write what `read` reads; `path` ends in `.npz`."""
        with files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, mu=self.mean, sigma=self.covariance)


@dataclass(frozen=True)
class Moments:
    """Streaming mean and scatter of features: a pytree of float64 numpy arrays.

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
            features: One vector a picture. Of an array that is split over processes, each takes
                the rows it holds: together, through `over_processes`, they have taken all.

        Raises:
            RunError: a feature is not finite.
        """
        rows = _local_rows(features)
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

    def over_processes(self) -> "Moments":
        """The moments of all processes' sets together, the same on each; a collective call."""
        if jax.process_count() == 1:
            return self
        sizes = multihost_utils.process_allgather(np.int32(self.mean.size if self.count else 0))
        features = int(np.max(sizes))
        held = np.zeros(1 + features + features**2)
        if self.count:
            held = np.concatenate([[self.count], self.mean, self.scatter.ravel()])
        total = Moments()
        for process in range(jax.process_count()):
            # As pairs of 32-bit words, since JAX would round float64.
            words = multihost_utils.broadcast_one_to_all(
                held.view(np.uint32), is_source=jax.process_index() == process
            )
            values = np.asarray(words).view(np.float64)
            mean, scatter = np.split(values[1:], [features])
            other = Moments(int(values[0]), mean, scatter.reshape(features, features))
            total = total.merge(other) if other.count else total
        return total

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


jax.tree_util.register_dataclass(Moments, ("count", "mean", "scatter"), ())


def _local_rows(features: Any) -> Float[np.ndarray, "b d"]:
    """The rows that this process holds, each row on one process only, in float64."""
    if isinstance(features, jax.Array) and not features.is_fully_addressable:
        width = features.shape[-1]
        shards = [s.data for s in features.addressable_shards if s.replica_id == 0]
        if any(shard.shape[1] != width for shard in shards):
            raise ValueError("features must be split by pictures, not by channels")
        rows = [np.asarray(shard) for shard in shards]
        return np.concatenate([np.zeros((0, width)), *rows], dtype=np.float64)
    return np.asarray(features).astype(np.float64)


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
    """
    overlap = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False)
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap.sum()
    # Rounding can leave equal Gaussians a little below zero.
    return max(0.0, float(((a.mean - b.mean) ** 2).sum() + spread))


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    keep = values > len(values) * np.finfo(float).eps * max(values[-1], 0.0)
    return vectors[:, keep] * np.sqrt(values[keep])


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
