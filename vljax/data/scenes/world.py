"""The small world behind `vljax.data.scenes`: what a scene is and how it looks.

A `Scene` is a background and one to five flat, upright objects, each a shape in a colour, of a
size, at a place, stacked back to front. Everything about its picture follows from it by pure
functions: `render`, `masks`, `boxes`, `keypoints`, `relations`. `draw_scene` invents one.

Places and radii are fractions of the picture's side, x to the right and y downwards, so that a
scene has the same look at any size. Only additions, products, minima, maxima and square roots
touch pixels, and all chance comes from 64-bit integers: a scene and its picture are the same bytes
on every machine.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vljax.data.scenes.draws import Draws
from vljax.data.scenes.shapes import (
    MAX_KEYPOINTS,
    SHAPES,
    place_keypoints,
    signed_distance,
)

COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SIZES = ("small", "large")
BACKGROUNDS = ("light", "dark")

#: Every kind of object. Class `i` is shape `i // len(COLOURS)` in colour `i % len(COLOURS)`.
CLASSES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
_ALL_CLASSES = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)

#: Words each of which is true of something in a picture, or is not.
LABELS = (*COLOURS, *SHAPES, *BACKGROUNDS)

#: The cells of a three-by-three grid over a picture, row by row.
PLACES = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)

#: The six ways in which one object can stand to another. The last two need an overlap.
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of")
#: What `b` is to `a` where `a` is so to `b`.
OPPOSITE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "behind": "in front of",
    "in front of": "behind",
}

#: Red, green, blue of each colour before light and tint.
PALETTE: dict[str, tuple[float, float, float]] = {
    "gray": (128.0, 130.0, 136.0),
    "red": (214.0, 45.0, 48.0),
    "blue": (44.0, 86.0, 226.0),
    "green": (42.0, 158.0, 66.0),
    "brown": (130.0, 76.0, 32.0),
    "purple": (150.0, 52.0, 200.0),
    "cyan": (44.0, 204.0, 216.0),
    "yellow": (248.0, 214.0, 48.0),
}

RADII = {"small": (0.13, 0.155), "large": (0.20, 0.25)}
MAX_OBJECTS = 5

#: Width in pixels over which an outline fades into what lies behind it.
EDGE = 1.25

_RELATION_MARGIN = 0.06  # of the picture: a smaller offset is no "left of"
_OVERLAP_SHARE = 0.04  # of the smaller object: a smaller overlap is no "behind"
_COARSE = 40  # side of the grid on which overlap is judged, the same for every picture size
MARGIN = 0.02  # between an object and the picture's border, and between two of one colour


@dataclasses.dataclass(frozen=True, slots=True)
class Background:
    """A plain ground under a faint, even slope of light.

    Attributes:
        tone: `"light"` or `"dark"`.
        rgb: colour at the picture's middle, 0 to 255.
        slope: change of all three channels from left to right and from top to bottom, in levels.
    """

    tone: str
    rgb: tuple[float, float, float]
    slope: tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class SceneObject:
    """One flat object.

    Attributes:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        x: place from the left, as a fraction of the picture's width.
        y: place from the top, as a fraction of the picture's height.
        radius: half the side of the square that holds it, as a fraction of the picture's side.
        tint: what this object's colour adds to the palette's, in levels.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def label(self) -> int:
        """Index into `CLASSES`."""
        return class_index(self.shape, self.colour)

    @property
    def name(self) -> str:
        """Colour and shape, such as `"red circle"`: unique within a scene."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A background and the objects on it, back to front; no two share shape and colour."""

    background: Background
    objects: tuple[SceneObject, ...]


def class_index(shape: str, colour: str) -> int:
    """Index into `CLASSES` of a shape in a colour."""
    return SHAPES.index(shape) * len(COLOURS) + COLOURS.index(colour)


def class_vector(labels: Iterable[int]) -> Bool[np.ndarray, " classes"]:
    """Which of `CLASSES` are among some labels."""
    present = np.zeros(len(CLASSES), bool)
    present[list(labels)] = True
    return present


def class_coordinates(
    labels: Iterable[int], places: Iterable[tuple[float, float]]
) -> Float[np.ndarray, "classes 2"]:
    """The place `(x, y)` of each class's object, the last of several; NaN where there is none."""
    table = np.full((len(CLASSES), 2), np.nan, np.float32)
    for label, place in zip(labels, places, strict=True):
        table[label] = place
    return table


# ------------------------------------------------------------------------------- geometry


@functools.lru_cache(maxsize=32)
def _pixel_places(image_size: int) -> Float[np.ndarray, " n"]:
    places = (np.arange(image_size, dtype=np.float32) + np.float32(0.5)) / np.float32(image_size)
    places.setflags(write=False)
    return places


def _window(thing: SceneObject, image_size: int) -> tuple[slice, slice]:
    reach = thing.radius * image_size + EDGE
    x, y = thing.x * image_size, thing.y * image_size
    rows = slice(max(int(y - reach), 0), min(int(y + reach) + 1, image_size))
    columns = slice(max(int(x - reach), 0), min(int(x + reach) + 1, image_size))
    return rows, columns


def _distance(thing: SceneObject, image_size: int, rows: slice, columns: slice) -> np.ndarray:
    places = _pixel_places(image_size)
    u = (places[columns] - thing.x) * (1.0 / thing.radius)
    v = (places[rows] - thing.y) * (1.0 / thing.radius)
    return signed_distance(thing.shape, u[None, :], v[:, None])


def _silhouettes(scene: Scene, image_size: int) -> Bool[np.ndarray, "n h w"]:
    """Each object's whole extent, as if nothing stood before it."""
    whole = np.zeros((len(scene.objects), image_size, image_size), bool)
    for mask, thing in zip(whole, scene.objects, strict=True):
        rows, columns = _window(thing, image_size)
        mask[rows, columns] = _distance(thing, image_size, rows, columns) <= 0
    return whole


@functools.lru_cache(maxsize=256)
def _extent(thing: SceneObject) -> int:
    """An object's silhouette on a coarse grid, one bit a cell: overlaps cost one `&`."""
    rows, columns = _window(thing, _COARSE)
    cells = np.zeros((_COARSE, _COARSE), bool)
    cells[rows, columns] = _distance(thing, _COARSE, rows, columns) <= 0
    return int.from_bytes(np.packbits(cells).tobytes(), "big")


# ---------------------------------------------------------------- what follows from a scene


def render(scene: Scene, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Paint a scene, back to front, with edges that fade over `EDGE` pixels.

    Objects are lit from above and darken towards their rim, so that overlapping ones stay apart.

    Args:
        scene: what to paint.
        image_size: side of the picture in pixels.
    """
    places = _pixel_places(image_size) - 0.5
    ground = scene.background
    across, down = ground.slope
    light = places[None, :] * across + places[:, None] * down
    canvas = light[None] + np.array(ground.rgb, np.float32)[:, None, None]
    for thing in scene.objects:
        rows, columns = _window(thing, image_size)
        pixels = thing.radius * image_size
        distance = _distance(thing, image_size, rows, columns)
        alpha = np.clip(0.5 - distance * (pixels / EDGE), 0.0, 1.0)
        rim = 0.8 + 0.2 * np.clip(distance * -6.0, 0.0, 1.0)
        height = (_pixel_places(image_size)[rows] - thing.y) * (1.0 / thing.radius)
        paint = rim * (1.05 - 0.07 * height[:, None])
        keep = 1.0 - alpha
        paint *= alpha
        window = canvas[:, rows, columns]
        for channel, level, tint in zip(window, PALETTE[thing.colour], thing.tint, strict=True):
            channel *= keep
            channel += paint * (level + tint)
    canvas += 0.5
    return np.ascontiguousarray(np.clip(canvas, 0.0, 255.0).astype(np.uint8).transpose(1, 2, 0))


def masks(scene: Scene, image_size: int) -> Bool[np.ndarray, "n h w"]:
    """The visible pixels of each object: at least half covered, by it and by none before it.

    Args:
        scene: the scene; `n` is its number of objects.
        image_size: side of the picture in pixels.
    """
    visible = _silhouettes(scene, image_size)
    covered = np.zeros((image_size, image_size), bool)
    for mask in visible[::-1]:
        mask &= ~covered
        covered |= mask
    return visible


def boxes_of(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 4"]:
    """Tight boxes `(x0, y0, x1, y1)` around masks, in pixels, ends excluded; zeros if empty."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(columns):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def boxes(scene: Scene, image_size: int) -> Float[np.ndarray, "n 4"]:
    """Tight boxes `(x0, y0, x1, y1)` around what is visible of each object, in pixels."""
    return boxes_of(masks(scene, image_size))


def keypoints(scene: Scene, image_size: int) -> Float[np.ndarray, "n k 3"]:
    """Landmarks of every object: `(x, y, flag)` in pixels, as in `place_keypoints`."""
    points = np.zeros((len(scene.objects), MAX_KEYPOINTS, 3), np.float32)
    visible = masks(scene, image_size)
    for i, thing in enumerate(scene.objects):
        place = (thing.x * image_size, thing.y * image_size, thing.radius * image_size)
        points[i] = place_keypoints(thing.shape, *place, visible[i])
    return points


def visibility(objects: Sequence[SceneObject]) -> list[float]:
    """The share of each object's extent that none of those after it hides."""
    shares, covered = [], 0
    for thing in reversed(objects):
        extent = _extent(thing)
        shares.append((extent & ~covered).bit_count() / max(extent.bit_count(), 1))
        covered |= extent
    return shares[::-1]


def shared_extent(a: SceneObject, b: SceneObject) -> int:
    """How much two objects overlap, in cells of a coarse grid that is the same for all pictures."""
    return (_extent(a) & _extent(b)).bit_count()


def relations(scene: Scene) -> dict[tuple[int, int], tuple[str, ...]]:
    """All that is true between every ordered pair of objects.

    Left, right, above and below compare places and need a clear offset. Behind and in front of
    need an overlap, so that the picture shows them. Every pair has at least one relation.

    Returns:
        `{(i, j): names}`: object `i` is `name` object `j`, names from `RELATIONS`, the clearest of
        the directions first.
    """
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    for i, a in enumerate(scene.objects):
        for j, b in enumerate(scene.objects):
            if i == j:
                continue
            across = (abs(a.x - b.x), "left of" if a.x < b.x else "right of")
            down = (abs(a.y - b.y), "above" if a.y < b.y else "below")
            ranked = sorted((across, down), reverse=True)
            names = [name for offset, name in ranked if offset >= _RELATION_MARGIN]
            least = min(_extent(a).bit_count(), _extent(b).bit_count())
            if shared_extent(a, b) > _OVERLAP_SHARE * least:
                names.append("behind" if i < j else "in front of")
            found[i, j] = tuple(names or [ranked[0][1]])
    return found


def grid_cell(thing: SceneObject) -> tuple[int, int]:
    """Column and row of an object's place on a three-by-three grid, 0 to 2."""
    return min(int(thing.x * 3), 2), min(int(thing.y * 3), 2)


def place_name(thing: SceneObject) -> str:
    """Where an object stands on a three-by-three grid: one of `PLACES`."""
    column, row = grid_cell(thing)
    return PLACES[3 * row + column]


# --------------------------------------------------------------------------- inventing one


def draw_background(draws: Draws, tone: str) -> Background:
    """A ground of a tone, with a faint tint and slope of its own."""
    low, high = (222.0, 240.0) if tone == "light" else (26.0, 44.0)
    level = draws.uniform(low, high)
    red, green, blue = (level + draws.uniform(-5, 5) for _ in range(3))
    return Background(tone, (red, green, blue), (draws.uniform(-12, 12), draws.uniform(-12, 12)))


def _apart(a: SceneObject, b: SceneObject) -> bool:
    gap = a.radius + b.radius + MARGIN
    return abs(a.x - b.x) >= gap or abs(a.y - b.y) >= gap


def fits(thing: SceneObject, before: Sequence[SceneObject], min_visible: float) -> bool:
    """Whether an object may stand in front of others.

    It may if it touches none of its own colour, and leaves of each other one at least
    `min_visible` of its extent in sight.
    """
    near = [other for other in before if not _apart(thing, other)]
    if not near:
        return True
    if any(other.colour == thing.colour for other in near):
        return False
    return min(visibility((*before, thing))) >= min_visible


def draw_object(
    draws: Draws,
    shape: str,
    colour: str,
    size: str,
    before: Sequence[SceneObject],
    min_visible: float,
    shrink: float = 1.0,
) -> SceneObject | None:
    """Invent an object in front of others, see `fits`; None where a dozen places do not fit.

    Args:
        draws: the source of chance, of its radius, tint and place.
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: one of `SIZES`.
        before: the objects that are there, back to front.
        min_visible: share of each of them that stays in sight.
        shrink: factor on its radius.
    """
    radius = draws.uniform(*RADII[size]) * shrink
    tint = (draws.uniform(-6, 6), draws.uniform(-6, 6), draws.uniform(-6, 6))
    reach = radius + MARGIN
    for _ in range(12):
        x, y = draws.uniform(reach, 1 - reach), draws.uniform(reach, 1 - reach)
        thing = SceneObject(shape, colour, size, x, y, radius, tint)
        if fits(thing, before, min_visible):
            return thing
    return None


def draw_scene(
    draws: Draws,
    *,
    min_objects: int = 1,
    max_objects: int = MAX_OBJECTS,
    min_visible: float = 0.6,
    classes: Sequence[tuple[str, str]] = _ALL_CLASSES,
    sizes: Sequence[str] = SIZES,
    backgrounds: Sequence[str] = BACKGROUNDS,
) -> Scene:
    """Invent a scene.

    No two objects share shape and colour, none touches one of its own colour, and each keeps
    `min_visible` of its extent in sight. Where a draw of radii leaves no room, all shrink a little.

    Args:
        draws: the source of chance.
        min_objects: least number of objects.
        max_objects: greatest number of objects.
        min_visible: share of each object that stays in sight.
        classes: pairs of shape and colour to choose from.
        sizes: sizes to choose from.
        backgrounds: tones to choose from.
    """
    ground = draw_background(draws, draws.pick(backgrounds))
    count = min_objects + draws.below(max_objects - min_objects + 1)
    chosen = draws.sample(classes, count)
    shrink = 1.0
    while True:
        objects: list[SceneObject] = []
        for shape, colour in chosen:
            name = shape, colour, draws.pick(sizes)
            thing = draw_object(draws, *name, objects, min_visible, shrink)
            if thing is None:
                break
            objects.append(thing)
        if len(objects) == count:
            return Scene(ground, tuple(objects))
        shrink *= 0.96
