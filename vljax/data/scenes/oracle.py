"""The oracle: finds the objects of a scenes-like picture from its pixels alone.

It is to scenes what a trained detector is to photographs, so that generated pictures can be judged
with no pretrained network: `detect` returns every object's shape, colour, box, mask, keypoints and
place; `vljax.metrics.layout` compares them with the truth; `summary` tells what a set of pictures
shows.

Detection is analysis by synthesis. A plane is fitted to the background; pixels that differ take
the nearest palette colour; each connected patch of one colour is explained by the outline (shape,
place, radius) that agrees best with it, where what lies under another object counts neither for
nor against. Outlines are searched exhaustively by correlation on a coarse grid, then refined on
pixels. A patch that no outline explains is not an object.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vljax.data.scenes.shapes import SHAPES, place_keypoints, signed_distance
from vljax.data.scenes.world import (
    COLOURS,
    EDGE,
    PALETTE,
    Scene,
    boxes_of,
    class_index,
    keypoints,
    masks,
    visibility,
)
from vljax.errors import UserError
from vljax.ops.pixels import to_levels

#: Least agreement, 0 to 1, between a patch and the outline that explains it.
MIN_SCORE = 0.72

_WORK_SIZE = 64  # larger pictures are averaged down to about this side before the search
_RADII = 0.11 * 1.13 ** np.arange(10)  # searched radii, of the picture's side: 0.11 to 0.33
_PALETTE = np.array([PALETTE[colour] for colour in COLOURS], np.float32)
_FOREGROUND = 42.0  # levels between the background and anything on it
_COLOUR_REACH = 60.0  # levels between a pixel and its palette colour in its best light
_MIX_REACH = 45.0  # levels between a pixel and the mixtures of an object and the background
_MIN_AREA = 0.004  # of the picture, for a patch to be looked at
_MIN_SEEN = 0.4  # of an outline, that must lie on its own colour or the background
_SHARP = 0.94  # agreement below which a softer picture is supposed as well
_HIDDEN_COST = 0.06  # of agreement, for an outline that lies wholly under others
_SHORTLIST = 0.09  # shapes this much below the best on the coarse grid are refined too


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Detection:
    """An object found in a picture, or known to be there.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        box: x0, y0, x1, y1 in pixels, ends excluded, tight around `mask`.
        mask: the visible pixels.
        keypoints: `(x, y, flag)` in pixels, as in `vljax.data.scenes.world.place_keypoints`.
        centre: place of the whole object (x, y) in pixels, hidden parts included.
        radius: its radius in pixels.
        visible: share of its extent that is in sight, 0 to 1.
        score: agreement with the pixels, 0 to 1; 1 for the truth.
    """

    shape: str
    colour: str
    box: Float[np.ndarray, "4"]
    mask: Bool[np.ndarray, "h w"]
    keypoints: Float[np.ndarray, "k 3"]
    centre: tuple[float, float]
    radius: float
    visible: float
    score: float

    @property
    def label(self) -> int:
        """Index into `CLASSES`."""
        return class_index(self.shape, self.colour)


def truth(scene: Scene, image_size: int) -> list[Detection]:
    """What a perfect oracle would find in a scene's picture, back to front."""
    visible = masks(scene, image_size)
    points, boxes = keypoints(scene, image_size), boxes_of(visible)
    shares = visibility(scene.objects)
    return [
        Detection(
            thing.shape,
            thing.colour,
            boxes[i],
            visible[i],
            points[i],
            (thing.x * image_size, thing.y * image_size),
            thing.radius * image_size,
            shares[i],
            1.0,
        )
        for i, thing in enumerate(scene.objects)
    ]


# ------------------------------------------------------------------------------- detection


class _Outline(NamedTuple):
    """A hypothesis: places and radius in pixels of the working picture."""

    shape: str
    x: float
    y: float
    radius: float
    score: float


class _Evidence(NamedTuple):
    """What the pixels say about one patch, on the working picture."""

    share: Float[np.ndarray, "h w"]  # of the patch's colour in each pixel, 0 to 1
    patch: Float[np.ndarray, "h w"]  # the same, on the patch alone
    weight: Float[np.ndarray, "h w"]  # 0 under other objects, where pixels cannot tell


def detect(image: np.ndarray, min_score: float = MIN_SCORE) -> list[Detection]:
    """Find the objects of a picture.

    Args:
        image: `(height, width, 3)`, uint8, or float in [-1, 1]; sides of at least 32 pixels.
        min_score: least agreement between an object and its pixels, 0 to 1.

    Returns:
        The objects, back to front; their masks do not overlap.

    Raises:
        UserError: if the array is no such picture.
    """
    pixels = _levels(image)
    factor = max(1, round(min(pixels.shape[:2]) / _WORK_SIZE))
    work = _block_mean(pixels, factor)
    background = _fit_background(work)
    if background is None:
        return []
    labels = _label_colours(work, background)
    solid = _solid(labels)
    least = max(5.0, _MIN_AREA * labels.size)
    found: list[tuple[_Outline, int, np.ndarray]] = []
    waiting = labels.copy()
    tried = np.zeros(labels.shape, bool)
    taken = np.zeros((len(COLOURS), *labels.shape), bool)
    while True:
        patch, colour = _largest_patch(np.where(tried, -1, waiting))
        if colour < 0 or np.count_nonzero(patch) < least:
            break
        # The half that differs most from the background is paint; the rest may be soft edge.
        away = ((work - background) ** 2).sum(-1)[patch]
        paint = np.median(work[patch][away >= np.median(away)], axis=0)
        spent = taken[colour]
        evidence = _gather(work, background, paint, patch, solid & (labels != colour), spent)
        outline = _explain(evidence)
        tried |= patch
        if outline is None or outline.score < min_score:
            continue
        found.append((outline, colour, paint))
        # What is left around it is its own soft edge, unless it belongs to a solid neighbour.
        near = _coverage(outline, labels.shape, grow=1.5) > 0.5
        waiting[near & ((labels == colour) | ~solid)] = -1
        taken[colour] |= near
    return _assemble(found, work, factor, pixels.shape[:2])


def _levels(image: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < 32:
        raise UserError(f"oracle: image of shape {image.shape}: give (h, w, 3), sides from 32")
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    if not np.issubdtype(image.dtype, np.floating):
        raise UserError(f"oracle: image of type {image.dtype}: give uint8, or float in [-1, 1]")
    return to_levels(np.clip(np.nan_to_num(image), -1, 1).astype(np.float32))


def _block_mean(pixels: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return pixels
    height, width = (-(-side // factor) for side in pixels.shape[:2])
    extra = (height * factor - pixels.shape[0], width * factor - pixels.shape[1])
    padded = np.pad(pixels, ((0, extra[0]), (0, extra[1]), (0, 0)), mode="edge")
    return padded.reshape(height, factor, width, factor, -1).mean((1, 3))


def _fit_background(work: np.ndarray) -> Float[np.ndarray, "h w 3"] | None:
    """A plane per channel through what looks like the border; None if little does."""
    height, width = work.shape[:2]
    y, x = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float32)
    basis = np.stack([np.ones_like(x), x / width - 0.5, y / height - 0.5], 1)
    values = work.reshape(-1, 3)
    border = np.concatenate([work[:2].reshape(-1, 3), work[-2:].reshape(-1, 3)])
    sides = np.concatenate([work[:, :2].reshape(-1, 3), work[:, -2:].reshape(-1, 3)])
    plane = np.median(np.concatenate([border, sides]), axis=0)[None]
    for reach in (60.0, 45.0, 35.0):
        offset = values - plane
        inside = np.einsum("pc,pc->p", offset, offset) < reach * reach
        if np.count_nonzero(inside) < 0.2 * len(values):
            return None
        kept = basis[inside]
        gram = kept.T @ kept + 1e-3 * np.eye(3, dtype=np.float32)
        plane = basis @ np.linalg.solve(gram, kept.T @ values[inside])
    return plane.reshape(work.shape).astype(np.float32)


def _label_colours(work: np.ndarray, background: np.ndarray) -> Int[np.ndarray, "h w"]:
    """The palette colour of each pixel, in its best light; −1 for background and unknown."""
    squares = (_PALETTE * _PALETTE).sum(1)
    light = np.clip(work @ _PALETTE.T / squares, 0.7, 1.12)
    offset = work[:, :, None, :] - light[..., None] * _PALETTE
    distance = np.einsum("hwkc,hwkc->hwk", offset, offset)
    labels = distance.argmin(-1)
    unknown = distance.min(-1) > _COLOUR_REACH**2
    away = ((work - background) ** 2).sum(-1)
    labels[unknown | (away < _FOREGROUND**2)] = -1
    return labels


def _shifted(array: np.ndarray, fill: int) -> list[np.ndarray]:
    """The four neighbours of every pixel."""
    padded = np.pad(array, 1, constant_values=fill)
    return [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]


def _solid(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of patches at least three wide: objects, not the soft edges between them."""
    core = np.logical_and.reduce([near == labels for near in _shifted(labels, -2)])
    marked = np.where(core, labels, -1)
    beside = np.logical_or.reduce([near == labels for near in _shifted(marked, -1)])
    return (labels >= 0) & (core | beside)


def connected_components(labels: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Number the 4-connected patches of equal label.

    Every pixel repeatedly takes the least number among its like neighbours and jumps to that
    number's own (Shiloach and Vishkin, 1982): a patch settles in about as many rounds as the
    logarithm of its length.

    Args:
        labels: any integers.

    Returns:
        For each pixel the flat index of its patch's first pixel.
    """
    numbers = np.arange(labels.size).reshape(labels.shape)
    across, down = labels[:, 1:] == labels[:, :-1], labels[1:] == labels[:-1]
    while True:
        before = numbers
        numbers = numbers.copy()
        for like, one, other in (
            (across, np.s_[:, 1:], np.s_[:, :-1]),
            (down, np.s_[1:], np.s_[:-1]),
        ):
            for here, there in ((one, other), (other, one)):
                least = np.where(like, numbers[there], labels.size)
                numbers[here] = np.minimum(numbers[here], least)
        numbers = numbers.ravel()[numbers]
        if np.array_equal(numbers, before):
            return numbers


def _largest_patch(labels: Int[np.ndarray, "h w"]) -> tuple[Bool[np.ndarray, "h w"], int]:
    numbers = connected_components(labels)
    counts = np.bincount(numbers[labels >= 0], minlength=1)
    first = int(counts.argmax())
    return (numbers == first) & (labels >= 0), int(labels.flat[first]) if counts[first] else -1


def _grown(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return np.logical_or.reduce([mask, *_shifted(mask, 0)])


def _gather(
    work: np.ndarray,
    background: np.ndarray,
    paint: np.ndarray,
    patch: np.ndarray,
    others: np.ndarray,
    spent: np.ndarray,
) -> _Evidence:
    """Read every pixel as a mixture of the background and a patch's paint.

    Pixels under `others`, objects of another colour, do not count; those `spent` on an object of
    the same colour count against.
    """
    span = paint - background
    offset = work - background
    share = np.clip((offset * span).sum(-1) / (span * span).sum(-1), 0, 1)
    rest = offset - share[..., None] * span
    mixed = (rest * rest).sum(-1) < _MIX_REACH**2
    share = np.where(mixed & ~(spent & ~patch), share, 0.0).astype(np.float32)
    unsure = others | (_grown(others) & ~mixed)
    weight = np.where(unsure, 0.0, np.where(mixed, 1.0, 0.5)).astype(np.float32)
    return _Evidence(share, np.where(_grown(patch), share, 0.0).astype(np.float32), weight)


@functools.lru_cache(maxsize=8)
def _spectra(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every shape at every radius, centred on pixel (0, 0) of a torus.

    Returns:
        Conjugate spectra `(shapes, radii, h, w // 2 + 1)`, areas `(shapes, radii)`, and the centres
        `(radii, h, w)` at which an outline stays in the picture.
    """
    down, across = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)
    radii = _RADII * min(height, width)
    bank = np.array(
        [
            [np.clip(0.5 - r * signed_distance(shape, across / r, down / r), 0, 1) for r in radii]
            for shape in SHAPES
        ],
        np.float32,
    )
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    room = 0.8 * radii[:, None]
    inside = (np.minimum(rows, height - rows) >= room)[:, :, None] & (
        np.minimum(columns, width - columns) >= room
    )[:, None, :]
    return np.conj(np.fft.rfft2(bank)).astype(np.complex64), bank.sum((2, 3)), inside


def _explain(evidence: _Evidence) -> _Outline | None:
    """The outline that agrees best with a patch."""
    step = 2 if min(evidence.share.shape) >= 48 else 1
    share, patch, weight = (_block_mean(m[..., None], step)[..., 0] for m in evidence)
    height, width = share.shape
    spectra, areas, inside = _spectra(height, width)
    maps = np.stack([weight * share, weight * (1 - share), weight * patch])
    transformed = np.fft.rfft2(maps).astype(np.complex64)
    agree, against, covered = np.fft.irfft2(transformed[:, None, None] * spectra, s=(height, width))
    scores = agree / (agree + against + np.maximum(maps[2].sum() - covered, 0) + 1e-6)
    seen = (agree + against) / areas[:, :, None, None]
    scores[(seen < _MIN_SEEN) | ~inside] = 0
    best = scores.reshape(len(SHAPES), -1)
    tops = best.max(1)
    starts = []
    for k in np.flatnonzero((tops >= tops.max() - _SHORTLIST) & (tops > 0.3)):
        r, y, x = np.unravel_index(best[k].argmax(), scores.shape[1:])
        radius = float(_RADII[r] * min(height, width)) * step
        starts.append(
            _Outline(SHAPES[k], (int(x) + 0.5) * step, (int(y) + 0.5) * step, radius, 0.0)
        )
    outlines = [_refine(start, evidence, step, blurred=False) for start in starts]
    if outlines and max(outlines, key=_by_score).score < _SHARP:
        outlines += [_refine(start, evidence, step, blurred=True) for start in outlines]
    return max(outlines, key=_by_score, default=None)


def _by_score(outline: _Outline) -> float:
    return outline.score


_MOVES = np.array([(x, y, r) for x in (-1, 0, 1) for y in (-1, 0, 1) for r in (-1, 0, 1)])


def _blur(stack: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """The 1-2-1 filter along both axes; nothing lies beyond the border."""
    padded = np.pad(stack, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16


def _refine(start: _Outline, evidence: _Evidence, step: float, blurred: bool) -> _Outline:
    """Climb to the best place and radius by ever smaller moves, for a sharp or a soft picture."""
    height, width = evidence.share.shape
    reach = 1.3 * start.radius + 2 * step + 1
    rows = slice(max(int(start.y - reach), 0), min(int(start.y + reach) + 1, height))
    columns = slice(max(int(start.x - reach), 0), min(int(start.x + reach) + 1, width))
    share, patch, weight = (m[rows, columns].ravel() for m in evidence)
    outside = float((evidence.patch * evidence.weight).sum() - (patch * weight).sum())
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5))[columns]
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5))[rows, None]

    def judge(moves: np.ndarray) -> np.ndarray:
        left, top, radii = moves.T[:, :, None, None]
        distance = signed_distance(start.shape, (x - left) / radii, (y - top) / radii)
        cover = np.clip(0.5 - distance * (radii / EDGE), 0, 1)
        if blurred:
            cover = _blur(cover)
        cover = cover.reshape(len(moves), -1)
        agree = np.minimum(cover, share) @ weight
        union = np.maximum(cover, patch) @ weight + outside
        hidden = 1 - (cover @ weight) / np.maximum(cover.sum(1), 1e-6)
        return agree / union - _HIDDEN_COST * hidden

    now = np.array([start.x, start.y, start.radius], np.float32)
    best = -1.0
    size = 0.7 * step
    while size > 0.15:
        moves = (now + size * _MOVES).astype(np.float32)
        scores = judge(moves)
        top = int(scores.argmax())
        if scores[top] > best + 1e-4:
            best, now = float(scores[top]), moves[top]
        else:
            size *= 0.5
    return _Outline(start.shape, float(now[0]), float(now[1]), float(now[2]), best)


def _coverage(
    outline: _Outline, shape: tuple[int, ...], scale: int = 1, grow: float = 0.0
) -> np.ndarray:
    """How much of each pixel an outline covers, in a picture `scale` times the working one."""
    radius = outline.radius * scale
    u = (np.arange(shape[1], dtype=np.float32) + 0.5 - outline.x * scale) / radius
    v = (np.arange(shape[0], dtype=np.float32) + 0.5 - outline.y * scale) / radius
    distance = signed_distance(outline.shape, u[None, :], v[:, None]) * radius
    return np.clip(0.5 - (distance - grow) / EDGE, 0, 1)


def _assemble(
    found: Sequence[tuple[_Outline, int, np.ndarray]],
    work: np.ndarray,
    factor: int,
    shape: tuple[int, ...],
) -> list[Detection]:
    """Sort outlines back to front by who owns their overlaps, and cut the hidden parts away."""
    inside = [_coverage(outline, work.shape) >= 0.5 for outline, _, _ in found]

    def behind(i: int, j: int) -> bool:
        both = work[inside[i] & inside[j]]
        if len(both) < 2:
            return False
        mine, other = (((both - found[k][2]) ** 2).sum(-1) for k in (i, j))
        return bool((other < mine).mean() > 0.5)

    order: list[int] = []
    left = list(range(len(found)))
    while left:
        free = [i for i in left if not any(behind(j, i) for j in left if j != i)]
        order.append((free or left)[0])
        left.remove(order[-1])

    covered = np.zeros(shape, bool)
    detections = []
    for i in reversed(order):
        outline, colour, _ = found[i]
        whole = _coverage(outline, shape, factor) >= 0.5
        mask = whole & ~covered
        covered |= whole
        if not mask.any():
            continue
        x, y, radius = outline.x * factor, outline.y * factor, outline.radius * factor
        detections.append(
            Detection(
                outline.shape,
                COLOURS[colour],
                boxes_of(mask[None])[0],
                mask,
                place_keypoints(outline.shape, x, y, radius, mask),
                (x, y),
                radius,
                float(mask.sum() / whole.sum()),
                max(0.0, outline.score),
            )
        )
    return detections[::-1]


# --------------------------------------------------------------------------------- summary


def summary(images: Iterable[np.ndarray]) -> dict[str, float | dict[str, float] | None]:
    """What the oracle sees in a set of pictures.

    Args:
        images: pictures as `detect` takes them.

    Returns:
        `images`: how many; `recognised`: share with at least one object; `objects`: mean number of
        objects; `score`: mean agreement of the objects found (None if none); `shapes` and
        `colours`: share of each among the objects found.
    """
    seen = [detect(image) for image in images]
    every = [detection for detections in seen for detection in detections]
    count = max(len(every), 1)
    return {
        "images": float(len(seen)),
        "recognised": sum(map(bool, seen)) / max(len(seen), 1),
        "objects": len(every) / max(len(seen), 1),
        "score": float(np.mean([one.score for one in every])) if every else None,
        "shapes": {s: sum(one.shape == s for one in every) / count for s in SHAPES},
        "colours": {c: sum(one.colour == c for one in every) / count for c in COLOURS},
    }
