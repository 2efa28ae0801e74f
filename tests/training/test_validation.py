"""Validation chooses the model: kept, set back, the rate halved, the stage ended; also resumed."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tests.training.conftest import Runs
from vljax.config import get_base_config
from vljax.errors import UserError
from vljax.models.parameters import named_parameters
from vljax.training.loop import make_program, train
from vljax.training.mesh import make_mesh
from vljax.training.optimizer import get_optimizer_config, make_optimizer
from vljax.training.preemption import Preemption
from vljax.training.stage import Stage
from vljax.training.validation import decide, selection_of
from vljax.training.workdir import Workdir

MESH = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))


class Place(nnx.Module):
    """One number, learnt to be 10 by steps of one; examples to validate by say 3.4."""

    def __init__(self):
        self.place = nnx.Param(jnp.float32(0.0))


class Truth:
    def __init__(self, place):
        self.place = np.float32(place)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"truth": self.place}


def loss(model, batch, key):
    error = jnp.abs(model.place[...] - batch["truth"]).mean()
    return error, {"place": model.place[...], "chance": jax.random.uniform(key)}


def make_stage(**optimizer):
    # The steps of Adam without memory are of the rate's size.
    fields = {"b1": 0.0, "b2": 0.0, "schedule": "validation", "decay_every": 2}
    fields |= {"learning_rate": 1.0, "decay_factor": 0.5, "patience": 3}
    config = ConfigDict(
        {
            "batch_size": 2,
            "num_steps": 60,
            "accumulate": 1,
            "ema_decay": 0.0,
            "optimizer": get_optimizer_config(name="adam", **{**fields, **optimizer}),
        }
    )
    trained = [("place", 1.0)]
    return Stage(
        *("place", loss, trained, Truth(10), lambda example, rng: example, config),
        validation=Truth(3.4),
    )


def run(folder, stage=None):
    stage = stage or make_stage()
    config = get_base_config("sdg")
    config.checkpoint.every = 1
    config.log.every = 1
    skeleton = jax.eval_shape(Place)
    program = make_program(stage, skeleton, config, MESH)
    workdir = Workdir(folder, config, config)
    parameters = jax.tree.map(jnp.asarray, named_parameters(Place()))
    with Preemption() as preemption:
        where = {"mesh": MESH, "config": config, "workdir": workdir, "preemption": preemption}
        return train(stage, program, skeleton, parameters, **where)["place"]


def test_the_best_is_restored_the_rate_halved_and_the_stage_ends(tmp_path):
    """From 0 by ones, two a validation; then by halves and quarters from the best so far."""
    place = run(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = [ConfigDict(json.loads(line)) for line in lines if "validation_loss" in line]
    seen = [(one.step, round(one.validation_loss, 3), one.rate, one.restorations) for one in told]
    # 2 (1.4 off), 4 (0.6), 6 (2.6: back to 4), 5 (1.6: back), 4.5 (1.1: back, the third).
    assert seen == [
        (2, 1.4, 1.0, 0.0),
        (4, 0.6, 1.0, 0.0),
        (6, 2.6, 0.5, 1.0),
        (8, 1.6, 0.25, 2.0),
        (10, 1.1, 0.125, 3.0),
    ]
    np.testing.assert_allclose(place, 4.0, atol=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    """Killed between two validations, after one that set the model back; and after its end."""
    whole = run(tmp_path / "whole")
    stage = make_stage()
    reads = []

    def counted(example, rng):
        reads.append(1)
        if len(reads) > 32:
            raise KeyboardInterrupt
        return example

    stopping = Stage(**{**vars(stage), "transform": counted})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stopping)
    assert run(tmp_path / "killed") == whole
    assert run(tmp_path / "killed") == whole

    def validated(folder):
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [line.split('"validation_loss"')[1] for line in lines if "validation_loss" in line]

    assert validated("killed") == validated("whole")


def test_what_is_decided():
    optimizer = make_optimizer(make_stage().config.optimizer, 60, {"place": 1.0})
    parameters = {"place": jnp.float32(1.0)}
    state = optimizer.init(parameters)
    kept, state = decide(parameters, state, jnp.float32(0.5), 0.5)
    assert kept["place"] == 1.0
    other = {"place": jnp.float32(2.0)}
    for value in (0.5, np.nan, np.inf):  # none is lower
        back, state = decide(other, state, jnp.float32(value), 0.5)
        assert back["place"] == 1.0
    selection = selection_of(state)
    assert (selection.loss, selection.rate, selection.restorations) == (0.5, 0.125, 3)
    updates, _ = optimizer.update({"place": jnp.float32(1.0)}, state, parameters, value=1.0)
    np.testing.assert_allclose(updates["place"], -0.125, rtol=1e-5)


def test_stages_that_cannot_be_validated():
    for change, reason in (
        ({"validation": None}, "no validation examples"),
        ({"ema": 0.9}, "needs stages.place.ema_decay=0"),
        ({"decay_every": 0}, "decay_every=0"),
        ({"patience": 0}, "patience=0"),
    ):
        stage = make_stage(**{n: v for n, v in change.items() if n in ("decay_every", "patience")})
        if "ema" in change:
            stage.config.ema_decay = change["ema"]
        if "validation" in change:
            stage = Stage(**{**vars(stage), "validation": None})
        with pytest.raises(UserError, match=reason):
            make_program(stage, jax.eval_shape(Place), get_base_config("sdg"), MESH)


VALIDATED = (
    *("--config", "configs/cdd_icm_iclevr.py"),
    "--config.with_icm_guidance=False",
    "--config.model.features=16",
    "--config.model.diffusion.model_channels=8",
    "--config.model.diffusion.norm_groups=4",
    "--config.model.diffusion.num_head_channels=8",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.model.clip.embed_dim=16",
    "--config.model.clip.vision_width=16",
    "--config.model.clip.vision_layers=1",
    "--config.model.clip.text_width=16",
    "--config.model.clip.text_layers=1",
    "--config.model.clip.head_channels=8",
    "--config.data.scenes.size=8",
    *(f"--config.stages.{stage}.batch_size=4" for stage in ("clip", "icm", "cdd")),
    *(f"--config.stages.{stage}.optimizer.warmup_steps=0" for stage in ("clip", "icm", "cdd")),
    *(f"--config.stages.{stage}.num_steps=1" for stage in ("clip", "cdd")),
    "--config.stages.icm.num_steps=400",
    "--config.stages.icm.optimizer.schedule=validation",
    "--config.stages.icm.optimizer.decay_every=3",
    "--config.stages.icm.optimizer.decay_factor=0.5",
    "--config.stages.icm.optimizer.patience=30",
    "--config.samples.count=1",
    "--config.samples.steps=1",
    "--config.log.every=1",
    "--config.checkpoint.every=2",
)


@pytest.mark.slow
def test_two_processes_killed_between_validations_go_on_bit_for_bit(tmp_path):
    runs = Runs(tmp_path / "compiled", VALIDATED)
    runs.elsewhere(tmp_path / "whole", processes=2)
    killed = tmp_path / "killed"
    processes = runs.start(killed, processes=2)
    metrics = killed / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("validation_loss") < 2:
        assert {process.poll() for process in processes} == {None}
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.communicate()
    assert '"cdd"' not in metrics.read_text()
    runs.elsewhere(killed, processes=2)

    def seen(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line.pop("time") and "validation_loss" in line]

    assert seen(killed) == seen(tmp_path / "whole")
    assert seen(killed)[-1]["restorations"] > 0
    for file in (killed / "weights").iterdir():
        assert file.read_bytes() == (tmp_path / "whole" / "weights" / file.name).read_bytes()
