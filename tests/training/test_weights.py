"""Which stages train, in which order their weights count, and runs that lack the list of them."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from vljax import pretrained, train
from vljax.config import from_workdir, get_base_config
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.parameters import named_parameters, with_parameters
from vljax.systems import voi
from vljax.training import weights
from vljax.training.stage import Stage

CONFIG = """
from ml_collections import ConfigDict
from vljax.config import get_base_config
from vljax.training.optimizer import get_optimizer_config

def get_config():
    config = get_base_config("towards")
    stage = {"batch_size": 8, "num_steps": 3, "accumulate": 1, "ema_decay": 0.0,
             "optimizer": get_optimizer_config(name="adam", b1=0.0, b2=0.0, learning_rate=1.0)}
    config.stages = {"a": stage, "b": stage}
    config.pretrained = {"number": "", "other": ""}
    config.compilation_cache = ""
    return config
"""


class Number(nnx.Module):
    """One number."""

    def __init__(self):
        self.value = nnx.Param(jnp.zeros(()))


class Numbers(nnx.Module):
    """Two parts."""

    def __init__(self):
        self.number = Number()
        self.other = Number()


class Zeros:
    """Examples that say nothing."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": np.float32(0.0)}


class Towards:
    """A system whose stages `b`, then `a` move the same number: 3 steps up, then 3 down by half.

    Steps are as long as the rate, whatever the gradient (Adam without memory).
    """

    @staticmethod
    def get_config():
        return get_base_config("towards")

    @staticmethod
    def make_model(config):
        return Numbers()

    @staticmethod
    def stages(config):
        def stage(name, loss, train):
            transform = lambda example, rng: example  # noqa: E731
            return Stage(name, loss, train, Zeros(), transform, config.stages[name])

        def up(model, batch, key):
            return -model.number.value[...] - model.other.value[...] + 0 * batch["x"].sum(), {}

        def down(model, batch, key):
            return model.number.value[...] + 0 * batch["x"].sum(), {}

        both = [(r"number\.", 1.0), (r"other\.", 1.0)]
        return [stage("b", up, both), stage("a", down, [(r"number\.", 0.5)])]


@pytest.fixture
def door(tmp_path, monkeypatch):
    """Trains `Towards`; `door(*flags)` returns its workdir."""
    monkeypatch.setattr(train, "load_system", lambda _: Towards)
    recipe = tmp_path / "towards.py"
    recipe.write_text(CONFIG)

    def run(*flags):
        workdir = tmp_path / "run"
        assert train.main(["--config", str(recipe), "--workdir", str(workdir), *flags]) == 0
        return workdir

    return run


def load(workdir, config=None):
    model = weights.load_model(jax.eval_shape(Numbers), config or from_workdir(workdir), workdir)
    return [float(part.value[...]) for part in (model.number, model.other)]


def test_stages_train_and_load_in_the_order_of_the_systems_list(door, capsys):
    workdir = door()
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["stage"] for line in steps)) == ["b", "a"]
    assert json.loads((workdir / "weights" / "stages.json").read_text()) == [
        {"name": "b", "parts": ["number", "other"]},
        {"name": "a", "parts": ["number"]},
    ]
    assert load(workdir) == [1.5, 3.0]
    # Started again, a finished run stays as it is.
    door()
    assert load(workdir) == [1.5, 3.0]


def test_the_workdir_may_lie_in_the_users_home(door, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    door("--workdir=~/at_home")
    assert load(tmp_path / "at_home") == [1.5, 3.0]


def test_a_run_without_the_list_loads_by_name_and_says_so(door, capsys):
    workdir = door()
    (workdir / "weights" / "stages.json").unlink()
    assert load(workdir) == [3.0, 3.0]
    assert "weights are loaded in the order a, b" in capsys.readouterr().err
    # Started again, the run writes the list it lacks.
    door()
    assert load(workdir) == [1.5, 3.0]


def test_the_list_holds_only_stages_that_have_ended(door):
    workdir = door()
    stages = Towards.stages(from_workdir(workdir))
    weights.file(workdir, "a").unlink()
    with pytest.raises(UserError, match=r"a\.safetensors is missing, though .*stages\.json"):
        load(workdir)
    weights.list_stages(workdir, stages, [["number.value", "other.value"], ["number.value"]])
    assert load(workdir) == [3.0, 3.0]
    (workdir / "weights" / "stages.json").write_text("[1")
    with pytest.raises(UserError, match=r"stages\.json is damaged"):
        load(workdir)


@pytest.mark.parametrize(
    ("place", "name", "ended"),
    [(Towards, "stages", []), (weights, "initial", []), (weights, "save", ["b"])],
)
def test_sigterm_before_a_stage_ends_the_run_as_within_one(place, name, ended, door, monkeypatch):
    """While the data are opened, parameters drawn, weights written."""

    def unheard(*_):
        raise AssertionError("nobody waits for SIGTERM")

    before, handler = getattr(place, name), signal.signal(signal.SIGTERM, unheard)

    def disturbed(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return before(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, disturbed)
            workdir = door()
        assert signal.getsignal(signal.SIGTERM) is unheard
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert [one.stem for one in workdir.glob("weights/*.safetensors")] == ended
    door()
    assert load(workdir) == [1.5, 3.0]


def test_a_system_whose_every_part_is_given_trains_nothing_and_can_be_used(door, tmp_path, capsys):
    model = Numbers()
    for part, value in ((model.number, 7.0), (model.other, 8.0)):
        part.value[...] = jnp.float32(value)
    pretrained.save(model.number, tmp_path / "number.safetensors")
    pretrained.save(model.other, tmp_path / "other.safetensors")
    given = [f"--config.pretrained.{n}={tmp_path / n}.safetensors" for n in ("number", "other")]
    workdir = door(*given)
    told = " ".join(capsys.readouterr().out.split())
    assert "nothing to train" in told
    assert "a: not trained" in told
    assert "b: not trained" in told
    assert (workdir / "metrics.jsonl").read_text() == ""
    assert load(workdir) == [7.0, 8.0]


def test_a_run_is_used_without_the_weights_that_it_trained_further(door, tmp_path):
    (number := Number()).value[...] = jnp.float32(7)
    pretrained.save(number, given := tmp_path / "number.safetensors")
    workdir = door(f"--config.pretrained.number={given}")
    assert load(workdir) == [8.5, 3.0]
    given.unlink()
    assert load(workdir) == [8.5, 3.0]
    # Of a part that no stage trained they are needed.
    for stage in ("a", "b"):
        weights.file(workdir, stage).unlink()
    (workdir / "weights" / "stages.json").write_text("[]")
    with pytest.raises(UserError, match=r"number\.safetensors"):
        load(workdir)


def test_a_part_that_an_earlier_stage_trained_is_not_given_any_more():
    config = ConfigDict({"pretrained": {"number": "n", "other": ""}, "stages": {"a": {}, "b": {}}})

    def names(config, stages):
        return [s.name for s in weights.stages_to_train(stages, jax.eval_shape(Numbers), config)]

    b, a = Towards.stages(config)
    assert names(config, [b, a]) == ["b", "a"]
    assert names(config, [a, b]) == ["b"]
    config.pretrained.other = "o"
    assert names(config, [b, a]) == []


def test_weights_of_another_network_than_the_configs_are_refused(tmp_path):
    """As when `--config.FIELD=…` stands beside `--workdir`."""
    parameters = {"number.value": np.ones(2, np.float32), "third.value": np.float32(8)}
    pretrained.write_tensors(parameters, weights.file(tmp_path, "both"))
    config = ConfigDict({"pretrained": {}, "stages": {"both": {}}})
    with pytest.raises(UserError, match=r"both\.safetensors does not fit the model; check") as told:
        load(tmp_path, config)
    assert "1 surplus: third.value; 1 misshapen: number.value (file: 2" in str(told.value)


def test_a_part_is_found_in_the_file_of_a_stage_that_trained_several(tmp_path):
    skeleton = jax.eval_shape(Numbers)
    parameters = {"number.value": jnp.float32(7), "other.value": jnp.float32(8)}
    weights.save(tmp_path, "both", skeleton, parameters, [*parameters])
    file = str(weights.file(tmp_path, "both"))
    for part in ("number", "other"):
        config = ConfigDict({"pretrained": {part: file}})
        name = f"{part}.value"
        assert weights.pretrained_parameters(skeleton, config) == {name: parameters[name]}


def test_no_part_of_that_name():
    config = ConfigDict({"pretrained": {"nothing": "file"}})
    with pytest.raises(UserError, match=r"--config\.pretrained\.nothing=file: this config's model"):
        weights.pretrained_parameters(jax.eval_shape(Numbers), config)


@pytest.mark.parametrize(
    ("recipe", "given", "trained"),
    [
        ("voi_django", (), ["joint", "separate", "tune"]),
        ("voi_django", ("decoder",), ["joint", "separate", "tune"]),
        ("voi_django", ("decoder", "permutation"), []),
        ("voi_order_recovery", (), ["decoder", "permutation"]),
        ("voi_order_recovery", ("decoder",), ["permutation"]),
    ],
)
def test_stages_of_voi(recipe, given, trained):
    flags = [f"--config.pretrained.{part}=file" for part in given]
    config, _ = parse_config(["--config", f"configs/{recipe}.py", *flags])
    skeleton = jax.eval_shape(lambda: voi.make_model(config))
    stages = weights.stages_to_train(voi.stages(config), skeleton, config)
    assert [stage.name for stage in stages] == trained


class Drawing(nnx.Module):
    """One part, a small network."""

    def __init__(self):
        self.vae = AutoencoderKL(block_out_channels=(8, 8), norm_groups=8, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("quick_to_compile")
def test_weights_in_use_take_half_the_memory_in_bfloat16(tmp_path):
    skeleton, rng = jax.eval_shape(Drawing), np.random.default_rng(0)
    drawn = {
        name: rng.standard_normal(value.shape, np.float32) / np.prod(value.shape[:-1]) ** 0.5
        for name, value in named_parameters(skeleton.vae).items()
    }
    pretrained.save(with_parameters(skeleton.vae, drawn), tmp_path / "vae.safetensors")
    fields = {"pretrained": {"vae": str(tmp_path / "vae.safetensors")}, "stages": {}}

    def loaded(**more):
        return weights.load_model(skeleton, ConfigDict(fields | more), None)

    def size(model):
        return sum(value.nbytes for value in named_parameters(model).values())

    decode = jax.jit(lambda model, z: model.vae.decode(z))
    z = rng.standard_normal((1, 4, 4, 4), np.float32)
    whole, half = loaded(), loaded(param_dtype="bfloat16")
    assert size(half) == size(whole) / 2
    expected, found = decode(whole, z), decode(half, z)
    assert found.dtype == expected.dtype == jnp.float32
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03
