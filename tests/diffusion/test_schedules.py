"""Schedules and respacing, against guided-diffusion and diffusers.

Golden numbers: openai/guided-diffusion, commit 22e0df8183507e13a7813f8d38d51b072ca1e67c.
"""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.diffusion import schedules
from vljax.errors import UserError


def test_betas_match_guided_diffusion(tools):
    golden = tools.golden("process")["betas"]
    for name, expected in zip(("linear", "cosine"), golden, strict=True):
        np.testing.assert_allclose(schedules.named_schedule(name, 40).betas, expected, rtol=1e-6)


def test_betas_of_respaced_schedule_match_guided_diffusion(tools):
    golden = tools.golden("loops")
    times = schedules.parse_timesteps(60, "7,5")
    assert times == golden["timestep_map"].tolist()
    for (_, base), expected in zip(tools.schedules.items(), golden["betas"], strict=True):
        schedule = schedules.respace(base, times)
        np.testing.assert_allclose(schedule.betas, expected, rtol=1e-6)
        assert schedule.timesteps.tolist() == times


def test_scaled_linear_matches_diffusers():
    pytest.importorskip("torch")  # without it diffusers has names only
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler

    peer = DDIMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear")
    ours = schedules.scaled_linear_schedule()
    np.testing.assert_allclose(ours.betas, peer.betas, rtol=1e-5)
    np.testing.assert_allclose(ours.alphas_cumprod, peer.alphas_cumprod, rtol=1e-4)


def test_sections_match_guided_diffusion(tools):
    cases = {k: v for k, v in tools.golden("timesteps").items() if k[0].isdigit()}
    assert len(cases) >= 10
    for case, expected in cases.items():
        steps, text = case.split("/")
        assert schedules.parse_timesteps(int(steps), text) == expected.tolist(), case


@pytest.mark.parametrize("count", [1, 7, 20, 27, 50, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_match_diffusers(spacing, count):
    pytest.importorskip("torch")  # without it diffusers has names only
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler

    peer = DDIMScheduler(1000, timestep_spacing=spacing)
    peer.set_timesteps(count)
    assert schedules.spaced_timesteps(1000, count, spacing) == peer.timesteps.tolist()[::-1]


def test_parsing_of_spacings():
    assert schedules.parse_timesteps(1000, "leading50+1")[:2] == [1, 21]
    assert schedules.parse_timesteps(1000, "trailing4") == [249, 499, 749, 999]
    assert schedules.parse_timesteps(1000, "linspace 3") == [0, 500, 999]


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 59), min_size=1), st.sampled_from(["linear", "cosine"]))
def test_respacing_keeps_marginals_and_is_transitive(times, name):
    base = schedules.named_schedule(name, 60)
    kept = sorted(times)
    once = schedules.respace(base, times)
    np.testing.assert_allclose(once.signal, base.signal[kept], rtol=3e-6)
    np.testing.assert_allclose(once.noise, base.noise[kept], rtol=3e-6)
    half = kept[::2]
    twice, direct = schedules.respace(once, half), schedules.respace(base, half)
    for a, b in zip(jax.tree.leaves(twice), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
def test_tables_are_accurate_and_finite(name):
    schedule = schedules.named_schedule(name, 1000)
    alphas_cumprod = np.cumprod(1 - np.asarray(schedule.betas, np.float64))
    # float32 cannot hold 1 - ᾱ by subtraction where ᾱ is near 1; the tables must.
    np.testing.assert_allclose(schedule.noise**2, 1 - alphas_cumprod, rtol=1e-6)
    half_log_snr = np.log(schedule.signal.astype(np.float64) / schedule.noise)
    np.testing.assert_allclose(schedule.half_log_snr_step[1:], -np.diff(half_log_snr), atol=2e-6)
    for table in jax.tree.leaves(schedule):
        assert np.isfinite(table[1:]).all()
    assert schedule.half_log_snr_step[0] == np.inf


def test_noisy_end_of_stable_diffusion():
    base = schedules.scaled_linear_schedule()
    schedule = schedules.respace(
        base, schedules.parse_timesteps(1000, "leading50"), clean_end=False
    )
    assert schedule.signal_previous[0] == pytest.approx(base.signal[0])
    assert all(np.isfinite(table).all() for table in jax.tree.leaves(schedule))
    assert schedule.timesteps[0] == 0
    assert schedule.betas[0] == 0


def test_single_step():
    """All noise goes at once: the step's own noise is all there is, its posterior the picture."""
    base = schedules.linear_schedule()
    schedule = schedules.respace(base, [999])
    assert schedule.timesteps.tolist() == [999]
    np.testing.assert_allclose(schedule.signal, base.signal[999:])
    np.testing.assert_allclose(schedule.betas, 1 - base.signal[999:] ** 2, rtol=1e-6)
    np.testing.assert_array_equal(schedule.posterior_mean_x0, [1])
    np.testing.assert_array_equal(schedule.posterior_variance, [0])


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: schedules.named_schedule("sqrt"), "schedule"),
        (lambda: schedules.named_schedule("cosine", 0), "num_steps"),
        (lambda: schedules.named_schedule("linear", 20), "betas"),
        (lambda: schedules.schedule_from_betas([]), "betas"),
        (lambda: schedules.respace(schedules.linear_schedule(50), []), "timesteps"),
        (lambda: schedules.respace(schedules.linear_schedule(50), [50]), "timesteps"),
        (lambda: schedules.parse_timesteps(1000, "ddim300"), "steps"),
        (lambda: schedules.parse_timesteps(1000, "fast"), "steps"),
        (lambda: schedules.parse_timesteps(1000, "10,0"), "steps"),
        (lambda: schedules.parse_timesteps(10, "11"), "steps"),
        (lambda: schedules.spaced_timesteps(1000, 1001, "leading"), "steps"),
        (lambda: schedules.spaced_timesteps(1000, 1000, "leading", 1), "offset"),
        (lambda: schedules.spaced_timesteps(1000, 10, "trailing", 1), "offset"),
        (lambda: schedules.spaced_timesteps(1000, 10, "even"), "spacing"),
    ],
)
def test_mistakes_are_named(call, field):
    with pytest.raises(UserError, match=f"^{field}=.*: ") as error:
        call()
    assert "\n" not in str(error.value)
