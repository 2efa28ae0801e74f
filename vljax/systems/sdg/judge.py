"""How well guidance works: the columns of SDG's tables, and the paper's rows.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 4.4.2, tables
4.1 to 4.3. Networks that judge are arguments: a published Inception for FID and LPIPS for
diversity, or features of the CLIP at hand in their place, and then the column says so. Retrieval
is always by the clean CLIP, never by the one that guides.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vljax.data.scenes import oracle
from vljax.metrics.diversity import Distance, diversity, embedding_distance
from vljax.metrics.frechet import Moments, frechet_distance, moments
from vljax.metrics.retrieval import (
    clip_score,
    draw_distractors,
    r_precision,
    retrieval_accuracy,
)
from vljax.ops.pixels import to_pixels, to_unit

DISTRACTORS = 99


def _paper(table: str, data: str, method: str, *values: float) -> dict[str, Any]:
    names = ("FID", "diversity", "top1", "top5", "top10", "top20")
    row = dict(zip(names, values, strict=True))
    return {"source": f"paper, table {table}", "data": data, "method": method, **row}


#: The rows of tables 4.1 to 4.3; diversity is LPIPS.
PAPER = {
    "image": [
        _paper("4.1", "FFHQ", "ILVR (N=32)", 17.15, 0.439, 0.205, 0.416, 0.556, 0.727),
        _paper("4.1", "FFHQ", "SDG", 14.37, 0.583, 0.520, 0.742, 0.816, 0.906),
        _paper("4.2", "LSUN cat", "SDG (100)", 16.02, 0.617, 0.178, 0.443, 0.592, 0.766),
        _paper("4.2", "LSUN cat", "SDG (200)", 16.23, 0.565, 0.278, 0.533, 0.738, 0.880),
        _paper("4.2", "LSUN horse", "SDG (100)", 10.30, 0.597, 0.165, 0.418, 0.568, 0.704),
        _paper("4.2", "LSUN horse", "SDG (200)", 11.22, 0.585, 0.298, 0.609, 0.738, 0.863),
        _paper("4.2", "LSUN bedroom", "SDG (100)", 5.18, 0.633, 0.364, 0.745, 0.866, 0.942),
        _paper("4.2", "LSUN bedroom", "SDG (200)", 5.19, 0.550, 0.445, 0.805, 0.900, 0.951),
    ],
    "text": [
        _paper("4.1", "FFHQ", "StyleGAN+CLIP", 57.45, 0.578, 0.749, 0.934, 0.974, 0.996),
        _paper("4.3", "FFHQ", "SDG (120)", 19.60, 0.650, 0.248, 0.526, 0.654, 0.795),
        _paper("4.3", "FFHQ", "SDG (160)", 22.63, 0.644, 0.263, 0.548, 0.679, 0.801),
        _paper("4.3", "FFHQ", "SDG (320)", 28.38, 0.610, 0.553, 0.795, 0.878, 0.947),
    ],
}


class Judge:
    """Makes the columns of a row from the pictures of a method.

    Args:
        embed: CLIP's image tower, from uint8 pictures [b h w 3] to embeddings [b e]; jitted.
        real: Real pictures; retrieval draws its distractors from them, FID compares with them.
        data: Their name, for the column.
        inception: Features for FID from uint8 pictures, or None for `embed` in its place.
        distance: Between pictures in [-1, 1], for diversity, or None for `embed` in its place.
        batch_size: Pictures embedded at a time.
        seed: Draws distractors.
    """

    def __init__(
        self,
        embed: Callable[[Any], Float[Array, "b e"]],
        real: UInt8[np.ndarray, "n h w 3"],
        *,
        data: str,
        inception: Callable[[Any], Float[Array, "b d"]] | None = None,
        distance: Distance | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.embed, self.data, self.seed, self.batch_size = embed, data, seed, batch_size
        self.pool = self._embeddings(real)
        self.features = inception or embed
        self.real = self._moments(real).finish()
        self.distance = distance or embedding_distance(
            lambda images: embed(to_pixels(images)), "CLIP"
        )
        self.notes = {
            "FID": "Inception-v3" if inception else "stand-in: features of the clean CLIP",
            "diversity": self.distance.label,
            "retrieval": f"clean CLIP, top k among {DISTRACTORS} other real pictures",
        }

    def row(
        self,
        method: str,
        pictures: UInt8[np.ndarray, "g k h w 3"],
        guides: Float[Array, "g e"],
        classes: Sequence[tuple[str, str]] | None = None,
        *,
        texts: bool,
    ) -> dict[str, Any]:
        """The row of a method.

        Args:
            method: Its name.
            pictures: k pictures made from each of g guidances.
            guides: Clean CLIP embeddings of the texts or reference pictures.
            classes: On scenes the (shape, colour) that each guidance asks for: then the oracle
                says how often the largest object of a picture has them.
            texts: Whether the guidances are texts: then CLIP score and R-precision as well.
        """
        each = pictures.shape[1]
        flat = pictures.reshape(-1, *pictures.shape[2:])
        seen, asked = self._embeddings(flat), jnp.repeat(guides, each, axis=0)
        generator = np.random.default_rng(self.seed)
        others = draw_distractors(generator, len(flat), len(self.pool), DISTRACTORS)
        fid = frechet_distance(self._moments(flat).finish(), self.real)
        groups = (to_unit(jnp.asarray(group)) for group in pictures)
        row: dict[str, Any] = {"source": "here", "data": self.data, "method": method, "FID": fid}
        row["diversity"] = diversity(groups, self.distance, seed=self.seed).mean
        row |= retrieval_accuracy(asked, seen, self.pool, others)
        if texts:
            row["CLIP score"] = float(clip_score(seen, asked).mean())
            own = np.arange(len(guides)).repeat(each)
            count = min(DISTRACTORS, len(guides) - 1)
            wrong = draw_distractors(generator, len(flat), len(guides), count, own)
            row["R-precision"] = r_precision(seen, asked, guides, wrong)
        if classes is not None:
            row |= attribute_accuracy(flat, [one for one in classes for _ in range(each)])
        return row

    def _embeddings(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[Array, "n e"]:
        return jnp.concatenate([self.embed(part) for part in self._parts(images)])

    def _moments(self, images: UInt8[np.ndarray, "n h w 3"]) -> Moments:
        return moments(self.features, self._parts(images))

    def _parts(self, images: UInt8[np.ndarray, "n h w 3"]) -> list[np.ndarray]:
        return np.split(images, range(self.batch_size, len(images), self.batch_size))


def attribute_accuracy(
    pictures: UInt8[np.ndarray, "n h w 3"], classes: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """How often the largest object that the oracle finds has the shape and the colour asked for.

    Args:
        pictures: Pictures of scenes.
        classes: The (shape, colour) asked of each. Chance is 1/6 and 1/8.
    """
    shapes, colours = [], []
    for picture, (shape, colour) in zip(pictures, classes, strict=True):
        found = oracle.detect(picture)
        largest = max(found, key=lambda one: one.mask.sum(), default=None)
        shapes.append(largest is not None and largest.shape == shape)
        colours.append(largest is not None and largest.colour == colour)
    both = np.logical_and(shapes, colours)
    return {
        "shape right": float(np.mean(shapes)),
        "colour right": float(np.mean(colours)),
        "both right": float(np.mean(both)),
    }
