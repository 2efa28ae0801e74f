"""Whether the right objects are in the right places, over detections from any detector.

Two protocols. `score` pairs the objects found with those meant, one by one, by class and overlap.
`geneva_score` is that of conditional text-guided editing in dialogues: which classes are there,
and how they lie to each other and to the picture's centre (RSIM, relational similarity).

Sources: El-Nouby et al., *Tell, Draw, and Repeat* (GeNeVA, 2019), section 5.2, exactly as its
published code has it (Maluuba/GeNeVA 7e8d597, and scikit-learn's averages over samples).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int8


class Detection(Protocol):
    """An object found in a picture, or known to be there; the oracle's are such."""

    @property
    def label(self) -> int:
        """Its class."""
        ...

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """Its pixels."""
        ...

    @property
    def centre(self) -> tuple[float, float]:
        """Its place (x, y) in pixels."""
        ...

    @property
    def score(self) -> float:
        """How sure the detector is."""
        ...


# Object by object ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Score:
    """How well the objects found in one picture agree with those meant.

    Attributes:
        precision: Share of the found that are meant; 1 if none is found and none is meant.
        recall: Share of the meant that are found; 1 if none is meant.
        f1: Their harmonic mean.
        pairs: Indices (found, meant) of the objects that agree.
    """

    precision: float
    recall: float
    f1: float
    pairs: tuple[tuple[int, int], ...]


def mask_iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union of two masks; 0 if both are empty.

    Args:
        a: One mask.
        b: The other, of the same size.
    """
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def match(
    found: Sequence[Detection], meant: Sequence[Detection], min_iou: float = 0.5
) -> tuple[tuple[int, int], ...]:
    """Pair the objects of equal class, those of greatest overlap first.

    Args:
        found: Objects detected.
        meant: Objects that should be there.
        min_iou: Least overlap of the masks; 0 compares classes alone.

    Returns:
        Pairs of indices (found, meant), each index at most once.
    """
    options = sorted(
        (
            (mask_iou(a.mask, b.mask) if min_iou > 0 else 0.0, i, j)
            for i, a in enumerate(found)
            for j, b in enumerate(meant)
            if a.label == b.label
        ),
        reverse=True,
    )
    pairs: list[tuple[int, int]] = []
    for overlap, i, j in options:
        free = all(i != p and j != q for p, q in pairs)
        if free and overlap >= min_iou:
            pairs.append((i, j))
    return tuple(pairs)


def score(found: Sequence[Detection], meant: Sequence[Detection], min_iou: float = 0.5) -> Score:
    """Precision, recall and F1 of one picture; arguments as in `match`.

    Args:
        found: The objects of a picture.
        meant: Those that it should have.
        min_iou: The least overlap of masks that counts.
    """
    pairs = match(found, meant, min_iou)
    precision = len(pairs) / len(found) if found else float(not meant)
    recall = len(pairs) / len(meant) if meant else 1.0
    total = len(found) + len(meant)
    return Score(precision, recall, 2 * len(pairs) / total if total else 1.0, pairs)


def mean_score(scores: Iterable[Score]) -> dict[str, float]:
    """Averages over pictures of precision, recall and F1.

    Args:
        scores: One a picture.
    """
    rows = [(one.precision, one.recall, one.f1) for one in scores]
    means = np.mean(rows, axis=0) if rows else np.full(3, np.nan)
    return dict(zip(("precision", "recall", "f1"), map(float, means), strict=True))


# Class by class: GeNeVA --------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Which classes a picture shows, and where: what GeNeVA's detector and localiser tell of it.

    Attributes:
        present: Whether each class is there.
        centres: The place of each, from 0 to 1: x and y, of CoDraw x and depth; of absent classes
            any numbers.
    """

    present: Bool[np.ndarray, " classes"]
    centres: Float[np.ndarray, "classes 2"]


def layout_of(
    detections: Iterable[Detection], num_classes: int, image_size: tuple[int, int]
) -> Layout:
    """The layout that a detector of single objects sees; of several of a class the surest counts.

    Args:
        detections: What is found in a picture.
        num_classes: Labels go from 0 to one less.
        image_size: Height and width of the picture in pixels.
    """
    present = np.zeros(num_classes, bool)
    centres = np.full((num_classes, 2), np.nan)
    for one in sorted(detections, key=lambda one: one.score):
        present[one.label] = True
        centres[one.label] = one.centre[0] / image_size[1], one.centre[1] / image_size[0]
    return Layout(present, centres)


@dataclass(frozen=True, slots=True)
class GenevaScore:
    """How well the layout of one picture agrees with that meant.

    Attributes:
        precision: Share of the classes found that are meant; 0 if none is found.
        recall: Share of the classes meant that are found; 0 if none is meant.
        f1: Their harmonic mean; 0 if none is found and none is meant.
        rsim: See `rsim`.
    """

    precision: float
    recall: float
    f1: float
    rsim: float


def geneva_score(found: Layout, meant: Layout) -> GenevaScore:
    """Precision, recall, F1 and RSIM of one picture.

    Args:
        found: The layout of the generated picture.
        meant: That of the true picture, in the papers as the same detector sees it.
    """
    right = np.count_nonzero(found.present & meant.present)
    seen, asked = np.count_nonzero(found.present), np.count_nonzero(meant.present)
    return GenevaScore(
        right / seen if seen else 0.0,
        right / asked if asked else 0.0,
        2 * right / (seen + asked) if seen + asked else 0.0,
        rsim(found, meant),
    )


def rsim(found: Layout, meant: Layout) -> float:
    """Relational similarity: recall × the share of relations that are as meant.

    The classes in both pictures are compared pair by pair, both ways round, and each with the
    centre of the picture: does the first lie to the left or the right, above or below? Of n classes
    these are 2n² relations. 0 if no class is in both; a tie is a relation of its own.

    Args:
        found: Of the picture that was drawn.
        meant: Of the one that was asked for.
    """
    both = found.present & meant.present
    if not both.any():
        return 0.0
    agree = _relations(found.centres[both]) == _relations(meant.centres[both])
    return float(both.sum() / meant.present.sum() * agree.mean())


def _relations(centres: Float[np.ndarray, "n 2"]) -> Int8[np.ndarray, "n n 2"]:
    """Signs of each place less each other place, on the diagonal less the picture's centre."""
    difference = centres[:, None] - centres[None]
    own = np.arange(len(centres))
    difference[own, own] = centres - 0.5
    return np.sign(difference).astype(np.int8)


def mean_geneva_score(
    scores: Sequence[GenevaScore], last: Sequence[bool] | None = None
) -> dict[str, float]:
    """The columns of the papers' tables.

    Two F1 are in use, and rows compare within one only: the mean of the pictures' F1 (TIRG,
    LatteGAN), and the harmonic mean of the row's precision and recall (GeNeVA-GAN, SSCR, CDD-ICM).

    Args:
        scores: Of each picture.
        last: Whether a picture is the last of its dialogue: RSIM is the mean over these (CDD-ICM,
            LatteGAN); None for all.
    """
    precision, recall, f1 = (
        float(np.mean([getattr(one, name) for one in scores]))
        for name in ("precision", "recall", "f1")
    )
    ends = [True] * len(scores) if last is None else last
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "precision": precision,
        "recall": recall,
        "F1 (mean)": f1,
        "F1 (of means)": harmonic,
        "RSIM": float(np.mean([one.rsim for one, end in zip(scores, ends, strict=True) if end])),
    }
