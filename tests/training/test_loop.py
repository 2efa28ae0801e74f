"""The training step: what it trains, averages, accumulates and remembers."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from vljax.config import get_base_config
from vljax.errors import RunError, UserError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.training.checkpoint import Checkpoints
from vljax.training.loop import Profile, make_program, train
from vljax.training.mesh import make_mesh
from vljax.training.optimizer import get_optimizer_config
from vljax.training.preemption import Preemption
from vljax.training.stage import Stage
from vljax.training.workdir import Workdir

MESH = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
RUN = ConfigDict({"sharding": ((".*", "fsdp"),), "seed": 0, "data": {"on_corrupt": "stop"}})


class Line(nnx.Module):
    """y = slope · x + offset."""

    def __init__(self):
        self.slope = nnx.Param(jnp.float32(0.5))
        self.offset = nnx.Param(jnp.float32(-1.0))

    def __call__(self, x):
        return self.slope[...] * x + self.offset[...]


class Points:
    """Points on y = 3 x + 1."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = np.float32(index / 32 - 1)
        return {"x": x, "y": np.float32(3 * x + 1)}


def squared_error(model, batch, key):
    error = model(batch["x"]) - batch["y"]
    return (error**2).mean(), {"largest": jnp.abs(error).max()}


def make_stage(
    loss=squared_error, trained=(("slope|offset", 1.0),), memory=None, source=None, **fields
):
    """Gradient descent at a rate of 0.1, as which Adam with so large an ε acts."""
    descent = {"b1": 0.0, "b2": 0.0, "eps": 1e7, "learning_rate": 1e6}
    config = ConfigDict(
        {
            "batch_size": 8,
            "num_steps": 10,
            "accumulate": 1,
            "ema_decay": 0.0,
            "optimizer": get_optimizer_config(name="adam", **descent),
            **fields,
        }
    )
    source = source or Points()
    return Stage("line", loss, trained, source, lambda example, rng: example, config, memory)


def program(*arguments, **named):
    return make_program(make_stage(*arguments, **named), jax.eval_shape(Line), RUN, MESH)


def run(made, steps=1):
    parameters = named_parameters(Line())
    frozen = {n: p for n, p in parameters.items() if n not in made.trained}
    state = made.init({name: parameters[name] for name in made.trained})
    batch = {name: jnp.stack([Points()[i][name] for i in range(8)]) for name in ("x", "y")}
    for _ in range(steps):
        state, metrics = made.step(state, frozen, batch, np.uint32(0))
    return state, metrics, batch


def test_one_step_of_gradient_descent():
    state, metrics, batch = run(program())
    x, error = batch["x"], 0.5 * batch["x"] - 1 - batch["y"]
    gradient = np.array([(2 * error * x).mean(), (2 * error).mean()])
    np.testing.assert_allclose(state.parameters["slope"], 0.5 - 0.1 * gradient[0], rtol=1e-5)
    np.testing.assert_allclose(state.parameters["offset"], -1 - 0.1 * gradient[1], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-5)
    assert state.step == 1
    assert state.average == {}


def test_only_what_the_stage_trains_changes_each_at_its_rate():
    whole, _, _ = run(program())
    part, _, _ = run(program(trained=(("offset", 0.25),)))
    assert set(part.parameters) == {"offset"}
    moved = whole.parameters["offset"] + 1.0
    np.testing.assert_allclose(part.parameters["offset"], -1.0 + 0.25 * moved, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulating_parts_of_a_batch_changes_nothing(parts):
    whole, metrics, _ = run(program(), steps=3)
    summed, summed_metrics, _ = run(program(accumulate=parts), steps=3)
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(summed.parameters[name], value, rtol=1e-5)
    np.testing.assert_allclose(summed_metrics["loss"], metrics["loss"], rtol=1e-5)


def test_average_follows_the_parameters():
    made = program(ema_decay=0.5)
    one, _, _ = run(made, steps=1)
    two, _, _ = run(made, steps=2)
    start = named_parameters(Line())
    for name in start:
        expected = 0.5 * (0.5 * start[name] + 0.5 * one.parameters[name])
        expected += 0.5 * two.parameters[name]
        np.testing.assert_allclose(two.average[name], expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_loss_may_remember(parts):
    def loss(model, batch, key, seen):
        value, metrics = squared_error(model, batch, key)
        return value, (metrics, seen + len(batch["x"]))

    made = program(loss, memory=lambda: jnp.zeros((), jnp.int32), accumulate=parts)
    state, _, _ = run(made, steps=3)
    assert state.memory == 24


def test_every_step_draws_anew_and_every_run_alike():
    def loss(model, batch, key):
        return squared_error(model, batch, key)[0], {"draw": jax.random.uniform(key)}

    made = program(loss)
    draws = [run(made, steps)[1]["draw"] for steps in (1, 2, 2)]
    assert draws[0] != draws[1]
    assert draws[1] == draws[2]


def test_the_step_is_traced_once():
    traces = []

    def loss(model, batch, key):
        traces.append(1)
        return squared_error(model, batch, key)

    made = program(loss)
    run(made, steps=4)
    run(made, steps=2)
    assert len(traces) == 1


def train_whole(stage, model, config, folder, stopped=False):
    """Train a stage to its end, or until SIGTERM stops it after a step; all its parameters."""
    skeleton = jax.eval_shape(model)
    made = make_program(stage, skeleton, config, MESH)
    start = jax.tree.map(jnp.asarray, named_parameters(model()))
    workdir = Workdir(folder, config, config)
    with Preemption() as preemption:
        preemption.flag = stopped
        where = {"mesh": MESH, "config": config, "workdir": workdir, "preemption": preemption}
        return train(stage, made, skeleton, start, **where)


class Broken(Points):
    """One of them is not a number."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "y": np.float32("nan" if index == 40 else 1)}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    stage, config = make_stage(source=Broken()), get_base_config("none")
    config.checkpoint.every = 1
    with pytest.raises(RunError, match="nothing was saved after the last checkpoint") as caught:
        train_whole(stage, Line, config, tmp_path)
    words = r"loss is nan at step (\d+) of stage line, on the examples ([\d, ]*);"
    step, examples = re.match(words, str(caught.value)).groups()
    assert "40" in examples.split(", ")
    assert int(step) > 1
    checkpoints = Checkpoints(tmp_path / "checkpoints" / "line", keep=2)
    assert checkpoints.latest() == int(step) - 1
    checkpoints.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in "".join(lines)


class Lines(nnx.Module):
    """A part of two parameters."""

    def __init__(self):
        self.line = Line()


@pytest.mark.parametrize("trained", [r"line\.", r"line\.slope"])
def test_a_resumed_stage_makes_anew_only_what_no_checkpoint_holds(trained, tmp_path):
    started = []

    def start(model):
        started.append(1)
        line = {"slope": jnp.float32(2), "offset": model.line.offset[...] / 3}
        return with_parameters(model, {f"line.{name}": value for name, value in line.items()})

    stage = make_stage(lambda model, *told: squared_error(model.line, *told), [(trained, 1.0)])
    stage = dataclasses.replace(stage, start=start)
    config = get_base_config("none")
    whole = train_whole(stage, Lines, config, tmp_path / "whole")
    assert train_whole(stage, Lines, config, tmp_path / "stopped", stopped=True) is None
    started.clear()
    assert train_whole(stage, Lines, config, tmp_path / "stopped") == whole
    assert bool(started) == (trained == r"line\.slope"), "the offset alone is in no checkpoint"


def test_steps_of_the_first_stage_long_enough_are_profiled(tmp_path, monkeypatch):
    traced = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: traced.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: traced.append("stop"))
    config = get_base_config("none")
    workdir = Workdir(tmp_path, config, config)
    for steps in (3, 8, 20):
        with Profile(ConfigDict({"start": 5, "steps": 5}), workdir) as profile:
            for done in range(steps):
                profile.look(done)
    assert traced == ["start", "stop"]


@pytest.mark.parametrize(
    "changed",
    [
        lambda loss, metrics: (loss.astype(jnp.bfloat16), metrics),
        lambda loss, metrics: (loss, {"largest": metrics["largest"][None]}),
    ],
    ids=["a loss of 16 bits", "a metric that is no scalar"],
)
def test_what_a_loss_may_not_give_shows_before_anything_compiles(changed):
    with pytest.raises(AssertionError):
        program(lambda *arguments: changed(*squared_error(*arguments)))


def test_a_batch_that_the_parts_cannot_share():
    with pytest.raises(UserError, match=r"stages\.line\.batch_size=8"):
        program(accumulate=3)
