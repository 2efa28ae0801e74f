"""How entity-level manipulation is judged: SeMani's tables I and II, and scenes by their truth.

Wang et al., *Entity-Level Text-Guided Image Manipulation* (2023), section 4. Its metrics are the
Inception Score (`vljax.metrics.inception_score`), the CLIP-score and R@10 among a picture's own
text and 99 others (`text_agreement`), and the L2 error of a picture edited by its *own* caption
(`l2_error`), whose floor is the error of the model's reconstruction with nothing edited.

Neither the sizes of the test sets, nor the IS network and its splits, nor the scale of L2 are told
in the paper: only rows made here compare with each other. On scenes everything is known, so
`scene_score` asks the oracle what became of the edited object and of the others.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from vljax.data.scenes.manipulations import SceneManipulation
from vljax.data.scenes.oracle import Detection, detect, truth
from vljax.data.scenes.world import masks
from vljax.data.text.tokenizers import Tokenizer
from vljax.metrics.batches import features_of
from vljax.metrics.inception_score import inception_logits, inception_score
from vljax.metrics.layout import mask_iou, score
from vljax.metrics.psnr import psnr
from vljax.metrics.report import paper_rows
from vljax.metrics.retrieval import clip_score, draw_distractors, retrieval_accuracy
from vljax.metrics.statistics import standard_error
from vljax.models.clip import CLIP
from vljax.ops.pixels import to_unit
from vljax.pretrained.clips import judging_clip

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

TABLE_1 = "table I: manipulation"
TABLE_2 = "table II: mean ranks of people"

_COLUMNS = ("data", "IS", "IS deviation", "CLIP-score", "R@10", "L2")
PAPER = (
    *paper_rows(
        TABLE_1,
        "paper, table I",
        _COLUMNS,
        ("ManiGAN", "CUB", 4.19, 0.04, 21.30, 10.49, 0.05),
        ("Lightweight-GAN", "CUB", 4.66, 0.06, 18.88, 10.00, 0.13),
        ("Blended LDM", "CUB", 5.95, 0.08, 23.34, 38.17, 0.02),
        ("SeMani-Trans", "CUB", 5.02, 0.11, 23.56, 34.82, 0.01),
        ("SeMani-Diff", "CUB", 5.13, 0.07, 24.03, 45.51, 0.02),
        ("ManiGAN", "Oxford", 4.37, 0.11, 21.59, 14.21, 0.02),
        ("Lightweight-GAN", "Oxford", 4.35, 0.09, 17.55, 11.58, 0.12),
        ("Blended LDM", "Oxford", 4.21, 0.09, 22.11, 21.19, 0.01),
        ("SeMani-Trans", "Oxford", 4.50, 0.06, 23.34, 36.49, 0.03),
        ("SeMani-Diff", "Oxford", 4.30, 0.08, 22.05, 17.37, 0.01),
        ("ManiGAN", "COCO", 22.65, 0.40, 11.91, 14.50, 0.03),
        ("Lightweight-GAN", "COCO", 24.80, 0.94, 13.65, 14.49, 0.03),
        ("Blended LDM", "COCO", 27.84, 0.63, 13.02, 28.64, 0.01),
        ("SeMani-Trans", "COCO", 21.45, 0.41, 13.10, 21.32, 0.02),
        ("SeMani-Diff", "COCO", 32.98, 0.61, 12.28, 24.73, 0.01),
        ("chance", "any", None, None, None, 10.0, None),
    ),
    *paper_rows(
        TABLE_2,
        "paper, table II",
        ("consistency", "preservation", "fidelity"),
        ("ManiGAN", 3.27, 3.76, 2.60),
        ("Lightweight-GAN", 4.49, 4.43, 4.28),
        ("Blended LDM", 2.79, 2.40, 3.16),
        ("SeMani-Trans", 2.68, 2.93, 3.03),
        ("SeMani-Diff", 1.78, 1.48, 1.93),
    ),
)
"""The paper's rows; chance is of R@10 among 100 texts, by counting. Of the two GANs there are no
others."""


# By networks and pixels --------------------------------------------------------------------------


class Jury:
    """Makes those columns of table I that networks tell: IS, CLIP-score and R@10.

    Args:
        texts: What each picture was asked to show, the target texts.
        own: The run's CLIP, which judges where none is given; None for none.
        tokenizer: The run's.
        clip: Of the one that judges instead, see `judging_clip`.
        inception: Published weights; without there is no Inception Score.
        batch_size: Pictures at a time.
        seed: Which texts compete in R@10.

    Raises:
        UserError: a file does not hold what it should.
    """

    def __init__(
        self,
        texts: Sequence[str],
        own: CLIP | None,
        tokenizer: Tokenizer,
        *,
        clip: str | None,
        inception: str | None,
        batch_size: int,
        seed: int,
    ) -> None:
        judge = own
        if clip:
            judge, tokenizer = judging_clip(clip, tokenizer)
        self.logits = inception_logits(inception) if inception else None
        self.batch_size, self.seed, self.look = batch_size, seed, None
        if judge is not None:
            tokens = tokenizer(texts, judge.context_length, warn=False)
            self.texts = jax.jit(CLIP.encode_text)(judge, tokens)
            view = jax.jit(lambda clip, images: clip.encode_image(to_unit(images)))
            self.look = functools.partial(view, judge)

    def columns(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> dict[str, float]:
        """Of one picture a text, in their order.

        IS is over as many parts as leave ten pictures each, at most the usual ten; of a single
        picture there is neither CLIP-score nor R@10, which compares.
        """
        values: dict[str, float] = {}
        if self.logits is not None:
            logits = features_of(self.logits, pictures, self.batch_size)
            splits = max(1, min(10, len(pictures) // 10))
            values["IS"], values["IS deviation"] = inception_score(logits, splits)
        if self.look is not None and len(pictures) > 1:
            seen = features_of(self.look, pictures, self.batch_size)
            values |= text_agreement(seen, self.texts, self.seed)
        return values


def text_agreement(
    images: Float[Array, "n d"], texts: Float[Array, "n d"], seed: int = 0, others: int = 99
) -> dict[str, float]:
    """CLIP-score and R@10 of pictures under their own texts.

    Args:
        images: CLIP embeddings of the manipulated pictures.
        texts: Of their target texts, in the same order; the texts of the others compete.
        seed: Who competes.
        others: How many compete with each, fewer where there are not so many.

    Returns:
        `CLIP-score` (100 times the cosine), `R@10` in percent and `chance` of it.
    """
    generator, count = np.random.default_rng(seed), len(images)
    others = min(others, count - 1)
    rivals = draw_distractors(generator, count, count, others, own=np.arange(count))
    found = retrieval_accuracy(images, texts, texts, rivals, ks=(10,))["top10"]
    return {
        "CLIP-score": float(np.mean(clip_score(images, texts, weight=100.0))),
        "R@10": 100 * found,
        "chance": 100 * min(1.0, 10 / (others + 1)),
    }


def l2_error(
    made: UInt8[np.ndarray, "n h w 3"], real: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, " n"]:
    """The mean squared difference of each picture, pixels in [-1, 1] (the paper tells no scale)."""
    return np.square(to_unit(made) - to_unit(real)).mean((1, 2, 3))


# By the truth of scenes --------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneScore:
    """What became of a manipulated scene; shares are 0 to 1.

    Attributes:
        right: Share of the edited objects that are what the text asks, shape and colour; of a
            background whether its tone is.
        shape: Share whose shape is right; NaN of a background, which has none.
        colour: Share whose colour is right; NaN of a background.
        others: F1 of the other objects, by class and overlap of at least half.
        shape_iou: Overlap of the edited objects, as found, with where they should be; NaN of a
            background.
        psnr: Of the pixels outside of what the wish may change, in dB; infinite if all the same.
    """

    right: float
    shape: float
    colour: float
    others: float
    shape_iou: float
    psnr: float


def scene_score(made: Picture, before: Picture, told: SceneManipulation) -> SceneScore:
    """Judge a manipulated scene by the oracle.

    An edited object is the detection that overlaps most where it was or should be.

    Args:
        made: The manipulated picture.
        before: The picture that was there.
        told: The wish, with the scenes before and after.
    """
    side = made.shape[0]
    found, meant = detect(made), truth(told.after, side)
    was, wished = masks(told.before, side), masks(told.after, side)
    edited, marks = [], []
    for index in told.changed:
        region = was[index] | wished[index]
        near = max(found, key=lambda one: (one.mask & region).sum(), default=None)
        if near is not None and not (near.mask & region).any():
            near = None
        edited.append(near)
        marks.append(_marks(near, meant[index]))
    rest = [one for one in found if not any(one is other for other in edited)]
    others = [one for i, one in enumerate(meant) if i not in told.changed]
    if not told.changed:
        tone = float(_tone(made, ~wished.any(0)) == told.after.background.tone)
        marks = [(tone, np.nan, np.nan, np.nan)]
    right, shape, colour, overlap = np.mean(marks, axis=0)
    region = told.mask | np.any([wished[i] for i in told.changed] or [told.mask], axis=0)
    return SceneScore(
        float(right),
        float(shape),
        float(colour),
        score(rest, others).f1,
        float(overlap),
        float(psnr(made[None], before[None], ~region[None])[0]),
    )


def _marks(found: Detection | None, meant: Detection) -> tuple[float, float, float, float]:
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    shape, colour = found.shape == meant.shape, found.colour == meant.colour
    return float(shape and colour), float(shape), float(colour), mask_iou(found.mask, meant.mask)


def _tone(picture: Picture, where: Any) -> str:
    return "light" if picture[where].mean() > 127.5 else "dark"


def scene_columns(scores: Iterable[SceneScore]) -> dict[str, Float[np.ndarray, " n"]]:
    """The columns of a table on scenes, edit by edit; shares in percent, NaN as in `SceneScore`."""
    rows = list(scores)
    shares = {"as asked": "right", "shape": "shape", "colour": "colour", "F1 of others": "others"}
    shares["shape IoU"] = "shape_iou"
    columns = {
        name: 100 * np.array([getattr(row, field) for row in rows], float)
        for name, field in shares.items()
    }
    # Where nothing changed there is no error to take a logarithm of: 99 dB, more than a pixel
    # that is off by one.
    decibels = np.array([row.psnr for row in rows], float)
    return {**columns, "PSNR outside": np.where(np.isposinf(decibels), 99.0, decibels)}


def means(columns: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float]:
    """Each column's mean, and of the first the standard error; what is not finite is left out."""
    told: dict[str, float] = {}
    for name, column in columns.items():
        known = column[np.isfinite(column)]
        if not known.size:
            continue
        told[name] = float(known.mean())
        if len(told) == 1:
            told["±"] = standard_error(known)
    return told


def outside_kept(
    made: UInt8[np.ndarray, "n h w 3"],
    before: UInt8[np.ndarray, "n h w 3"],
    masks: Bool[np.ndarray, "n h w"],
) -> Bool[np.ndarray, " n"]:
    """Which pictures are, outside of their masks, what they were, bit for bit."""
    return ((made == before).all(-1) | masks).all((1, 2))


def alignment_columns(
    found: Sequence[Mask], meant: Sequence[Mask]
) -> dict[str, Float[np.ndarray, " n"]]:
    """How well alignment finds what words name: in percent, picture by picture.

    `choice` is whether the mask found is that entity's (it overlaps the true one by half or more),
    `mask IoU` how well.
    """
    overlap = np.array([mask_iou(a, b) for a, b in zip(found, meant, strict=True)], float)
    return {"choice": 100.0 * (overlap >= 0.5), "mask IoU": 100.0 * overlap}


def raster_place(mask: Mask) -> float:
    """Where a mask lies in raster order: 0 the first pixels, 1 the last, the mean of its own."""
    places = np.flatnonzero(mask)
    return float(places.mean() / (mask.size - 1)) if len(places) else 0.5
