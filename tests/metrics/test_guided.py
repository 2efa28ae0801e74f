"""The judge of guided pictures, with networks that can be followed by eye; the oracle's verdict."""

import jax.numpy as jnp
import numpy as np
import pytest

from vljax.data.scenes import Scenes, render
from vljax.data.scenes.oracle import truth
from vljax.metrics.diversity import Distance
from vljax.metrics.guided import Judge, attribute_accuracy

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 256, (110, 4, 4, 3), np.uint8)


def embed(pixels):
    """The mean colour's direction from grey."""
    return jnp.asarray(pixels, jnp.float32).mean((1, 2)) - 127.5


def plain(*colours):
    """One picture of each colour."""
    return np.stack([np.full((4, 4, 3), colour, np.uint8) for colour in colours])


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GUIDES = embed(plain(RED, GREEN, BLUE))


def test_pictures_that_are_their_guidance_are_always_found():
    judge = Judge(embed, REAL, batch_size=16)
    made = np.stack([plain(colour, colour) for colour in (RED, GREEN, BLUE)])
    columns = judge.columns(made, GUIDES, texts=True)
    assert [columns[f"top{k}"] for k in (1, 5, 10, 20)] == [1, 1, 1, 1]
    assert columns["R-precision"] == 1
    assert columns["CLIP score"] == pytest.approx(2.5, rel=1e-5)
    assert columns["diversity"] == pytest.approx(0, abs=1e-6)
    assert columns["FID"] > 1000
    others = judge.columns(np.roll(made, 1, axis=0), GUIDES, texts=True)
    assert others["R-precision"] == 0
    assert others["FID"] == pytest.approx(columns["FID"])
    assert others["CLIP score"] < 1


def test_pictures_differ_within_their_guidance_only():
    judge = Judge(embed, REAL)
    made = np.stack([plain(colour, (128, 128, 255)) for colour in (RED, GREEN)])
    seen = embed(made.reshape(-1, 4, 4, 3))
    lengths = np.linalg.norm(seen, axis=-1)
    expected = [1 - seen[i] @ seen[i + 1] / lengths[i] / lengths[i + 1] for i in (0, 2)]
    columns = judge.columns(made, GUIDES[:2], texts=False)
    assert columns["diversity"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert "CLIP score" not in columns
    assert "R-precision" not in columns


def test_real_pictures_are_at_no_distance_from_themselves():
    judge = Judge(embed, REAL, batch_size=7)
    columns = judge.columns(REAL.reshape(55, 2, 4, 4, 3), embed(REAL[::2]), texts=False)
    assert columns["FID"] == pytest.approx(0, abs=1e-6)


def test_notes_say_who_judges():
    stand_in = Judge(embed, REAL, name="the clean CLIP")
    assert stand_in.notes == {
        "FID": "stand-in: features of the clean CLIP",
        "diversity": "1 − cosine of the clean CLIP (stand-in for LPIPS)",
        "retrieval": "the clean CLIP, top k among 99 other real pictures",
    }
    distance = Distance("absolute", lambda x: x, lambda a, b: jnp.abs(a - b).mean((1, 2, 3)))
    told = Judge(embed, REAL, inception=lambda x: embed(x)[:, :2], distance=distance)
    assert (told.notes["FID"], told.notes["diversity"]) == ("Inception-v3", "absolute")
    # Distances are between pictures from -1 to 1, the FID between the network's features.
    columns = told.columns(plain(RED, BLUE)[None], GUIDES[:1], texts=False)
    assert columns["diversity"] == pytest.approx(4 / 3)
    assert (
        columns["FID"] != stand_in.columns(plain(RED, BLUE)[None], GUIDES[:1], texts=False)["FID"]
    )


def test_attribute_accuracy_sees_what_is_there():
    source = Scenes(size=12, image_size=32, max_objects=1, sizes=("large",))
    scenes = [source.scene(i) for i in range(12)]
    pictures = np.stack([render(scene, 32) for scene in scenes])
    classes = [(one.shape, one.colour) for scene in scenes for one in truth(scene, 32)]
    assert attribute_accuracy(pictures, classes)["both right"] > 0.9
    shapes = [(shape, "none") for shape, _ in classes]
    told = attribute_accuracy(pictures, shapes)
    assert told["standard error"] == 0
    assert told["shape right"] > 0.9
    assert told["colour right"] == told["both right"] == 0
    assert attribute_accuracy(pictures * 0, classes)["both right"] == 0
