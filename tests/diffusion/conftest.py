"""A denoiser simple enough to be the same in every framework, and the one that is optimal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion.process import at, noise_from_x0, v_from_x0
from vljax.diffusion.schedules import named_schedule

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("epsilon", "x0")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def toy(variance="fixed_small", xp=jnp):
    """Smooth, nonlinear, dependent on t; with variance channels if they are to be learned."""

    def denoiser(x, t):
        t = t.reshape(-1, 1, 1, 1)
        prediction = 0.6 * x + 0.2 * xp.sin(0.01 * t + 3 * x)
        if variance != "learned_range":
            return prediction
        return xp.concatenate([prediction, 0.5 * xp.cos(0.02 * t + x)], -1)

    return denoiser


def toy_gradient(x, t):
    return 0.3 * jnp.cos(2 * x) + 0.001 * t.reshape(-1, 1, 1, 1)


def gaussian_denoiser(process, mean, std):
    """The optimal denoiser of pixels drawn from N(mean, std²), with the true reverse variance.

    E[x_0 | x_t] and Var[x_0 | x_t] in closed form; the reverse step then has variance
    β̃ + (posterior factor of x_0)²·Var[x_0 | x_t], which lies between β̃ and β.
    """
    schedule = process.schedule

    def denoiser(x, t):
        step = jnp.searchsorted(jnp.asarray(schedule.timesteps), t)
        signal, noise = at(schedule.signal, step, x), at(schedule.noise, step, x)
        total = (signal * std) ** 2 + noise**2
        x0 = mean + signal * std**2 / total * (x - signal * mean)
        eps = noise_from_x0(schedule, x, x0, step)
        prediction = {"x0": x0, "epsilon": eps, "v": v_from_x0(schedule, x0, eps, step)}
        prediction = prediction[process.prediction]
        if process.variance != "learned_range":
            return prediction
        spread = at(schedule.posterior_mean_x0, step, x) ** 2 * std**2 * noise**2 / total
        low = at(schedule.posterior_log_variance, step, x)
        high = at(schedule.log_betas, step, x)
        exact = jnp.log(at(schedule.posterior_variance, step, x) + spread)
        fraction = (exact - low) / jnp.where(high == low, 1.0, high - low)
        return jnp.concatenate([prediction, jnp.broadcast_to(2 * fraction - 1, x.shape)], -1)

    return denoiser


def assert_close(actual, expected, tolerance=1e-5):
    """Largest difference, relative to the largest value where that is above one."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    error = np.abs(actual - expected).max() / max(1.0, np.abs(expected).max())
    assert error <= tolerance, f"error {error:.2e} exceeds {tolerance:.0e}"


@pytest.fixture(scope="module", autouse=True)
def _quick(quick_to_compile):
    """Most programs here run once."""


@pytest.fixture(autouse=True)
def _count_traces_anew():
    # chex counts by function name, over all parameters of a test.
    chex.clear_trace_counter()


@pytest.fixture(scope="session")
def tools():
    """What the tests of this folder share."""
    return SimpleNamespace(
        toy=toy,
        toy_gradient=toy_gradient,
        gaussian_denoiser=gaussian_denoiser,
        close=assert_close,
        golden=lambda name: dict(np.load(GOLDEN / f"diffusion_{name}.npz")),
        schedules={name: named_schedule(name, 60) for name in SCHEDULES},
        cases=[
            (i, j, k, s, p, v)
            for i, s in enumerate(SCHEDULES)
            for j, p in enumerate(PREDICTIONS)
            for k, v in enumerate(VARIANCES)
        ],
    )
