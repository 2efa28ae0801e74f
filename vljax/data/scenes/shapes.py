"""The six shapes of scenes: their outlines and their landmarks."""

import math

import numpy as np
from jaxtyping import Bool, Float

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")

#: Named landmarks of each shape in its own units: radius 1 around the object's place. Tips are
#: taken a little inside the outline, so that a visible keypoint lies on the object's mask.
KEYPOINTS: dict[str, dict[str, tuple[float, float]]] = {
    "circle": {
        "center": (0.0, 0.0),
        "top": (0.0, -0.78),
        "right": (0.78, 0.0),
        "bottom": (0.0, 0.78),
        "left": (-0.78, 0.0),
    },
    "square": {
        "center": (0.0, 0.0),
        "top left": (-0.68, -0.68),
        "top right": (0.68, -0.68),
        "bottom right": (0.68, 0.68),
        "bottom left": (-0.68, 0.68),
    },
    "triangle": {
        "center": (0.0, 0.15),
        "top": (0.0, -0.62),
        "bottom right": (0.7, 0.62),
        "bottom left": (-0.7, 0.62),
    },
    "star": {
        "center": (0.0, 0.08),
        "top": (0.0, -0.61),
        "right": (0.656, -0.133),
        "bottom right": (0.406, 0.638),
        "bottom left": (-0.406, 0.638),
        "left": (-0.656, -0.133),
    },
    "cross": {
        "center": (0.0, 0.0),
        "top": (0.0, -0.76),
        "right": (0.76, 0.0),
        "bottom": (0.0, 0.76),
        "left": (-0.76, 0.0),
    },
    "heart": {
        "center": (0.0, 0.0),
        "top left": (-0.42, -0.5),
        "top right": (0.42, -0.5),
        "notch": (0.0, -0.3),
        "bottom": (0.0, 0.62),
    },
}
MAX_KEYPOINTS = max(len(points) for points in KEYPOINTS.values())

_TRIANGLE_SIDE = (1.70 / math.sqrt(1.70**2 + 0.98**2), 0.98 / math.sqrt(1.70**2 + 0.98**2))
_STAR_TIP, _STAR_NOTCH = 1.05, 0.49
_COS36, _SIN36 = (1 + math.sqrt(5)) / 4, math.sqrt(10 - 2 * math.sqrt(5)) / 4
_COS72, _SIN72 = (math.sqrt(5) - 1) / 4, math.sqrt(10 + 2 * math.sqrt(5)) / 4
_STAR_EDGE = (_STAR_TIP - _STAR_NOTCH * _COS36, _STAR_NOTCH * _SIN36)
_STAR_NORM = math.sqrt(_STAR_EDGE[0] ** 2 + _STAR_EDGE[1] ** 2)
_HEART = 0.78  # side-to-side half width of the heart's lower, square part


def signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far a point lies outside (positive) or inside (negative) a shape's outline.

    Exact near the outline, a lower bound far outside of corners, which is all that edges need.

    Args:
        shape: one of `SHAPES`.
        u: offset to the right of the object's place, in radii. Broadcasts with `v`.
        v: offset below the object's place, in radii.

    Returns:
        Distance in radii, of the broadcast shape.
    """
    if shape == "circle":
        return np.sqrt(u * u + v * v) - 0.92
    u = np.abs(u)
    if shape == "square":
        return np.maximum(u, np.abs(v)) - 0.82
    if shape == "triangle":
        side = u * _TRIANGLE_SIDE[0] - (v + 0.95) * _TRIANGLE_SIDE[1]
        return np.maximum(side, v - 0.75)
    if shape == "star":
        # Folding along two of the star's mirrors brings all ten edges onto one.
        up = 0.08 - v
        beyond = np.maximum(u * _COS72 - up * _SIN72, 0.0)
        u, up = np.abs(u - 2 * _COS72 * beyond), up + 2 * _SIN72 * beyond
        beyond = np.maximum(u * _COS36 - up * _SIN36, 0.0)
        u, up = u - 2 * _COS36 * beyond, up + 2 * _SIN36 * beyond
        return (u * _STAR_EDGE[0] + (up - _STAR_TIP) * _STAR_EDGE[1]) * (1.0 / _STAR_NORM)
    if shape == "cross":
        v = np.abs(v)
        return np.maximum(np.maximum(u, v) - 0.92, np.minimum(u, v) - 0.33)
    if shape == "heart":
        lobe_u, lobe_v = u - 0.5 * _HEART, v + (1.5 * _HEART - 0.86)
        lobe = np.sqrt(lobe_u * lobe_u + lobe_v * lobe_v) - _HEART * math.sqrt(0.5)
        body = (u + np.abs(v + (_HEART - 0.86)) - _HEART) * math.sqrt(0.5)
        return np.minimum(lobe, body)
    raise ValueError(f"unknown shape {shape!r}")


def place_keypoints(
    shape: str, x: float, y: float, radius: float, visible: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "k 3"]:
    """A shape's landmarks in a picture, as COCO writes them.

    Args:
        shape: one of `SHAPES`.
        x: the object's place from the left, in pixels.
        y: the object's place from the top, in pixels.
        radius: its radius in pixels.
        visible: its visible pixels.

    Returns:
        `MAX_KEYPOINTS` rows of `(x, y, flag)` in pixels, in the order of `KEYPOINTS[shape]`. Flag 2
        is a visible point, 1 a hidden one; rows beyond the shape's own are zeros.
    """
    points = np.zeros((MAX_KEYPOINTS, 3), np.float32)
    height, width = visible.shape
    for row, (u, v) in zip(points, KEYPOINTS[shape].values(), strict=False):
        px, py = x + u * radius, y + v * radius
        seen = 0 <= px < width and 0 <= py < height and visible[int(py), int(px)]
        row[:] = px, py, 2 if seen else 1
    return points
