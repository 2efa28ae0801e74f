"""Runs of the train door on a network that compiles in seconds: here, or in other processes."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vljax import train

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--config", str(ROOT / "configs/sdg_ffhq.py")),
    "--config.guided=False",
    "--config.data.image_size=16",
    "--config.model.diffusion.model_channels=16",
    "--config.model.diffusion.norm_groups=8",
    "--config.model.diffusion.num_head_channels=16",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.stages.diffusion.batch_size=8",
    "--config.stages.diffusion.num_steps=20",
    "--config.stages.diffusion.optimizer.warmup_steps=5",
    "--config.samples.count=4",
    "--config.samples.steps=2",
    "--config.log.every=1",
    "--config.checkpoint.every=10",
)


class Runs:
    """Starts runs that share one compilation cache; XLA optimises none of their programs."""

    def __init__(self, cache, small=SMALL):
        self.cache, self.small = f"--config.compilation_cache={cache}", small

    @staticmethod
    def environment(devices):
        """Of a process with so many devices."""
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }

    def start(self, workdir, *flags, devices=1, processes=1):
        """Start the run in processes of its own; returns them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        door = (sys.executable, "-m", "vljax.train", "--workdir", str(workdir))
        started = []
        for index in range(processes):
            environment = self.environment(devices)
            if processes > 1:
                environment |= {
                    "VLJAX_COORDINATOR": f"127.0.0.1:{port}",
                    "VLJAX_NUM_PROCESSES": str(processes),
                    "VLJAX_PROCESS_ID": str(index),
                }
            started.append(
                subprocess.Popen(
                    [*door, *self.small, *flags, self.cache],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return started

    def elsewhere(self, workdir, *flags, **options):
        """Run to the end in processes of its own."""
        processes = self.start(workdir, *flags, **options)
        outputs = [process.communicate(timeout=600)[0] for process in processes]
        assert {process.returncode for process in processes} == {0}, "\n".join(outputs)

    def __call__(self, workdir, *flags, error=None):
        """Run to the end in this process; returns what was printed, or the error that came."""
        slow = "jax_disable_most_optimizations"
        before = {slow: jax.config.read(slow)}
        before["jax_compilation_cache_dir"] = jax.config.jax_compilation_cache_dir
        jax.config.update(slow, True)
        argv = [*self.small, "--workdir", str(workdir), *flags, self.cache]
        printed = io.StringIO()
        try:
            if error:
                with pytest.raises(error) as caught:
                    train.main(argv)
                return str(caught.value)
            with contextlib.redirect_stdout(printed):
                assert train.main(argv) == 0
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
        return printed.getvalue()

    @staticmethod
    def losses(workdir):
        """The loss of every logged step."""
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record["loss"] for record in map(json.loads, lines)}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # what one worker compiled serves the others
        folder = folder.parent
    return Runs(folder / "compiled")


@pytest.fixture(scope="session")
def undisturbed(run, tmp_path_factory):
    """The workdir of a finished run; copy it to do anything to it."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    run(workdir)
    return workdir
