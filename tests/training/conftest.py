"""Runs of the train door in processes of their own, on a network that compiles in seconds."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
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
    """Starts runs that share one compilation cache."""

    def __init__(self, cache):
        self.cache = cache

    def start(self, workdir, *flags, devices=1, processes=1, **options):
        """Start the run's processes; returns them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            *(sys.executable, "-m", "vljax.train", "--config", "configs/sdg_ffhq.py"),
            *("--workdir", str(workdir), *SMALL, *flags),
            f"--config.compilation_cache={self.cache}",
        ]
        started = []
        for index in range(processes):
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            }
            if processes > 1:
                environment |= {
                    "VLJAX_COORDINATOR": f"127.0.0.1:{port}",
                    "VLJAX_NUM_PROCESSES": str(processes),
                    "VLJAX_PROCESS_ID": str(index),
                }
            started.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    **options,
                )
            )
        return started

    def __call__(self, workdir, *flags, expect=0, **options):
        """Run to the end; returns what process 0 printed."""
        processes = self.start(workdir, *flags, **options)
        outputs = [process.communicate(timeout=600)[0] for process in processes]
        codes = [process.returncode for process in processes]
        assert set(codes) == {expect}, "\n".join(outputs)
        return outputs[0]

    @staticmethod
    def losses(workdir):
        """The loss of every logged step."""
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return {record["step"]: record["loss"] for record in map(json.loads, lines)}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def run_python():
    """Runs a script with several CPU devices; returns what it printed."""

    def start(script, devices):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        return subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    return start
