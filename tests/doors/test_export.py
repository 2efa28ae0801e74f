"""`export` on a run of random weights: every part in its layout, with a card."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import vljax
from vljax import export, pretrained
from vljax.config import to_json
from vljax.data.text.tokenizers import open_tokenizer
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.systems import load_system

ROOT = Path(__file__).parents[2]
CONFIG = (
    *("--config", str(ROOT / "configs" / "shape_guided_coco.py")),
    "--config.compilation_cache=",
    "--config.model.unet.block_out_channels=(32,)",
    "--config.model.unet.attention_levels=(True,)",
    "--config.model.unet.num_heads=(2,)",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir as training leaves it, and its model."""
    workdir = tmp_path_factory.mktemp("run")
    config, _ = parse_config(CONFIG)
    skeleton = jax.eval_shape(lambda: load_system(config.system).make_model(config))
    rng = np.random.default_rng(0)
    model = with_parameters(
        skeleton,
        {n: rng.standard_normal(v.shape, "f4") for n, v in named_parameters(skeleton).items()},
    )
    (workdir / "config.json").write_text(to_json(config))
    pretrained.save(model, workdir / "weights" / "all.safetensors")
    parts = list({name.partition(".")[0] for name in named_parameters(model)})
    stages = [{"name": "all", "parts": parts}]
    (workdir / "weights" / "stages.json").write_text(json.dumps(stages))
    return workdir, model


def test_every_part_goes_where_others_open_it(trained, tmp_path, monkeypatch, capsys):
    workdir, model = trained
    results = tmp_path / "results.md"
    results.write_text("| mIoU | 70.5 |")
    sent = []
    monkeypatch.setattr(
        "vljax.pretrained.hub.push",
        lambda folder, name, private: sent.append((folder, name, private)) or "x",
    )
    out = tmp_path / "out"
    flags = ("--workdir", str(workdir), "--out", str(out), "--results", str(results))
    assert export.main((*flags, "--push", "people/shapes")) == 0
    assert sent == [(out, "people/shapes", True)]
    told = capsys.readouterr().out
    assert "a `UNet2DConditionModel` of diffusers" in told
    assert "DiffusionPipeline.from_pretrained" in told

    for name, part in (
        ("sd/unet", model.sd.unet),
        ("sd/vae", model.sd.vae),
        ("sd/clip", model.sd.text_encoder),
        ("inpaint", model.inpaint),
    ):
        back = named_parameters(vljax.load(out / name))
        for parameter, value in named_parameters(part).items():
            np.testing.assert_array_equal(back[parameter], value, f"{name}.{parameter}")
    # Its patches are finer than the layout of CLIPSeg has them.
    again = pretrained.load(model.segmenter, out / "segmenter")
    for parameter, value in named_parameters(model.segmenter).items():
        np.testing.assert_array_equal(named_parameters(again)[parameter], value, parameter)
    assert json.loads((out / "segmenter" / "config.json").read_text())["part"] == "segmenter"
    scheduler = json.loads((out / "sd" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert open_tokenizer(out / "sd").vocabulary_size <= 702
    card = (out / "README.md").read_text()
    assert "| mIoU | 70.5 |" in card
    assert '"system": "shape_guided"' in card
    assert card.startswith("---\nlibrary_name: vljax\n")


def test_results_that_are_not_there_are_refused(trained, tmp_path):
    flags = ("--workdir", str(trained[0]), "--out", str(tmp_path), "--results", "absent.md")
    with pytest.raises(UserError, match=r"--results=absent.md: no such file"):
        export.main(flags)
    assert not list(tmp_path.iterdir())
