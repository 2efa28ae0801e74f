"""Pictures made under guidance: how good, how different, and how well they fit what was asked.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 4.4.2. The
networks that judge are arguments: a published Inception for the FID and LPIPS for diversity, or
features of the CLIP at hand in their place, and then `Judge.notes` say so. Retrieval is by the CLIP
at hand. Of scenes, the oracle tells whether a picture shows what was asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vljax.data.scenes import oracle
from vljax.metrics.batches import features_of, parts
from vljax.metrics.diversity import Distance, diversity, picture_distance
from vljax.metrics.frechet import Gaussian, frechet_distance, moments
from vljax.metrics.retrieval import clip_score, draw_distractors, r_precision, retrieval_accuracy
from vljax.metrics.statistics import standard_error
from vljax.ops.pixels import to_unit

DISTRACTORS = 99


class Judge:
    """Makes the columns of a method's row from its pictures.

    Args:
        embed: A CLIP's image tower, from uint8 pictures [b h w 3] to embeddings [b e]; jitted.
            Better not that which guides: a report says of which rows it is.
        real: Real pictures; retrieval draws its distractors from them, FID compares with them.
        name: What `embed` is, for the notes.
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
        name: str = "CLIP",
        inception: Callable[[Any], Float[Array, "b d"]] | None = None,
        distance: Distance | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        self.embed, self.seed, self.batch_size = embed, seed, batch_size
        self.pool = features_of(embed, real, batch_size)
        self.features = inception or embed
        self.real = self._gaussian(real)
        self.distance = distance or picture_distance((), embed, name)
        self.notes = {
            "FID": "Inception-v3" if inception else f"stand-in: features of {name}",
            "diversity": self.distance.label,
            "retrieval": f"{name}, top k among {DISTRACTORS} other real pictures",
        }

    def columns(
        self, pictures: UInt8[np.ndarray, "g k h w 3"], guides: Float[Array, "g e"], *, texts: bool
    ) -> dict[str, float]:
        """The columns of a method: FID, diversity, and how often a guidance finds its picture.

        Args:
            pictures: k pictures made from each of g guidances.
            guides: Embeddings of the texts or reference pictures.
            texts: Whether the guidances are texts: then CLIP score and R-precision as well.
        """
        each = pictures.shape[1]
        flat = pictures.reshape(-1, *pictures.shape[2:])
        seen = features_of(self.embed, flat, self.batch_size)
        asked = jnp.repeat(guides, each, axis=0)
        generator = np.random.default_rng(self.seed)
        others = draw_distractors(generator, len(flat), len(self.pool), DISTRACTORS)
        groups = (to_unit(jnp.asarray(group)) for group in pictures)
        columns = {
            "FID": frechet_distance(self._gaussian(flat), self.real),
            "diversity": diversity(groups, self.distance).mean,
            **retrieval_accuracy(asked, seen, self.pool, others),
        }
        if texts:
            columns["CLIP score"] = float(clip_score(seen, asked).mean())
            own = np.arange(len(guides)).repeat(each)
            count = min(DISTRACTORS, len(guides) - 1)
            wrong = draw_distractors(generator, len(flat), len(guides), count, own)
            columns["R-precision"] = r_precision(seen, asked, guides, wrong)
        return columns

    def _gaussian(self, images: UInt8[np.ndarray, "n h w 3"]) -> Gaussian:
        return moments(self.features, parts(images, self.batch_size)).finish()


def attribute_accuracy(
    pictures: UInt8[np.ndarray, "n h w 3"], classes: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """How often the largest object that the oracle finds has the shape and the colour asked for.

    Args:
        pictures: Pictures of scenes.
        classes: The (shape, colour) asked of each. Chance is 1/6 and 1/8.

    Returns:
        Shares of shapes, of colours and of both, 0 to 1; `standard error` of the last.
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
        "standard error": standard_error(both),
    }
