"""What the train door imports before it has anything to do, and what it says."""

import subprocess
import sys

import pytest

from vljax.config import get_base_config
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
    workdir = Workdir(tmp_path, get_base_config("sdg"))
    workdir.say("everything goes to runs/[red]/a[/b]")
    workdir.close()
    assert capsys.readouterr().out == "everything goes to runs/[red]/a[/b]\n"


def test_where_nothing_can_be_written_is_told(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"--workdir=.*: cannot be made or written to \("):
        Workdir(tmp_path, get_base_config("sdg"))
