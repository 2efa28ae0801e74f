"""CDD-ICM's own detector and localiser: it learns what the data say, and judges."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.data.pictures.test_geneva import Long
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.localizer import GridLocalizer
from vljax.ops.pixels import to_unit
from vljax.systems import cdd_icm
from vljax.systems.cdd_icm import detection, evaluation, model, training
from vljax.systems.cdd_icm.method import read_dialogues

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("quick_to_compile")


def configured(*flags):
    recipe = ("--config", str(ROOT / "configs" / "cdd_icm_iclevr.py"))
    scenes = ("shapes='circle'", "sizes='large'", "min_objects=2", "max_objects=2", "size=400")
    scenes = (f"--config.data.scenes.{one}" for one in scenes)
    small = ("--config.data.image_size=16", "--config.localizer.width=16")
    return parse_config((*recipe, *scenes, *small, *flags))[0]


class Part(nnx.Module):
    """What the loss takes of a whole model."""

    def __init__(self, localizer):
        self.localizer = localizer


def test_it_learns_what_is_there_and_where():
    config = configured()
    stage = cdd_icm.stages(config)[-1]
    assert stage.name == "localizer"
    rng = np.random.default_rng(0)
    examples = [stage.transform(stage.source[i], rng) for i in range(400)]
    data = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    part = Part(GridLocalizer(**config.localizer, rngs=nnx.Rngs(0)))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(part, state, batch):
        gradient, told = jax.grad(stage.loss, has_aux=True)(part, batch, jax.random.key(0))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(part, updates), state, told

    state = optimizer.init(part)
    for _ in range(300):
        some = rng.integers(0, 400, 32)
        part, state, _ = step(part, state, {name: data[name][some] for name in data})
    given = read_dialogues(config, 20)
    row = evaluation._localization(part.localizer, given, 16)
    assert row.values["n"] == 40
    # Without having learnt, one of four kinds is right by chance, a third of a picture away.
    assert row.values["F1 (mean)"] > 75
    assert row.values["distance"] < 0.1
    seer = detection.seer(part.localizer, 7)
    (one,) = seer(given.pictures[3, 1][None])
    logits, places = part.localizer(to_unit(given.pictures[3, 1][None]))
    np.testing.assert_array_equal(one.present, np.asarray(logits[0]) > 0)
    np.testing.assert_allclose(one.centres, places[0], atol=1e-6)


def test_depth_is_a_place_as_well():
    example, classes = Long()[1], 2
    config = configured("--config.localizer.coordinates=3", f"--config.localizer.classes={classes}")
    seen = training.shown_transform(config)(example, np.random.default_rng(0))
    assert seen["places"].shape == (classes, 3)
    np.testing.assert_allclose(seen["places"], [[0.25, 0.25, 1.0]] * 2)
    localizer = GridLocalizer(**config.localizer, rngs=nnx.Rngs(0))
    logits, places = localizer(np.zeros((2, 16, 16, 3), np.float32))
    assert (logits.shape, places.shape) == ((2, classes), (2, classes, 3))
    for wrong in (classes + 1, classes - 1):
        other = configured(f"--config.localizer.classes={wrong}")
        with pytest.raises(UserError, match=f"localizer.classes={wrong}.*the data have {classes}"):
            training.shown_transform(other)(example, np.random.default_rng(0))


def test_who_judges():
    assert model.has_localizer(configured())
    own = GridLocalizer(48, 2, 16, rngs=nnx.Rngs(0))

    class Strange:
        classes, oracle = (), None

    assert detection.open_detector(Strange(), None, 4, own).name == "the run's own localiser"
    assert detection.open_detector(Strange(), None, 4, None) is None
    with pytest.raises(UserError, match=r"localizer.width=24: give a multiple of 16"):
        GridLocalizer(48, 2, 24, rngs=nnx.Rngs(0))
