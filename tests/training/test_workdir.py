"""What the train door imports before it has anything to do, and what it says."""

import json
import subprocess
import sys

import pytest

from vljax.config import from_workdir, get_base_config
from vljax.errors import UserError
from vljax.training.workdir import Workdir


def test_starting_imports_no_library_that_it_can_do_without():
    """PyTorch alone takes two seconds; tensorboardX imports it wherever it is installed."""
    script = "import sys, vljax.train; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "jax" in loaded
    unwanted = {"torch", "tensorboardX", "transformers", "tensorflow", "tensorflow_datasets"}
    assert not unwanted & set(loaded)


def test_what_looks_like_markup_is_said_as_it_is(tmp_path, capsys):
    config = get_base_config("sdg")
    workdir = Workdir(tmp_path, config, config)
    workdir.say("everything goes to runs/[red]/a[/b]")
    workdir.close()
    assert capsys.readouterr().out == "everything goes to runs/[red]/a[/b]\n"


def test_where_nothing_can_be_written_is_told(tmp_path):
    config = get_base_config("sdg")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"--workdir=.*: cannot be made or written to \("):
        Workdir(tmp_path, config, config)


def test_an_older_versions_run_can_be_resumed(tmp_path):
    """It lacks fields, has some that are gone, and tells in other words what it is."""
    usual = get_base_config("sdg")
    usual.samples = {"steps": 50, "sampler": "ddim"}
    old = usual.to_dict() | {"about": "once", "samples": {"steps": 50}}
    old["model"] = {"diffusion": {"head_order": "heads_first"}}
    config = usual.copy_and_resolve_references()
    config.model = {"diffusion": {}}
    config.other = 1  # what this recipe alone has, and the run as well
    old["other"] = 1
    (tmp_path / "config.json").write_text(json.dumps(old))
    config.samples.sampler = "ddpm"
    with pytest.raises(UserError, match=r"\(samples.sampler \(ddim there, ddpm here\)\);"):
        Workdir(tmp_path, config, usual)
    config.samples.sampler = "ddim"
    Workdir(tmp_path, config, usual).close()
    assert from_workdir(tmp_path).samples.sampler == "ddim"
