"""Images a second out of the input pipeline, printed: `pytest -m benchmark -s`."""

import time

import numpy as np
import pytest
from PIL import Image

from vljax.data import pipeline
from vljax.data.pictures.images import image_transform
from vljax.data.pictures.sources import ImageFolder
from vljax.data.scenes import Scenes

pytestmark = pytest.mark.benchmark


def photographs(folder, suffix, number=128, side=256):
    """Pictures with a photograph's share of smooth areas and detail."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 6, (side, side, 1))
        image = Image.fromarray(np.uint8(np.clip(smooth + grain, 0, 255)))
        image.save(folder / f"{i:05d}{suffix}", **({"quality": 90} if suffix == ".jpg" else {}))
    return ImageFolder(folder)


def images_per_second(source, workers, seconds=4.0, batch_size=32):
    """Steady rate: the workers' start and the first, prefetched batches are not counted."""
    with pipeline.batches(
        source,
        batch_size=batch_size,
        seed=0,
        transform=image_transform(64, flip=True),
        num_workers=workers,
    ) as iterator:
        for _ in range(2 + 4 * workers):
            next(iterator)
        begin, number = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            number += len(next(iterator)["image"])
        return number / (time.perf_counter() - begin)


@pytest.mark.parametrize("kind", [".jpg", ".png", "scenes"])
def test_images_per_second(tmp_path, kind, capsys):
    source = Scenes() if kind == "scenes" else photographs(tmp_path / "photographs", kind)
    rates = {workers: images_per_second(source, workers) for workers in (0, 2)}
    begin, number = time.perf_counter(), 0
    transform, rng = image_transform(64), np.random.default_rng(0)
    while time.perf_counter() < begin + 2:
        transform(source[number % len(source)], rng)
        number += 1
    alone = number / (time.perf_counter() - begin)
    name = "Scenes, 64 px" if kind == "scenes" else f"256 px {kind[1:]} folder to 64 px"
    with capsys.disabled():
        print(
            f"\n{name}: {rates[0]:.0f} images/s with threads, {rates[2]:.0f} with 2 workers; "
            f"a plain loop {alone:.0f}"
        )
    # Batching, ordering and prefetching must not cost more than they bring.
    assert max(rates.values()) > 0.5 * alone


def test_scenes_are_made_fast():
    source = Scenes(size=400, fields=("image",))
    source[0]
    best = np.inf
    for _ in range(3):
        begin = time.process_time()
        for i in range(100):
            source[i]
        best = min(best, time.process_time() - begin)
    assert 100 / best > 700  # thousands on a core of its own, less beside busy neighbours
