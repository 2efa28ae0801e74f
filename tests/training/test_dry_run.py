"""The dry run tells what a run would take, at published size, without making it."""

import re
from pathlib import Path

import lmdb
import numpy as np
import pytest

from vljax import train
from vljax.data.pictures.images import write_png

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lsun(tmp_path):
    """An LSUN database of three pictures."""
    path = tmp_path / "bedroom_train_lmdb"
    write_png(tmp_path / "p.png", np.zeros((256, 256, 3), np.uint8))
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as write:
        for i in range(3):
            write.put(f"{i:040x}".encode(), (tmp_path / "p.png").read_bytes())
    return path


@pytest.mark.slow
def test_lsun_at_published_size(lsun, capsys, monkeypatch):
    """553 million parameters, as OpenAI's three LSUN checkpoints have; nothing is allocated."""
    monkeypatch.setenv("COLUMNS", "160")
    config = f"{ROOT}/configs/sdg_lsun.py:{lsun}"
    assert train.main(["--config", config, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "552,814,086" in text
    assert "256 channels" in text


def test_a_small_recipe(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    flops = {}
    for batch in (16, 32):
        size = f"--config.stages.diffusion.batch_size={batch}"
        # Muon's matrix products do not grow with the batch, and are no small part here.
        adam = "--config.stages.diffusion.optimizer.name=adamw"
        assert train.main([*run.small, size, adam, "--dry_run"]) == 0
        text = capsys.readouterr().out
        flops[batch] = float(re.search(r"FLOPs a step, all devices\D*([\d.e+]+)", text).group(1))
    assert flops[32] == pytest.approx(2 * flops[16], rel=0.1)  # the optimizer does not grow
    for words in ("embedded scenes", "trained parameters in diffusion", "moving average",
                  "optimizer", "activations kept", "examples an epoch", "sharding"):  # fmt: skip
        assert words in text
