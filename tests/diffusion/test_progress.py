"""Progress from inside compiled programs, on one device and on a mesh."""

import os
import subprocess
import sys
import textwrap
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Process
from vljax.diffusion.progress import in_steps, progress_bar, report_to, shown_to
from vljax.diffusion.samplers import ddim, ddim_inversion
from vljax.diffusion.schedules import linear_schedule

STEPS = 40


def test_listeners_change_without_compiling_and_hear_only_their_run(tools):
    @jax.jit
    @chex.assert_max_traces(1)
    def run(x, progress):
        return ddim(Process(linear_schedule(STEPS)), tools.toy(), x, clip=True, progress=progress)

    x = start_noise(example_keys(jax.random.key(0), 2), (4, 4, 1))
    heard, other = [], []
    with report_to(lambda *report: heard.append(report), interval=0) as progress:
        first = run(x, progress)
    assert heard == [(done, STEPS) for done in range(1, STEPS + 1)]
    with report_to(lambda done, total: other.append(done), interval=1e9) as progress:
        second = run(x, progress)
    assert other == [1, 2, 4, 8, 16, 32, 40]
    assert len(heard) == STEPS
    # Its run being over, a token has nobody left to tell.
    run(x, progress).block_until_ready()
    assert len(other) == 7
    chex.assert_trees_all_equal(
        first, second, ddim(Process(linear_schedule(STEPS)), tools.toy(), x, clip=True)
    )


def test_inversion_and_likelihood_report_too(tools):
    process, keys = Process(linear_schedule(STEPS)), example_keys(jax.random.key(0), 1)
    x = start_noise(keys, (2, 2, 1))
    heard = []
    with report_to(lambda done, _: heard.append(done), interval=0) as progress:
        ddim_inversion(process, tools.toy(), x, progress=progress)
    assert heard == list(range(1, STEPS + 1))
    heard.clear()
    with report_to(lambda done, _: heard.append(done), interval=0) as progress:
        bits_per_dimension(process, tools.toy(), x, keys, clip=True, progress=progress)
    assert heard == list(range(1, STEPS + 1))


def test_bar_is_drawn(tools, capsys):
    with progress_bar("sampling") as progress:
        ddim(
            Process(linear_schedule(STEPS)), tools.toy(), jnp.ones((1, 2, 2, 1)), clip=True,
            progress=progress,
        )  # fmt: skip
    shown = capsys.readouterr().out
    assert "sampling" in shown
    assert "40/40" in shown


def test_what_the_host_does_is_told_before_each_part(capsys):
    heard, done = [], []

    def until_two(*told):
        heard.append(told)
        if told[1] == 2:
            raise InterruptedError

    with shown_to(lambda *told: heard.append(told)):
        assert list(in_steps("writing", "ab")) == ["a", "b"]
    assert heard == [("writing", i, 2) for i in range(3)]
    with shown_to(until_two), pytest.raises(InterruptedError):
        done.extend(in_steps("writing", "abcd"))
    assert done == ["a", "b"]
    assert list(in_steps("writing", "a")) == ["a"]
    assert not capsys.readouterr().out
    assert list(in_steps("writing", "abc")) == ["a", "b", "c"]
    shown = capsys.readouterr().out
    assert "writing" in shown
    assert "3/3" in shown


def test_reports_are_spaced_by_time():
    """Steps of 5 ms, ten reports a second: far fewer than steps, never silent for long."""

    def slow(x, t):
        return jax.pure_callback(lambda x: (time.sleep(0.005), np.asarray(x))[1], x, x)

    heard = []
    with report_to(lambda done, _: heard.append((done, time.monotonic()))) as progress:
        ddim(
            Process(linear_schedule(200)), slow, jnp.ones((1, 2, 2, 1)), clip=True,
            progress=progress,
        )  # fmt: skip
    assert 6 <= len(heard) <= 60
    assert heard[-1][0] == 200
    assert np.diff([done for done, _ in heard]).max() <= 40


def test_mesh_samples_the_same_pictures_and_reports_once():
    """Four devices in a process of their own: sharded batch under jit, and shard_map."""
    program = """
        import jax
        jax.config.update("jax_num_cpu_devices", 4)
        import jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from vljax.diffusion.noise import example_keys, start_noise
        from vljax.diffusion.process import Process
        from vljax.diffusion.progress import report_to
        from vljax.diffusion.samplers import ddpm
        from vljax.diffusion.schedules import linear_schedule
        from vljax.diffusion.timesteps import LossSecondMomentTimesteps

        def denoiser(x, t):
            return 0.6 * x + 0.2 * jnp.sin(0.01 * t.reshape(-1, 1, 1, 1) + 3 * x)

        def run(x, keys, progress):
            process = Process(linear_schedule(30))
            return ddpm(process, denoiser, x, keys, clip=True, progress=progress, trajectory=True)

        keys = example_keys(jax.random.key(0), 8)
        x = start_noise(keys, (4, 4, 1))
        expected = jax.jit(run)(x, keys, None)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
            split = NamedSharding(mesh, P("data"))
            inputs = jax.device_put(x, split), jax.device_put(keys, split)
            in_shards = jax.shard_map(
                run, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P(None, "data"))
            for function in (run, in_shards):
                heard = []
                with report_to(lambda d, n: heard.append(d), interval=0) as progress:
                    samples = jax.jit(function)(*inputs, progress)
                assert heard == list(range(1, 31)), heard
                np.testing.assert_allclose(samples, expected, atol=1e-6)
                assert samples.sharding.shard_shape(samples.shape)[1] == 2, samples.sharding

        sampler = LossSecondMomentTimesteps.create(6, recent=2)
        steps, losses = jax.random.randint(jax.random.key(1), (8,), 0, 6), jnp.arange(8.0)
        expected = sampler.update(steps, losses)
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        split = NamedSharding(mesh, P("data"))
        whole = jax.jit(type(sampler).update)(
            sampler, jax.device_put(steps, split), jax.device_put(losses, split))
        np.testing.assert_array_equal(whole.history, expected.history)
        assert whole.history.sharding.is_fully_replicated
        print("done")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.strip() == "done", run.stderr[-3000:]
