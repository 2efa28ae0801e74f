"""Timestep samplers against guided-diffusion (commit 22e0df8183507e13a7813f8d38d51b072ca1e67c)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion.timesteps import (
    LossSecondMomentTimesteps,
    UniformTimesteps,
    named_timestep_sampler,
)
from vljax.errors import UserError


def test_probabilities_match_guided_diffusion(tools):
    golden = tools.golden("timesteps")
    sampler = LossSecondMomentTimesteps.create(8, recent=3)
    update = jax.jit(chex.assert_max_traces(type(sampler).update, 1))
    warmed = []
    for step, losses, expected in zip(
        golden["resampler/steps"],
        golden["resampler/losses"],
        golden["resampler/probabilities"],
        strict=True,
    ):
        sampler = update(sampler, step, losses)
        np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-5)
        warmed.append(np.ptp(expected) > 0)
    assert not warmed[0]
    assert warmed[-1]


def test_more_losses_than_history_keeps_the_latest():
    sampler = LossSecondMomentTimesteps.create(2, recent=3)
    sampler = sampler.update(jnp.array([1, 1, 0, 1, 1, 1]), jnp.arange(1.0, 7.0))
    assert sorted(sampler.history[1].tolist()) == [4, 5, 6]
    assert sampler.history[0].tolist() == [3, 0, 0]
    assert sampler.counts.tolist() == [1, 5]
    sampler = sampler.update(jnp.array([1]), jnp.array([7.0]))
    assert sorted(sampler.history[1].tolist()) == [5, 6, 7]


def test_weights_keep_the_expected_loss():
    steps, batch = 20, 50_000
    sampler = LossSecondMomentTimesteps.create(steps, recent=2)
    losses = jnp.linspace(0.1, 4, steps) ** 2
    everything = jnp.repeat(jnp.arange(steps), 2)
    sampler = sampler.update(everything, losses[everything])
    step, weights = jax.jit(type(sampler).sample, static_argnums=2)(
        sampler, jax.random.key(0), batch
    )
    frequency = np.bincount(step, minlength=steps) / batch
    np.testing.assert_allclose(frequency, sampler.probabilities(), atol=0.01)
    assert frequency[-1] > 5 * frequency[1]
    assert (weights * losses[step]).mean() == pytest.approx(float(losses.mean()), rel=0.02)


def test_all_zero_losses_stay_uniform():
    sampler = LossSecondMomentTimesteps.create(4, recent=1)
    sampler = sampler.update(jnp.arange(4), jnp.zeros(4))
    np.testing.assert_allclose(sampler.probabilities(), 0.25, rtol=1e-6)


def test_uniform():
    sampler = UniformTimesteps(10)
    step, weights = sampler.sample(jax.random.key(0), 10_000)
    np.testing.assert_allclose(np.bincount(step, minlength=10) / 10_000, 0.1, atol=0.02)
    assert (weights == 1).all()
    assert sampler.update(step, weights) == sampler


def test_names():
    assert isinstance(named_timestep_sampler("uniform", 7), UniformTimesteps)
    assert named_timestep_sampler("loss_second_moment", 7).history.shape == (7, 10)
    with pytest.raises(UserError, match=r"^timestep_sampler='even': "):
        named_timestep_sampler("even", 7)
