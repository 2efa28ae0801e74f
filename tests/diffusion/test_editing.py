"""Editing without attention maps: what is kept, what is noised, what guides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion.editing import (
    blended_diffusion,
    guided,
    keep_from,
    noised_trajectory,
    sdedit,
    steps_done,
)
from vljax.diffusion.process import Process, q_sample
from vljax.diffusion.schedules import linear_schedule, parse_timesteps, respace


@pytest.fixture(scope="module")
def process():
    return Process(respace(linear_schedule(), parse_timesteps(1000, "leading10")))


def noise(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def towards(value):
    """The perfect denoiser of a world whose pictures are all of one value."""

    def denoiser(process):
        def predict(x, t):
            step = jnp.searchsorted(jnp.asarray(process.schedule.timesteps), t)
            signal = jnp.asarray(process.schedule.signal)[step][:, None, None, None]
            spread = jnp.asarray(process.schedule.noise)[step][:, None, None, None]
            return (x - signal * value) / spread

        return predict

    return denoiser


KEEP = jnp.zeros((1, 8, 8)).at[:, :, 4:].set(1.0)


def test_a_noised_trajectory_is_the_forward_process(process):
    z0, eps = noise(2, 4, 4, 3), noise(2, 4, 4, 3, seed=1)
    levels = noised_trajectory(process.schedule, z0, eps)
    np.testing.assert_array_equal(levels[0], z0)
    for step in (0, 9):
        expected = q_sample(process.schedule, z0, jnp.full(2, step), eps)
        np.testing.assert_allclose(levels[step + 1], expected, atol=1e-6)


@pytest.mark.parametrize(("copied", "level"), [("reached", 3), ("left", 4)])
def test_the_level_that_is_copied(copied, level):
    levels = noise(11, 1, 8, 8, 2)
    x = keep_from(levels, KEEP, copied)(jnp.asarray(3), jnp.zeros((1, 8, 8, 2)))
    np.testing.assert_array_equal(x[:, :, 4:], levels[level][:, :, 4:])
    assert (x[:, :, :4] == 0).all()


def test_guidance_is_conditional_plus_the_difference():
    def denoiser(x, t):
        conditional, unconditional = jnp.split(x, 2)
        np.testing.assert_array_equal(conditional, unconditional)
        np.testing.assert_array_equal(t, [5, 7, 5, 7])
        return jnp.concatenate([2.0 * conditional, 0.5 * unconditional])

    x, scale = noise(2, 4, 4, 3), jnp.asarray([0.0, 3.0])
    y = guided(denoiser, scale)(x, jnp.asarray([5, 7]))
    expected = x * (2.0 + scale * (2.0 - 0.5))[:, None, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_steps_are_counted_from_the_noisy_end(process):
    times = jnp.asarray(process.schedule.timesteps)
    assert [int(steps_done(process.schedule, t[None])) for t in times] == list(range(9, -1, -1))


def test_sdedit_paints_what_may_change_and_no_more(process):
    z0 = noise(2, 8, 8, 3)
    run = jax.jit(
        lambda keep: sdedit(process, towards(0.7)(process), z0, noise(2, 8, 8, 3, seed=1), keep)
    )
    edited = run(KEEP)
    np.testing.assert_array_equal(edited[:, :, 4:], z0[:, :, 4:])
    np.testing.assert_allclose(edited[:, :, :4], 0.7, atol=1e-4)
    np.testing.assert_allclose(run(jnp.zeros_like(KEEP)), 0.7, atol=1e-4)
    np.testing.assert_array_equal(run(jnp.ones_like(KEEP)), z0)


def test_the_weaker_sdedit_the_closer_to_the_picture(process):
    """With a denoiser that knows nothing, what is left of the picture falls with the strength."""
    z0 = noise(1, 8, 8, 3)
    times = np.asarray(process.schedule.timesteps)
    left = []
    for count in (2, 9):
        short = Process(respace(linear_schedule(), times[:count]))
        edited = sdedit(
            short, lambda x, t: 0.0 * x, z0, noise(1, 8, 8, 3, seed=1), jnp.zeros((1, 8, 8))
        )
        left.append(float(jnp.corrcoef(edited.ravel(), z0.ravel())[0, 1]))
    assert left[0] > 0.7 > 0.3 > left[1]


def test_blended_diffusion_follows_its_guidance_inside_only(process):
    """Its score is of the clean picture that a step predicts: here how bright that is."""
    x0 = 0.2 * noise(2, 8, 8, 3)
    keys = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def run(scale):
        return blended_diffusion(
            process,
            lambda x, t: 0.5 * x,
            x0,
            KEEP,
            keys,
            score=lambda guess: guess.sum((1, 2, 3)),
            scale=scale,
        )

    dark, bright = run(-2.0), run(2.0)
    for picture in (dark, bright):
        np.testing.assert_array_equal(picture[:, :, 4:], x0[:, :, 4:])
    assert bright[:, :, :4].mean() > dark[:, :, :4].mean() + 0.5


def test_blended_diffusion_scores_the_predicted_picture(process):
    """The perfect denoiser predicts 0.7 whatever it sees: nothing to follow, and so it is drawn."""
    seen = []
    keys = jax.random.split(jax.random.key(3), 1)

    def score(guess):
        jax.debug.callback(lambda g: seen.append(np.asarray(g)), guess)
        return jnp.square(guess).sum((1, 2, 3))

    run = jax.jit(
        lambda x0: blended_diffusion(
            process, towards(0.7)(process), x0, KEEP, keys, score=score, scale=1e3
        )
    )
    edited = run(noise(1, 8, 8, 3))
    np.testing.assert_allclose(edited[:, :, :4], 0.7, atol=1e-3)
    assert len(seen) == len(process.schedule)
    np.testing.assert_allclose(np.stack(seen), 0.7, atol=1e-3)
