"""A user's mistake ends in one line that says what to do, exit code 2, before anything compiles."""

import importlib
import pkgutil
import random
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vljax import doors, evaluate, export, generate, systems, train
from vljax.config import flatten
from vljax.doors import parse_config
from vljax.page import __main__ as page

ROOT = Path(__file__).parents[2]
FFHQ = str(ROOT / "configs" / "sdg_ffhq.py")
LSUN = str(ROOT / "configs" / "sdg_lsun.py")


def knock(capsys, monkeypatch, door, *argv):
    """Go through a door; returns (exit code, what it printed as errors)."""
    monkeypatch.setattr(sys, "argv", ["door", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        door.run()
    return stop.value.code, capsys.readouterr().err


MISTAKES = {
    "no config": ((), ["--config is missing"]),
    "no workdir": (("--config", FFHQ), ["--workdir is missing"]),
    "no such file": (("--config", "sdg_fhq.py"), ["--config=sdg_fhq.py", "no such"]),
    "unknown field": (
        ("--config", FFHQ, "--config.stages.diffusion.batchsize=4"),
        ["stages.diffusion.batchsize", "did you mean stages.diffusion.batch_size?"],
    ),
    "unknown field like no other": (
        ("--config", FFHQ, "--config.nope=3"),
        ["--config.nope: ", "no such field; choose among about, checkpoint, compilation_cache,"],
    ),
    "unknown field of a section like no other": (
        ("--config", FFHQ, "--config.checkpoint.nope.nope=3"),
        ["--config.checkpoint.nope.nope: ", "choose among checkpoint.every, checkpoint.keep"],
    ),
    "no value": (
        ("--config", FFHQ, "--config.data.workers"),
        ["--config.data.workers: its value is missing; give --config.data.workers=VALUE, such"],
    ),
    "two dashes": (("--", "--config", FFHQ), ["--: ", "leave it out"]),
    "wrong type": (
        ("--config", FFHQ, "--config.stages.diffusion.batch_size=many"),
        ["--config.stages.diffusion.batch_size=many", "type"],
    ),
    "section for a field": (("--config", FFHQ, "--config.stages=3"), ["--config.stages=3"]),
    "field without a config": (("--config.seed=3",), ["needs --config"]),
    "batch": (
        ("--config", FFHQ, "--config.stages.diffusion.batch_size=7",
         "--config.stages.diffusion.accumulate=2"),
        ["stages.diffusion.batch_size=7", "multiple of 2"],
    ),
    "no checkpoint kept": (
        ("--config", FFHQ, "--config.checkpoint.keep=0"), ["checkpoint.keep=0", "1 or more"]
    ),
    **{
        f"{field}={value}": (
            ("--config", FFHQ, f"--config.{field}={value}"), [f"--config.{field}={value}: {give}"]
        )
        for field, value, give in (
            ("stages.diffusion.num_steps", 0, "give 1 or more"),
            ("stages.diffusion.batch_size", 0, "give 1 or more"),
            ("stages.diffusion.accumulate", 0, "give 1 or more"),
            ("stages.diffusion.optimizer.warmup_steps", -5, "give 0 or more"),
            ("log.pictures_every", -1, "give 0 or more"),
            ("profile.start", -1, "give 0 or more"),
            ("profile.steps", -1, "give 0 or more"),
            ("data.workers", -1, "give 0 or more"),
            ("stages.diffusion.ema_decay", 1.0, "give 0 or more, and less than 1"),
            ("stages.diffusion.ema_decay", -0.5, "give 0 or more, and less than 1"),
        )
    },
    "mesh": (("--config", FFHQ, "--config.mesh.fsdp=64"), ["mesh=", "does not fit"]),
    "schedule": (("--config", FFHQ, "--config.diffusion.schedule=steep"), ["'steep'"]),
    "loss": (("--config", FFHQ, "--config.diffusion.loss=hybrid"), ["hybrid", "learned_range"]),
    "timesteps": (
        ("--config", FFHQ, "--config.diffusion.timestep_sampler=lucky"), ["'lucky'"]
    ),
    "sampler": (("--config", FFHQ, "--config.samples.sampler=magic"), ["magic"]),
    "sampling steps": (("--config", FFHQ, "--config.samples.steps=2000"), ["1000 steps"]),
    "network": (("--config", FFHQ, "--config.data.image_size=30"), ["image_size=30"]),
    "sharding": (
        ("--config", FFHQ, "--config.sharding=((r'.*','diagonal'),)"), ["'diagonal'", "fsdp"]
    ),
    "missing folder": (("--config", f"{FFHQ}:/no/such/folder"), ["/no/such/folder"]),
    "LSUN class": (("--config", f"{LSUN}:/data/church"), ["/data/church", "bedroom"]),
    "workdir is a file": (("--config", FFHQ, "--workdir", __file__), ["--workdir"]),
    "unknown flag": (("--config", FFHQ, "--workdr", "x"), ["--workdr"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train_names_the_mistake(mistake, capsys, monkeypatch, tmp_path):
    argv, words = MISTAKES[mistake]
    if mistake not in ("no config", "no workdir", "workdir is a file", "unknown flag"):
        argv = (*argv, "--workdir", tmp_path / "run")
    monkeypatch.setattr(jax, "jit", _refuse_to_run)
    code, error = knock(capsys, monkeypatch, train, *argv)
    assert code == 2
    for word in words:
        assert word in error
    if mistake != "unknown flag":  # argparse adds its usage
        assert error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def _refuse_to_run(function, **options):
    def refuse(*_):
        raise AssertionError("a program ran before the mistake was found")

    refuse.lower = refuse
    refuse.trace = lambda *shapes: JIT(function, **options).trace(*shapes)
    return refuse


JIT = jax.jit

# What a module decorates while `jax.jit` is another stays so, for all tests that come after: the
# systems, and all that they need, are there before.
for found in pkgutil.walk_packages(systems.__path__, "vljax.systems."):
    importlib.import_module(found.name)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("from vljax.errors import UserError\n"
         "def get_config(data):\n    raise UserError(f'no pictures in {data}: give others')",
         "no pictures in /x: give others"),
        ("def get_config(data):\n    return {}['lsun']", "--config={}: KeyError: 'lsun'; mend the"),
        ("def get_config(data):\n    open(data)", "--config={}: FileNotFoundError: [Errno 2] No"),
        ("def get_config():\n    pass", "--config={}: TypeError: get_config() takes 0 positional"),
        ("import nothing_of_this_name", "--config={}: ModuleNotFoundError: No module named"),
        ("def get_config(:", "--config={}: SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
def test_what_a_recipe_raises_is_told_as_it_is(recipe, told, capsys, monkeypatch, tmp_path):
    (file := tmp_path / "recipe.py").write_text(recipe)
    code, error = knock(capsys, monkeypatch, train, "--config", f"{file}:/x", "--dry_run")
    assert code == 2
    assert error.startswith("error: " + told.format(f"{file}:/x")), error
    assert error.count("\n") == 1, error


def test_what_is_no_run_of_several_processes_is_refused(capsys, monkeypatch):
    argv = ("--config", FFHQ, "--dry_run", "--distributed")

    def initialize():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    code, error = knock(capsys, monkeypatch, train, *argv)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: --distributed: JAX knows no cluster here (coordinator_address")
    monkeypatch.setenv("VLJAX_COORDINATOR", "host:1")
    for count, index in (("", ""), ("2", ""), ("two", "0"), ("2", "-1"), ("2", "2")):
        monkeypatch.setenv("VLJAX_NUM_PROCESSES", count)
        monkeypatch.setenv("VLJAX_PROCESS_ID", index)
        code, error = knock(capsys, monkeypatch, train, *argv)
        assert code == 2
        assert f"VLJAX_NUM_PROCESSES={count} VLJAX_PROCESS_ID={index}: beside VLJAX_C" in error
    monkeypatch.setenv("VLJAX_PROCESS_ID", "1")
    for address in ("host", ":1", "host:port"):
        monkeypatch.setenv("VLJAX_COORDINATOR", address)
        code, error = knock(capsys, monkeypatch, train, *argv)
        assert code == 2
        assert f"VLJAX_COORDINATOR={address}: give the first process's host:port" in error


def test_an_empty_folder_and_a_folder_of_other_files(capsys, monkeypatch, tmp_path):
    for content in ((), ("notes.txt",)):
        for name in content:
            (tmp_path / name).touch()
        argv = ("--config", f"{FFHQ}:{tmp_path}", "--workdir", tmp_path / "run")
        code, error = knock(capsys, monkeypatch, train, *argv)
        assert code == 2
        assert str(tmp_path) in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("door", [generate, evaluate, page])
def test_a_run_may_lie_in_the_users_home(door, capsys, monkeypatch, tmp_path):
    """After `=` a shell leaves `~` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    code, error = knock(capsys, monkeypatch, door, "--workdir=~/run")
    assert code == 2
    assert f"--workdir={tmp_path / 'run'} holds no config.json" in error


@pytest.mark.parametrize("door", [generate, evaluate])
def test_using_a_run_that_is_not_there(door, capsys, monkeypatch, tmp_path):
    assert knock(capsys, monkeypatch, door)[0] == 2
    code, error = knock(capsys, monkeypatch, door, "--workdir", tmp_path)
    assert code == 2
    assert "holds no config.json" in error
    code, error = knock(capsys, monkeypatch, door, "--config", FFHQ, "--out", tmp_path)
    assert code == 2
    assert "no weights of clip, diffusion, noisy_clip" in error
    assert "--config.pretrained.diffusion=FILE" in error


@pytest.mark.parametrize("door", [generate, evaluate, export])
def test_where_no_results_can_be_written_is_told_before_a_model_is_loaded(
    door, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(doors, "open_model", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    for out, reason in (("~/file", "File exists"), ("~/file/folder", "Not a directory")):
        code, error = knock(capsys, monkeypatch, door, "--config", FFHQ, f"--out={out}")
        assert code == 2
        out = out.replace("~", str(tmp_path))
        assert error.startswith(f"error: --out={out}: no results can be written there ({reason});")


def test_no_traceback_reaches_the_user():
    command = [sys.executable, "-m", "vljax.train", "--config", FFHQ, "--config.nothing=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --config.nothing: ")
    assert result.stderr.count("\n") == 1


TINY = {
    "sdg_ffhq": (
        "--config.guided=False",
        "--config.data.image_size=16",
        "--config.model.diffusion.channel_mult=(1.0,)",
        "--config.model.diffusion.attention_resolutions=()",
    ),
    "voi_django": ("--config.model.layers=1", "--config.data.scenes.size=50"),
}
VALUES = (
    *("", "-1", "0", "1e400", "nan", "9" * 30, "1.5", "none", "True", "cosine", "ünïcödé", "'"),
    *("[]", "()", "('',)", "(1,'a')", "{}", "(((", "\x01", "/no/such/place", "x" * 5000),
)


def fields(recipe):
    config, _ = parse_config(("--config", str(ROOT / "configs" / f"{recipe}.py")))
    return sorted(flatten(config.to_dict()))


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_value_of_any_field_ends_in_a_traceback(count, capsys, monkeypatch):
    """A run that a value allows is built and told (`--dry_run`); any other is refused in words."""
    draw = random.Random(0)
    known = {recipe: fields(recipe) for recipe in TINY}
    refused = 0
    for _ in range(count):
        recipe = draw.choice(sorted(TINY))
        field, value = draw.choice(known[recipe]), draw.choice(VALUES)
        argv = ("--config", str(ROOT / "configs" / f"{recipe}.py"), *TINY[recipe], "--dry_run")
        code, error = knock(capsys, monkeypatch, train, *argv, f"--config.{field}={value}")
        assert code in (0, 2), (field, value, error)
        if code == 2:
            refused += 1
            assert error.startswith("error: "), (field, value, error)
            assert field.partition(".")[2].rpartition(".")[2] in error or field in error, error
    assert refused > count // 4
