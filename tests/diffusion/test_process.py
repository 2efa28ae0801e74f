"""Process, losses and VLB terms against guided-diffusion.

Golden numbers: openai/guided-diffusion, commit 22e0df8183507e13a7813f8d38d51b072ca1e67c, its
tables in float32 and its arithmetic in float64, with the toy denoiser of conftest. Axes are
[schedule, prediction, variance, example, …]; NaN where nothing was recorded.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion import likelihood, losses, process, timesteps
from vljax.diffusion.schedules import linear_schedule, named_schedule
from vljax.errors import UserError


@pytest.fixture(scope="module")
def golden(tools):
    return tools.golden("process")


@pytest.fixture(scope="module")
def data(golden):
    return jnp.asarray(golden["x0"]), jnp.asarray(golden["steps"]), jnp.asarray(golden["noise"])


@pytest.mark.parametrize("i", [0, 1])
def test_forward_and_posterior(tools, golden, data, i):
    x0, step, noise = data
    schedule = named_schedule(("linear", "cosine")[i], 40)
    x_t = process.q_sample(schedule, x0, step, noise)
    tools.close(x_t, golden["x_t"][i])
    posterior = process.q_posterior(schedule, x0, x_t, step)
    tools.close(posterior.mean, golden["posterior_mean"][i])
    tools.close(posterior.variance.ravel(), golden["posterior_variance"][i])
    tools.close(posterior.log_variance.ravel(), golden["posterior_log_variance"][i])
    tools.close(likelihood.prior_term(schedule, x0), golden["prior"][i])


def test_reverse_process(tools, golden, data):
    x0, step, noise = data
    compared = 0
    for i, j, k, name, prediction, variance in tools.cases:
        if np.isnan(golden["mean"][i, j, k]).any():
            continue
        compared += 1
        setup = process.Process(named_schedule(name, 40), prediction, variance)
        x_t = process.q_sample(setup.schedule, x0, step, noise)
        denoiser = tools.toy(variance)
        clip = variance == "fixed_large"
        reverse = process.p_mean_variance(setup, denoiser, x_t, step, clip=clip)
        tools.close(reverse.mean, golden["mean"][i, j, k])
        tools.close(reverse.variance, golden["variance"][i, j, k])
        tools.close(reverse.log_variance, golden["log_variance"][i, j, k])
        tools.close(reverse.x0, golden["pred_xstart"][i, j, k])
        if variance == "fixed_small":
            gradient = tools.toy_gradient(x_t, step)
            shifted = process.condition_mean(reverse, gradient)
            tools.close(shifted.mean, golden["condition_mean"][i, j, 0])
            bent = process.condition_score(setup, reverse, gradient, x_t, step)
            tools.close(bent.x0, golden["condition_score_x0"][i, j, 0])
            tools.close(bent.mean, golden["condition_score_mean"][i, j, 0])
    assert compared == 8


def test_vlb_and_losses(tools, golden, data):
    x0, step, noise = data
    for i, j, k, name, prediction, variance in tools.cases:
        setup = process.Process(named_schedule(name, 40), prediction, variance)
        denoiser = tools.toy(variance)
        x_t = process.q_sample(setup.schedule, x0, step, noise)
        reverse = process.p_mean_variance(setup, denoiser, x_t, step, clip=True)
        term = likelihood.vlb_term(setup, reverse, x0, x_t, step)
        tools.close(term, golden["vlb"][i, j, k])
        vlb, _ = losses.vlb_loss(setup, denoiser, x0, step, noise)
        tools.close(vlb, golden["loss_kl"][i, j, k])
        if variance == "learned_range":
            loss, terms = losses.hybrid_loss(setup, denoiser, x0, step, noise)
            tools.close(terms["vlb"] / 1000, golden["vb"][i, j, k])
        else:
            loss, _ = losses.simple_loss(setup, denoiser, x0, step, noise)
        tools.close(loss, golden["loss_mse"][i, j, k])


def test_parametrisations_agree(tools, data):
    x0, step, noise = data
    schedule = linear_schedule(40)
    x_t = process.q_sample(schedule, x0, step, noise)
    v = process.v_from_x0(schedule, x0, noise, step)
    tools.close(process.x0_from_noise(schedule, x_t, noise, step), x0, 1e-4)
    tools.close(process.noise_from_x0(schedule, x_t, x0, step), noise, 1e-4)
    tools.close(process.x0_from_v(schedule, x_t, v, step), x0)
    tools.close(process.noise_from_v(schedule, x_t, v, step), noise)
    for prediction in ("epsilon", "x0", "v"):
        setup = process.Process(schedule, prediction)
        target = process.training_target(setup, x0, noise, step)
        loss, _ = losses.simple_loss(setup, lambda x, t, y=target: y, x0, step, noise)
        assert not loss.any()
        reverse = process.interpret(setup, target, x_t, step)
        tools.close(reverse.x0, x0, 1e-4)
        tools.close(reverse.noise, noise, 1e-4)
        tools.close(reverse.mean, process.q_posterior(schedule, x0, x_t, step).mean, 1e-4)


def test_hybrid_trains_the_mean_by_mse_alone(data):
    x0, step, noise = data
    setup = process.Process(linear_schedule(40), "v", "learned_range")

    def loss(parameters, kind):
        def denoiser(x, t):
            return jnp.concatenate([parameters["mean"] * x, parameters["variance"] + 0 * x], -1)

        return losses.named_loss(kind)(setup, denoiser, x0, step, noise)[0].mean()

    parameters = {"mean": jnp.float32(0.3), "variance": jnp.float32(0.1)}
    simple, hybrid, vlb = (jax.grad(loss)(parameters, kind) for kind in ("simple", "hybrid", "vlb"))
    np.testing.assert_allclose(hybrid["mean"], simple["mean"], rtol=1e-6)
    np.testing.assert_allclose(hybrid["variance"], vlb["variance"] / 1000, rtol=1e-5)
    assert simple["variance"] == 0
    assert abs(vlb["variance"]) > 1e-3
    assert abs(vlb["mean"]) > 1e-3


def test_losses_call_the_denoiser_once_and_follow_schedule_without_compiling(tools, data):
    x0, step, noise = data
    calls = []

    def denoiser(x, t):
        calls.append(t.shape)
        return tools.toy("learned_range")(x, t).astype(jnp.bfloat16)

    for kind in ("simple", "vlb", "hybrid"):
        calls.clear()
        chex.clear_trace_counter()

        @jax.jit
        @chex.assert_max_traces(1)
        def loss(schedule, x0, step, noise, kind=kind):
            setup = process.Process(schedule, "epsilon", "learned_range")
            return losses.named_loss(kind)(setup, denoiser, x0, step, noise)

        first, _ = loss(named_schedule("linear", 40), x0, step, noise)
        second, _ = loss(named_schedule("cosine", 40), x0 / 2, step[::-1], noise)
        assert len(calls) == 1
        assert first.dtype == jnp.float32
        assert not np.allclose(first, second)


def test_a_batchs_loss_is_weighted_by_the_rarity_of_its_times():
    """Of no picture at all the noise is known, so that each time's error can be chosen."""
    setup = process.Process(named_schedule("cosine", 8), "epsilon", "fixed_small")
    error = jnp.linspace(1.0, 3.0, 8)

    def denoiser(x, t):
        return x / process.at(setup.schedule.noise, t, x) + process.at(error, t, x)

    sampler = timesteps.LossSecondMomentTimesteps.create(8, recent=1)
    sampler = sampler.update(jnp.arange(8), error**4)
    keys, x0 = jax.random.split(jax.random.key(3)), jnp.zeros((64, 2, 2, 3))
    run = jax.jit(lambda sampler: losses.denoising_loss(setup, denoiser, x0, keys, sampler))
    value, (metrics, seen) = run(sampler)
    step, weight = sampler.sample(keys[0], 64)
    assert len(np.unique(weight)) > 2
    np.testing.assert_allclose(value, (weight * error[step] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], (error[step] ** 2).mean(), rtol=1e-5)
    found = np.unique(step)
    np.testing.assert_allclose(seen.history[found, 0], error[found] ** 2, rtol=1e-4)
    value, (metrics, _) = run(timesteps.UniformTimesteps(8))
    assert value == metrics["mse"]


def test_decoder_is_a_distribution_with_finite_gradients():
    levels = jnp.arange(256) / 127.5 - 1
    for mean, scale in ((0.0, 0.2), (0.7, 0.01), (-1.0, 0.004), (1.3, 0.5)):
        log_p = likelihood.discretized_gaussian_log_likelihood(
            levels, jnp.full(256, mean), jnp.full(256, jnp.log(scale))
        )
        assert jnp.exp(log_p).sum() == pytest.approx(1, abs=1e-4)

    def total(mean, log_scale):
        return likelihood.discretized_gaussian_log_likelihood(levels, mean, log_scale).sum()

    for mean in (-30.0, 0.0, 5.0):
        for log_scale in (-12.0, -5.0, 3.0):
            gradient = jax.grad(total, (0, 1))(jnp.full(256, mean), jnp.full(256, log_scale))
            assert all(jnp.isfinite(g).all() for g in gradient)


def test_mistakes_are_named(tools, data):
    x0, step, noise = data
    schedule = linear_schedule(40)
    with pytest.raises(UserError, match=r"^prediction='score': "):
        process.Process(schedule, "score")
    with pytest.raises(UserError, match=r"^variance='learned': "):
        process.Process(schedule, "epsilon", "learned")
    with pytest.raises(UserError, match=r"^variance='fixed_small': .*\(6, 2, 2, 4\)"):
        losses.simple_loss(process.Process(schedule), tools.toy("learned_range"), x0, step, noise)
    with pytest.raises(UserError, match=r"^loss='hybrid': "):
        losses.hybrid_loss(process.Process(schedule), tools.toy(), x0, step, noise)
    with pytest.raises(UserError, match=r"^loss='l1': "):
        losses.named_loss("l1")
