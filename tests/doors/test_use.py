"""`generate` and `evaluate` on a model of random weights: what they leave, what they compile."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, pretrained
from vljax.doors import parse_config
from vljax.systems import sdg

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--config", str(ROOT / "configs" / "sdg_ffhq.py")),
    "--config.guided=False",
    "--config.data.image_size=32",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.compilation_cache=",
)


@pytest.fixture(scope="module")
def model_flags(tmp_path_factory):
    """Flags that describe a small model, with its weights as a published checkpoint."""
    config, _ = parse_config(SMALL)
    unet = sdg.make_model(config).diffusion
    file = tmp_path_factory.mktemp("weights") / "unet.safetensors"
    pretrained.save(unet, file)
    return (*SMALL, f"--config.pretrained.diffusion={file}")


def pictures(folder):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(folder.glob("0*.png"))}


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver"])
def test_generate_leaves_pictures_and_compiles_once(model_flags, tmp_path, sampler, compilations):
    def run(name, *flags):
        argv = (*model_flags, "--sampler", sampler, "--steps", "4", "--batch_size", "4", *flags)
        assert generate.main((*argv, "--out", str(tmp_path / name))) == 0
        return pictures(tmp_path / name)

    first = run("first", "--num_images", "6")
    assert compilations() > 0
    assert list(first) == [f"{i:04d}.png" for i in range(6)]
    assert first["0000.png"].shape == (32, 32, 3)
    with Image.open(tmp_path / "first" / "samples.png") as grid:
        assert grid.width > 3 * 32
        assert grid.text["sampler"] == sampler
        assert grid.text["seed"] == "0"
        assert ("eta" in grid.text) == (sampler == "ddim")
    assert len({p.tobytes() for p in first.values()}) == 6

    other = run("other", "--num_images", "4", "--seed", "5")
    assert compilations() == 0, "another seed, or another number of pictures, compiled something"
    assert all((other[name] != first[name]).any() for name in other)

    again = run("again", "--num_images", "3")
    assert compilations() == 0
    for name, picture in again.items():
        np.testing.assert_array_equal(picture, first[name])


def test_a_picture_does_not_depend_on_its_batch(model_flags, tmp_path):
    for batch in ("2", "3"):
        argv = (*model_flags, "--steps", "3", "--num_images", "5", "--batch_size", batch)
        generate.main((*argv, "--out", str(tmp_path / batch)))
    two, three = pictures(tmp_path / "2"), pictures(tmp_path / "3")
    for name, picture in two.items():
        assert np.abs(picture.astype(int) - three[name]).max() <= 1


def test_evaluate_writes_its_tables(model_flags, tmp_path):
    flags = ("--num_images", "6", "--batch_size", "4", "--steps", "2", "--bits_steps", "5")
    assert evaluate.main((*model_flags, *flags, "--out", str(tmp_path))) == 0
    results = json.loads((tmp_path / "results.json").read_text())["notes"]
    assert results["images"] == 6
    # A network that predicts zero codes a picture in no fewer bits than its pixels have.
    assert results["bits_per_dimension"] > 8.0
    assert results["oracle_on_noise"]["score"] is None  # no number, and still JSON
    assert results["oracle_on_noise"]["recognised"] == 0.0
    assert results["oracle"]["images"] == 6
    assert "| oracle.recognised |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "samples.png").exists()
