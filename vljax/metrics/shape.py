"""Shape faithfulness of edited pictures: mIoU and KW-mIoU of Shape-Guided Diffusion.

Thesis section 5.4. An edit i shall put an object of a class into a mask Mᵢ. A segmentation network
tells which pixels Sᵢ of the edited picture show that class, and its *IoU* is "the proportion of
pixels within the masked region correctly synthesised as the desired object class":

    IoUᵢ = |Sᵢ ∩ Mᵢ| / |Mᵢ|

The union of the usual definition is here always the mask, also in the published code: what the
edit draws outside of the mask does not count. The table's *mIoU* is the mean over edits.

A full body that becomes a head fills its mask and is wrong all the same. Hence the
keypoint-weighted *KW-mIoU*, over the edits whose object has keypoints (animals in the thesis):
each IoU is weighted by "the percentage of correct keypoints when comparing the source vs. edited
image", as a keypoint detector finds them:

    KW-mIoU = 1/|A| Σ_{i ∈ A} PCKᵢ · IoUᵢ,    PCKᵢ = |{k : ‖pᵢₖ − qᵢₖ‖ ≤ α · max(wᵢ, hᵢ)}| / Kᵢ

with pᵢₖ the Kᵢ keypoints found in the source picture, qᵢₖ the same ones in the edited picture
(wrong where not found), and wᵢ × hᵢ the box of Mᵢ. An unedited picture has PCK 1. The thesis does
not state α; it is an argument here, and a table says which one it used.

Both networks are arguments. On scenes the oracle plays both: `oracle_segmenter`,
`oracle_keypoints`. The table's CLIP column is `vljax.metrics.retrieval.clip_score` with weight 1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vljax.data.scenes import words
from vljax.data.scenes.oracle import Detection, detect
from vljax.data.scenes.shapes import MAX_KEYPOINTS, SHAPES
from vljax.data.scenes.world import COLOURS, boxes_of
from vljax.errors import UserError

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]

#: `segmenter(picture, name) -> mask`: the pixels that show an object of that name.
Segmenter = Callable[[Picture, str], Mask]
#: `detector(picture, name, mask) -> [k 3]`: places (x, y) in pixels and a flag, 0 where a keypoint
#: is not found, of the object of that name in that place. Row k means the same in all pictures.
KeypointDetector = Callable[[Picture, str, Mask], Float[np.ndarray, "k 3"]]

#: α where no other is given: the share of the box that a keypoint may be off.
ALPHA = 0.1


@dataclass(frozen=True)
class ShapeScore:
    """How faithful one edit is to its shape.

    Attributes:
        iou: Share of the mask that shows the desired class, 0 to 1.
        correct_keypoints: Share of the source's keypoints that the edit kept, 0 to 1; None where
            the source has none.
    """

    iou: float
    correct_keypoints: float | None


def iou_within(found: Mask, mask: Mask) -> float:
    """|found ∩ mask| / |mask|, the thesis's IoU.

    Args:
        found: The mask of what was found.
        mask: The mask within which it counts.

    Raises:
        ValueError: the masks are of different sizes.
        UserError: `mask` is empty.
    """
    if found.shape != mask.shape:
        raise ValueError(f"a mask of {found.shape} cannot be compared with one of {mask.shape}")
    if not mask.any():
        raise UserError("the shape of an edit is an empty mask: leave this example out")
    return float(np.count_nonzero(found & mask) / np.count_nonzero(mask))


def correct_keypoints(
    source: Float[np.ndarray, "k 3"],
    edited: Float[np.ndarray, "k 3"],
    size: float,
    alpha: float = ALPHA,
) -> float | None:
    """PCK: the share of the source's keypoints that the edited picture has near the same place.

    Args:
        source: (x, y) in pixels and a flag, 0 where not found.
        edited: The same keypoints of the edited picture.
        size: The longer side of the object's box in pixels.
        alpha: Greatest distance that is near, as a share of `size`.

    Returns:
        A share, or None where the source has no keypoint.
    """
    if source.shape != edited.shape:
        raise ValueError(f"keypoints {source.shape} cannot be compared with {edited.shape}")
    there = source[:, 2] > 0
    if not there.any():
        return None
    distance = np.linalg.norm(source[:, :2] - edited[:, :2], axis=1)
    return float(((distance <= alpha * size) & (edited[:, 2] > 0))[there].mean())


def shape_score(
    source: Picture,
    edited: Picture,
    mask: Mask,
    source_name: str,
    edited_name: str,
    segmenter: Segmenter,
    detector: KeypointDetector | None = None,
    alpha: float = ALPHA,
) -> ShapeScore:
    """The faithfulness of one edit; all three arrays have the picture's size.

    Args:
        source: The picture before the edit.
        edited: The picture after it.
        mask: The shape that the new object shall have.
        source_name: What was there, as the detector knows it.
        edited_name: The desired class, as the segmenter and the detector know it.
        segmenter: Finds the desired class in the edited picture.
        detector: Finds keypoints in both pictures; None for a class that has none.
        alpha: See `correct_keypoints`.
    """
    iou = iou_within(segmenter(edited, edited_name), mask)
    if detector is None:
        return ShapeScore(iou, None)
    left, top, right, bottom = boxes_of(mask[None])[0]
    share = correct_keypoints(
        detector(source, source_name, mask),
        detector(edited, edited_name, mask),
        float(max(right - left, bottom - top)),
        alpha,
    )
    return ShapeScore(iou, share)


def shape_columns(scores: Iterable[ShapeScore]) -> dict[str, Float[np.ndarray, " n"]]:
    """What table 5.2 averages, edit by edit.

    Returns:
        `miou` and `kw_miou` as shares (the thesis prints percentages); NaN where an edit does not
        count: it has no keypoints. The columns are their means over the others.
    """
    scores = list(scores)
    correct = [np.nan if s.correct_keypoints is None else s.correct_keypoints for s in scores]
    iou = np.array([s.iou for s in scores], float)
    return {"miou": iou, "kw_miou": np.array(correct, float) * iou}


# Scenes ----------------------------------------------------------------------------------------


def oracle_segmenter(picture: Picture, name: str) -> Mask:
    """The pixels of all objects of the shape, the colour or both that a text names.

    Args:
        picture: A scene.
        name: Such as "a red circle", "circle", "something blue".

    Raises:
        UserError: the text names neither a shape nor a colour.
    """
    mask = np.zeros(picture.shape[:2], bool)
    for found in _named(picture, name):
        mask |= found.mask
    return mask


def oracle_keypoints(picture: Picture, name: str, mask: Mask) -> Float[np.ndarray, "k 3"]:
    """The keypoints of the object of a scene that overlaps a mask most, of those a text names.

    The rows of one shape say nothing about another, so each shape has rows of its own: an object
    that became another shape has lost all of its keypoints.

    Args:
        picture: A scene.
        name: As for `oracle_segmenter`.
        mask: Where to look; what does not touch it is another object.

    Raises:
        UserError: the text names neither a shape nor a colour.
    """
    points = np.zeros((len(SHAPES), MAX_KEYPOINTS, 3), np.float32)
    found = max(_named(picture, name), key=lambda one: (one.mask & mask).sum(), default=None)
    if found is not None and (found.mask & mask).any():
        points[SHAPES.index(found.shape)] = found.keypoints
    return points.reshape(-1, 3)


def _named(picture: Picture, name: str) -> list[Detection]:
    said = set(words(name))
    shapes, colours = said & set(SHAPES), said & set(COLOURS)
    if not shapes and not colours:
        raise UserError(
            f"{name!r} names no object of a scene: give one of {', '.join(SHAPES)} or a colour"
        )
    return [
        one
        for one in detect(picture)
        if (not shapes or one.shape in shapes) and (not colours or one.colour in colours)
    ]
