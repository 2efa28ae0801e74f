"""A run that is stopped, by whatever, ends as if it had not been; damage is named, never spread."""

import json
import random
import resource
import shutil
import signal
import time

import pytest

from vljax.errors import UserError
from vljax.training.checkpoint import Checkpoints

WEIGHTS = "weights/diffusion.safetensors"


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A finished run of one's own."""
    return shutil.copytree(undisturbed, tmp_path / "finished")


def wait_for_step(workdir, step):
    """Until `metrics.jsonl` shows the step."""
    file = workdir / "metrics.jsonl"
    for _ in range(3000):
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


def test_what_a_run_leaves(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "pictures",
        "tensorboard",
        "weights",
    }
    record = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 20
    assert {"loss", "gradient_norm", "examples_per_second", "waiting_for_data"} <= set(record)
    assert (undisturbed / "pictures" / "diffusion" / "samples_0000020.png").exists()


def test_sigterm_saves_and_exits_0_and_the_run_goes_on_bit_for_bit(run, undisturbed, tmp_path):
    (process,) = run.start(tmp_path, "--config.checkpoint.every=1000")
    wait_for_step(tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM, saved at step" in output
    steps = sorted(run.losses(tmp_path))
    saved = Checkpoints(tmp_path / "checkpoints" / "diffusion", keep=2).latest()
    assert steps == list(range(1, saved + 1))
    assert not (tmp_path / WEIGHTS).exists()

    assert f"resuming from step {saved} of 20" in run(tmp_path, "--config.checkpoint.every=1000")
    assert (tmp_path / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    assert run.losses(tmp_path) == run.losses(undisturbed)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step(run, tmp_path):
    processes = run.start(
        tmp_path, "--config.stages.diffusion.num_steps=5000", devices=2, processes=2
    )
    wait_for_step(tmp_path, 5)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "stopped by SIGTERM" in outputs[0]

    # Also once it has gone on.
    first = max(run.losses(tmp_path))
    processes = run.start(
        tmp_path, "--config.stages.diffusion.num_steps=5000", devices=2, processes=2
    )
    wait_for_step(tmp_path, first + 5)
    processes[0].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "stopped by SIGTERM" in outputs[0]
    assert first < max(run.losses(tmp_path)) < 4000


@pytest.mark.slow
def test_ten_kills_change_nothing(run, tmp_path):
    """SIGKILL at ten random moments, most of them near a checkpoint's writing."""
    flags = ("--config.checkpoint.every=1", "--config.stages.diffusion.num_steps=400")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run.elsewhere(whole, *flags)
    rng = random.Random(0)
    done = 0
    for _ in range(10):
        (process,) = run.start(killed, *flags)
        wait_for_step(killed, done + 10 + rng.randrange(20))
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate()
        done = Checkpoints(killed / "checkpoints" / "diffusion", keep=2).latest()
    assert done < 400
    run.elsewhere(killed, *flags)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert run.losses(killed) == run.losses(whole)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in str(path)
    }


def test_a_truncated_checkpoint_is_named_and_left_alone(run, undisturbed, finished):
    (finished / WEIGHTS).unlink()
    newest = finished / "checkpoints" / "diffusion" / "20"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        file.truncate(largest.stat().st_size // 2)
    before = contents(finished)
    assert "diffusion/20 is damaged" in run(finished, error=UserError)
    assert contents(finished) == before
    # The remedy it names works.
    newest.rename(finished / "damaged")
    assert "resuming from step 10 of 20" in run(finished)
    assert (finished / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(run, finished):
    """A limit on the size of files stands for the full disk: writes fail in the same places."""
    (finished / WEIGHTS).unlink()
    (finished / "checkpoints" / "diffusion" / "20").rename(finished / "away")

    (process,) = run.start(finished)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    # The storage library's own threads may complain around it, and even within its line.
    assert output.count("stopped: ") == 1
    assert "could not be written" in output
    assert "checkpoint 10 is whole" in output
    assert "vljax/training" not in output
    assert "resuming from step 10 of 20" in run(finished)


def test_a_workdir_of_another_config_is_refused(run, undisturbed):
    before = contents(undisturbed)
    output = run(undisturbed, "--config.stages.diffusion.ema_decay=0.9", error=UserError)
    assert "stages.diffusion.ema_decay (0.995 there, 0.9 here)" in output
    assert contents(undisturbed) == before
