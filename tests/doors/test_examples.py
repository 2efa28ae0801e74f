"""The examples in the package: each loads, is used by its name, and does what its results say."""

import json

import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate
from vljax.config import from_workdir
from vljax.data.scenes import COLOURS
from vljax.doors import EXAMPLES, example, open_model
from vljax.errors import UserError
from vljax.examples import __main__ as packing
from vljax.metrics.guided import attribute_accuracy
from vljax.models.parameters import named_parameters
from vljax.systems import load_system

NAMES = sorted(file.parent.name for file in EXAMPLES.glob("*/config.json"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_whole_and_small(name):
    folder = example(name)
    weights = list(folder.glob("weights/*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= packing.MOST
    config = from_workdir(folder)
    config.compilation_cache = ""
    model = open_model((), load_system(config.system), config, folder)
    assert all(np.isfinite(value).all() for value in named_parameters(model).values())
    told = (folder / "README.md").read_text()
    assert config.about in told
    assert "| method |" in told


def test_all_examples_together_are_small():
    files = [file for file in EXAMPLES.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert len(NAMES) >= 7
    assert sum(file.stat().st_size for file in files) <= 60 * 2**20


def test_an_example_is_used_by_its_name(tmp_path):
    """Of 16 pictures the colour is right in most, by chance in one of eight."""
    asked = [
        (shape, colour) for shape, colour in zip(("star", "circle"), COLOURS[1:3], strict=True)
    ]
    prompts = [f"--prompt=a photo of a {colour} {shape}" for shape, colour in asked]
    out = tmp_path / "drawn"
    flags = ("--example", "text2image", "--out", str(out), "--count=8", *prompts)
    assert generate.main(flags) == 0
    pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("picture_*"))])
    right = attribute_accuracy(pictures, [one for one in asked for _ in range(8)])
    assert right["colour right"] >= 0.5
    swapped = attribute_accuracy(pictures, [one for one in asked[::-1] for _ in range(8)])
    assert right["colour right"] > swapped["colour right"] + 0.3


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(UserError, match=r"--example=sgd: choose one of .*text2image"):
        generate.main(("--example", "sgd", "--out", str(tmp_path)))
    with pytest.raises(UserError, match="give one of them"):
        generate.main(("--example", "text2image", "--workdir", str(tmp_path)))
    with pytest.raises(UserError, match="--out is missing"):
        evaluate.main(("--example", "text2image"))
    with pytest.raises(UserError, match=r"--example=sgd: choose one of"):
        packing.main(("make", "sgd", "--workdir", str(tmp_path)))


def test_a_run_becomes_an_example(tmp_path, monkeypatch):
    """Its weights in half precision, its results told; without results it is refused."""
    monkeypatch.setattr(packing, "EXAMPLES", tmp_path / "made")
    flags = ("--example", "voi", "--name", "order")
    with pytest.raises(UserError, match="judge the run first"):
        packing.main(flags)
    results = tmp_path / "results.md"
    results.write_text("| method | BLEU |")
    assert packing.main((*flags, "--results", str(results), "--commit", "1a2b3c4")) == 0
    made, known = tmp_path / "made" / "order", example("voi")
    assert "at commit 1a2b3c4" in (made / "README.md").read_text()
    assert json.loads((made / "config.json").read_text()) == json.loads(
        (known / "config.json").read_text()
    )
    ours, theirs = (f / "weights" / "example.safetensors" for f in (made, known))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_an_example_is_made_anew(tmp_path, monkeypatch):
    """Trained by its own recipe, here of a few steps, judged, and put where it is asked for."""
    few = [
        f"--config.stages.{stage}.num_steps=60"
        for stage in json.loads((example("voi") / "config.json").read_text())["stages"]
    ]
    monkeypatch.setattr(packing, "EXAMPLES", tmp_path / "made")
    flags = ("make", "voi", "--workdir", str(tmp_path / "run"), "--commit", "1a2b3c4", *few)
    assert packing.main(flags) == 0
    made = tmp_path / "made" / "voi"
    assert "at commit 1a2b3c4" in (made / "README.md").read_text()
    config = from_workdir(made)
    assert {stage.num_steps for stage in config.stages.values()} == {60}
