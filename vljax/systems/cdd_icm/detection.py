"""What finds objects in pictures of dialogues: the oracle of scenes, or a localiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from vljax.data.benchmarks import Benchmark
from vljax.errors import UserError
from vljax.metrics.layout import GenevaScore, Layout, geneva_score, layout_of
from vljax.models.localizer import GridLocalizer, ObjectLocalizer, localizer_pixels
from vljax.ops.parts import filled_batches
from vljax.ops.pixels import to_unit
from vljax.pretrained import assign, read_tensors
from vljax.systems.cdd_icm.method import Dialogues

Pictures = UInt8[np.ndarray, "m n h w 3"]


@dataclass(frozen=True)
class Detector:
    """What finds objects in pictures.

    Attributes:
        name: What it is.
        see: The layouts of pictures [n h w 3].
        detect: A picture's objects with their outlines; None where only layouts are known.
    """

    name: str
    see: Callable[[UInt8[np.ndarray, "n h w 3"]], list[Layout]]
    detect: Callable[[UInt8[np.ndarray, "h w 3"]], Sequence[Any]] | None = None

    def layouts(self, pictures: Pictures, lengths: np.ndarray) -> list[list[Layout]]:
        """Of every turn of every dialogue."""
        valid = np.arange(pictures.shape[1]) < lengths[:, None]
        found = iter(self.see(pictures[valid]))
        return [[next(found) for _ in range(length)] for length in lengths]

    def score(
        self, pictures: Pictures, meant: list[list[Layout]], given: Dialogues
    ) -> list[list[GenevaScore]]:
        """Every turn's agreement with the true picture."""
        found = self.layouts(pictures, given.lengths)
        return [
            [geneva_score(one, other) for one, other in zip(f, m, strict=True)]
            for f, m in zip(found, meant, strict=True)
        ]


def open_detector(
    benchmark: Benchmark, localizer: str | None, batch_size: int, own: GridLocalizer | None
) -> Detector | None:
    """GeNeVA's localiser where its weights are given, else the data's oracle, the run's own, None.

    Args:
        benchmark: The data.
        localizer: The file of its weights.
        batch_size: Of the pictures that it sees at a time.
        own: The run's own localiser.

    Raises:
        UserError: the weights cannot be read, or are of other classes.
    """
    classes = len(benchmark.classes)
    if localizer is not None:
        return Detector("GeNeVA's localiser", open_localizer(localizer, batch_size, classes))
    oracle = benchmark.oracle
    if oracle is None:
        return Detector("the run's own localiser", seer(own, batch_size)) if own else None
    found: dict[bytes, Sequence[Any]] = {}

    def detect(picture: UInt8[np.ndarray, "h w 3"]) -> Sequence[Any]:
        # Every table looks at the same pictures.
        key = picture.tobytes()
        if key not in found:
            found[key] = oracle.detect(picture)
        return found[key]

    def see(pictures: UInt8[np.ndarray, "n h w 3"]) -> list[Layout]:
        return [layout_of(detect(one), classes, one.shape[:2]) for one in pictures]

    return Detector("the oracle", see, detect)


def open_localizer(
    path: str, batch_size: int, classes: int
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], list[Layout]]:
    """GeNeVA's detector and localiser as what sees layouts; of CoDraw x and depth count.

    Args:
        path: The file of its weights.
        batch_size: Of the pictures that it sees at a time.
        classes: How many the data have; 0 where they do not tell.

    Raises:
        UserError: the file cannot be read, is none of GeNeVA's, or of so many classes.
    """
    tensors = ObjectLocalizer.published_names(read_tensors(path))
    sizes = [len(tensors.get(f"{part}.1.bias", ())) for part in ("detector", "localizer")]
    if not sizes[0] or sizes[1] % sizes[0]:
        raise UserError(
            f"--localizer={path}: holds no detector and localizer as GeNeVA's do; give "
            "iclevr_inception_best_checkpoint.pth or codraw_inception_best_checkpoint.pth"
        )
    if classes and sizes[0] != classes:
        raise UserError(
            f"--localizer={path}: knows {sizes[0]} classes, the data have {classes}; give the "
            "file of their own localizer"
        )
    skeleton = jax.eval_shape(
        lambda: ObjectLocalizer(sizes[0], sizes[1] // sizes[0], rngs=nnx.Rngs(0))
    )
    model = jax.tree.map(jnp.asarray, assign(skeleton, tensors, origin=path))
    return seer(model, batch_size)


def seer(
    model: ObjectLocalizer | GridLocalizer, batch_size: int
) -> Callable[[UInt8[np.ndarray, "n h w 3"]], list[Layout]]:
    """A localiser as what sees layouts.

    Args:
        model: GeNeVA's, or the run's own.
        batch_size: Of the pictures that it sees at a time.
    """
    published = isinstance(model, ObjectLocalizer)
    prepare, least = (localizer_pixels, 0.5) if published else (to_unit, 0.0)
    run = jax.jit(lambda model, images: model(images))

    def see(pictures: UInt8[np.ndarray, "n h w 3"]) -> list[Layout]:
        layouts: list[Layout] = []
        for part in filled_batches(len(pictures), batch_size):
            found, places = run(model, prepare(pictures[part]))
            centres = np.asarray(places, np.float64)[..., [0, -1]]
            layouts += map(Layout, np.asarray(found) > least, centres)
        return layouts[: len(pictures)]

    return see
