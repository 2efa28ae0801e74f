"""Samplers, inversion and the likelihood loop, against guided-diffusion and diffusers.

Golden numbers: openai/guided-diffusion, commit 22e0df8183507e13a7813f8d38d51b072ca1e67c, 12 of 60
steps ("7,5"), its random draws replaced by those of `vljax.diffusion.noise`; axes [schedule,
prediction, variance, …]. Live peers: DPMSolverMultistepScheduler, DDIMScheduler and
DDIMInverseScheduler of diffusers with the same toy denoiser.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.noise import example_keys, start_noise, step_noise
from vljax.diffusion.process import Process
from vljax.diffusion.samplers import ddim, ddim_inversion, ddpm, dpm_solver_pp_2m
from vljax.diffusion.schedules import (
    Schedule,
    linear_schedule,
    parse_timesteps,
    respace,
    scaled_linear_schedule,
    spaced_timesteps,
)
from vljax.errors import UserError

TIMES = parse_timesteps(60, "7,5")
KEYS = example_keys(jax.random.key(7), 2)


@pytest.fixture(scope="module")
def golden(tools):
    golden = tools.golden("loops")
    # The golden runs used these draws; if they move, the numbers below mean nothing.
    tools.close(start_noise(KEYS, (2, 2, 1)), golden["x_T"])
    tools.close(step_noise(KEYS, jnp.asarray(0), (2, 2, 1)), golden["first_noise"])
    return golden


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("prediction", "variance"),
    [
        ("epsilon", "fixed_small"),
        pytest.param("epsilon", "fixed_large", marks=SLOW),
        ("epsilon", "learned_range"),
        pytest.param("x0", "fixed_small", marks=SLOW),
        ("x0", "fixed_large"),
        pytest.param("x0", "learned_range", marks=SLOW),
    ],
)
def test_loops_match_guided_diffusion(tools, golden, prediction, variance):
    j = ("epsilon", "x0").index(prediction)
    k = ("fixed_small", "fixed_large", "learned_range").index(variance)

    @jax.jit
    @chex.assert_max_traces(1)
    def run(schedule, x_T, x0, keys, eta):
        process, denoiser = Process(schedule, prediction, variance), tools.toy(variance)
        guided = {"clip": True, "guidance": tools.toy_gradient}
        out = {
            "ddpm": ddpm(process, denoiser, x_T, keys, clip=True),
            "ddpm_guided": ddpm(process, denoiser, x_T, keys, **guided),
            "bits": bits_per_dimension(process, denoiser, x0, keys, clip=True),
        }
        if variance == "fixed_small":
            out |= {
                "ddim": ddim(process, denoiser, x_T, clip=True),
                "ddim_eta": ddim(process, denoiser, x_T, clip=True, eta=eta, keys=keys),
                "ddim_guided": ddim(process, denoiser, x_T, eta=eta, keys=keys, **guided),
                "reverse": ddim_inversion(
                    process, denoiser, x0, evaluate_at="current", trajectory=True
                ),
            }
        return out

    for i, base in enumerate(tools.schedules.values()):
        out = run(respace(base, TIMES), golden["x_T"], golden["x0"], KEYS, jnp.float32(0.7))
        bits = out.pop("bits")
        tools.close(bits.total, golden["total_bpd"][i, j, k])
        tools.close(bits.prior, golden["prior_bpd"][i])
        for ours, theirs in (("vlb", "vb"), ("x0_mse", "xstart_mse"), ("noise_mse", "mse")):
            tools.close(getattr(bits, ours), golden[theirs][i, j, k, :, ::-1])
        if variance == "fixed_small":
            reverse = out.pop("reverse")
            tools.close(reverse[1], golden["reverse_start"][i, j, 0])
            tools.close(reverse[2:], golden["reverse"][i, j, 0])
        for name, samples in out.items():
            tools.close(samples, golden[name][i, j, k])


# diffusers -------------------------------------------------------------------------------------


STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
PEER_PREDICTION = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def peer_loop(scheduler, x, **step_arguments):
    """Run a diffusers scheduler on the toy denoiser, channels last as it does not care."""
    torch = pytest.importorskip("torch")

    def denoiser(x, t):
        return 0.6 * x + 0.2 * torch.sin(0.01 * t + 3 * x)

    x, passed = torch.from_numpy(np.array(x)), []
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t), t, x, **step_arguments).prev_sample
        passed.append(x.numpy())
    return passed


@pytest.mark.parametrize(
    ("prediction", "spacing", "count"),
    [
        ("epsilon", "trailing", 1),
        ("v", "trailing", 5),
        ("x0", "linspace", 10),
        pytest.param("epsilon", "linspace", 14, marks=SLOW),
        ("epsilon", "leading", 20),
        pytest.param("v", "leading", 50, marks=SLOW),
    ],
)
def test_dpm_solver_matches_diffusers(tools, spacing, count, prediction):
    """algorithm_type dpmsolver++, order 2, midpoint, final sigma zero, lower_order_final."""
    pytest.importorskip("torch")  # without it diffusers has names only
    DPMSolverMultistepScheduler = pytest.importorskip("diffusers").DPMSolverMultistepScheduler

    peer = DPMSolverMultistepScheduler(
        **STABLE_DIFFUSION,
        prediction_type=PEER_PREDICTION[prediction],
        timestep_spacing=spacing,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    peer.set_timesteps(count)
    if spacing == "trailing":
        times = spaced_timesteps(1000, count, spacing)
    else:
        times = spaced_timesteps(1000, count + 1, spacing)[1:]
    assert times == peer.timesteps.tolist()[::-1]
    x_T = start_noise(KEYS, (3, 2, 2))
    process = Process(respace(scaled_linear_schedule(), times), prediction)
    ours = dpm_solver_pp_2m(process, tools.toy(), x_T, clip=False, trajectory=True)
    theirs = np.stack([*peer_loop(peer, x_T)[::-1], x_T])
    tools.close(ours, theirs, 1e-4)


@pytest.mark.parametrize(
    ("prediction", "count"), [pytest.param("epsilon", 50, marks=SLOW), ("v", 10)]
)
def test_ddim_and_inversion_match_diffusers(tools, count, prediction):
    """Stable Diffusion's settings: leading, steps_offset 1, set_alpha_to_one False, no clip."""
    pytest.importorskip("torch")  # without it diffusers has names only
    diffusers = pytest.importorskip("diffusers")
    DDIMInverseScheduler, DDIMScheduler = diffusers.DDIMInverseScheduler, diffusers.DDIMScheduler

    settings = {
        **STABLE_DIFFUSION,
        "prediction_type": PEER_PREDICTION[prediction],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    schedule = respace(
        scaled_linear_schedule(), parse_timesteps(1000, f"leading{count}+1"), clean_end=False
    )
    process = Process(schedule, prediction)
    x = start_noise(KEYS, (3, 2, 2))
    for scheduler, sampler in ((DDIMScheduler, ddim), (DDIMInverseScheduler, ddim_inversion)):
        peer = scheduler(**settings)
        peer.set_timesteps(count)
        theirs = peer_loop(peer, x)
        if sampler is ddim:
            ours = ddim(process, tools.toy(), x, clip=False, trajectory=True)
            tools.close(ours, np.stack([*theirs[::-1], x]), 1e-4)
        else:
            ours = ddim_inversion(process, tools.toy(), x, trajectory=True)
            tools.close(ours, np.stack([x, *theirs]), 1e-4)


def test_random_ddim_matches_diffusers(tools):
    torch = pytest.importorskip("torch")
    DDIMScheduler = pytest.importorskip("diffusers").DDIMScheduler

    count, eta = 10, 0.6
    x, theirs = start_noise(KEYS, (3, 2, 2)), None
    peer = DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False)
    peer.set_timesteps(count)
    denoiser = tools.toy()
    schedule = respace(scaled_linear_schedule(), parse_timesteps(1000, f"leading{count}"))
    theirs = torch.from_numpy(np.array(x))
    for step, t in zip(reversed(range(count)), peer.timesteps.tolist(), strict=True):
        output = np.array(denoiser(jnp.asarray(theirs.numpy()), jnp.full(2, t)))
        noise = torch.from_numpy(np.array(step_noise(KEYS, jnp.asarray(step), (3, 2, 2))))
        theirs = peer.step(
            torch.from_numpy(output), t, theirs, eta=eta, variance_noise=noise
        ).prev_sample
    ours = ddim(Process(schedule), denoiser, x, clip=False, eta=eta, keys=KEYS)
    tools.close(ours, theirs.numpy(), 1e-4)


# Closed forms: pixels from N(mean, std²), of which the optimal denoiser is known ---------------

MEAN, STD = 0.1, 0.3


def test_ddpm_draws_the_data(tools):
    process = Process(linear_schedule(100), "v", "learned_range")
    denoiser = tools.gaussian_denoiser(process, MEAN, STD)
    keys = example_keys(jax.random.key(0), 16)
    x_T = start_noise(keys, (32, 32, 1))
    samples = ddpm(process, denoiser, x_T, keys, clip=False)
    # 16384 draws: three standard errors of mean and standard deviation.
    assert samples.mean() == pytest.approx(MEAN, abs=3 * STD / 128)
    assert samples.std() == pytest.approx(STD, rel=3 / 181)
    assert abs(np.corrcoef(samples.ravel(), x_T.ravel())[0, 1]) < 0.05


def exact_map(schedule, x_T, end=None):
    """Where the probability-flow ODE of Gaussian data takes x_T (by time `end`), in float64."""

    def moments(i):
        signal, noise = np.float64(schedule.signal[i]), np.float64(schedule.noise[i])
        return signal * MEAN, np.sqrt((signal * STD) ** 2 + noise**2)

    (mean_T, std_T), (mean, std) = moments(-1), (MEAN, STD) if end is None else moments(end)
    return mean + std * (np.asarray(x_T, np.float64) - mean_T) / std_T


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver_pp_2m, 2)])
def test_solvers_converge_to_the_ode_at_their_order(tools, sampler, order):
    """From time 999 to 199; the last stretch to a clean picture is of first order in any solver."""
    base = scaled_linear_schedule()
    denoiser = tools.gaussian_denoiser(Process(base, "v"), MEAN, STD)
    stretch = respace(base, range(199, 1000))
    x_T = start_noise(KEYS, (8, 8, 1))
    exact = exact_map(base, x_T, end=199)
    errors = []
    for count in (20, 40, 80):
        times = 199 + 800 // count * np.arange(1, count + 1)
        process = Process(respace(stretch, times, clean_end=False), "v")
        errors.append(np.abs(sampler(process, denoiser, x_T, clip=False) - exact).max())
    assert errors[-1] < (0.02, 0.002)[order - 1]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2**order, rtol=0.25)


@pytest.mark.parametrize(
    ("prediction", "evaluate_at"),
    [
        ("epsilon", "next"),
        pytest.param("x0", "next", marks=SLOW),
        pytest.param("v", "next", marks=SLOW),
        ("epsilon", "current"),
    ],
)
def test_generation_undoes_inversion_as_steps_grow(tools, prediction, evaluate_at):
    base = scaled_linear_schedule()
    denoiser = tools.gaussian_denoiser(Process(base, prediction), MEAN, STD)
    photo = MEAN + STD * start_noise(KEYS, (8, 8, 1))
    errors = []
    for count in (25, 200):
        process = Process(respace(base, spaced_timesteps(1000, count, "trailing")), prediction)
        inverted = ddim_inversion(process, denoiser, photo, evaluate_at=evaluate_at)
        again = ddim(process, denoiser, inverted, clip=False)
        errors.append(float(np.abs(again - photo).max()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.1
    np.testing.assert_allclose(exact_map(base, inverted), photo, atol=0.1)


def test_bits_per_dimension_reach_the_entropy(tools):
    process = Process(linear_schedule(1000), "epsilon", "learned_range")
    denoiser = tools.gaussian_denoiser(process, MEAN, STD)
    keys = example_keys(jax.random.key(1), 4)
    x0 = MEAN + STD * start_noise(keys, (32, 32, 1))
    x0 = jnp.round((jnp.clip(x0, -0.99, 0.99) + 1) * 127.5) / 127.5 - 1
    run = jax.jit(lambda x0, keys: bits_per_dimension(process, denoiser, x0, keys, clip=False))
    bits = run(x0, keys)
    # -log2 of the density at x0, times the width 2/255 of a level.
    exact = np.square((x0 - MEAN) / STD) / 2 + np.log(STD * np.sqrt(2 * np.pi) * 127.5)
    exact = exact.mean((1, 2, 3)) / np.log(2)
    assert bits.total.mean() == pytest.approx(exact.mean(), abs=0.03)
    wrong = tools.gaussian_denoiser(process, MEAN, 2 * STD)
    worse = jax.jit(lambda x0, keys: bits_per_dimension(process, wrong, x0, keys, clip=False))
    assert (worse(x0, keys).total > bits.total + 0.1).all()


# Ways of use -----------------------------------------------------------------------------------


def all_samplers(process, denoiser, x_T, keys, **options):
    @jax.jit
    def run(x_T, keys):
        return (
            ddpm(process, denoiser, x_T, keys, clip=True, **options),
            ddim(process, denoiser, x_T, clip=True, eta=0.5, keys=keys, **options),
            dpm_solver_pp_2m(process, denoiser, x_T, clip=True, **options),
        )

    return run(x_T, keys)


def test_a_picture_depends_on_its_own_key_only(tools):
    process = Process(respace(linear_schedule(), TIMES))
    keys = example_keys(jax.random.key(3), 5)
    x_T = start_noise(keys, (4, 4, 1))
    alone, x_alone = keys[3:4], start_noise(keys[3:4], (4, 4, 1))
    for batch, single in zip(
        all_samplers(process, tools.toy(), x_T, keys),
        all_samplers(process, tools.toy(), x_alone, alone),
        strict=True,
    ):
        tools.close(batch[3:4], single, 1e-6)
    np.testing.assert_array_equal(
        jax.random.key_data(example_keys(jax.random.key(3), 2, first=3)),
        jax.random.key_data(keys[3:]),
    )


def test_guidance_acts_per_example_and_moves_samples_uphill(tools):
    process = Process(respace(linear_schedule(), TIMES))
    keys = example_keys(jax.random.key(3), 2)
    x_T = start_noise(keys, (4, 4, 1))
    strength = jnp.array([0.0, 2.0]).reshape(2, 1, 1, 1)
    plain = all_samplers(process, tools.toy(), x_T, keys)
    bent = all_samplers(
        process, tools.toy(), x_T, keys, guidance=lambda x, t: strength * jnp.ones_like(x)
    )
    for a, b in zip(plain, bent, strict=True):
        tools.close(b[0], a[0], 1e-6)
        assert (b[1] - a[1]).mean() > 0.01


@pytest.mark.usefixtures("optimised")  # two programs, the same to the last bit
def test_trajectory_and_background_copy(tools):
    process = Process(respace(scaled_linear_schedule(), parse_timesteps(1000, "leading10+1")))
    photo = start_noise(KEYS, (4, 4, 2))
    inversion = ddim_inversion(process, tools.toy(), photo, trajectory=True)
    assert inversion.shape == (11, 2, 4, 4, 2)
    np.testing.assert_array_equal(inversion[0], photo)
    np.testing.assert_array_equal(inversion[-1], ddim_inversion(process, tools.toy(), photo))
    shape = jnp.zeros((1, 4, 4, 1)).at[:, :2].set(1)

    def copy_background(step, x):
        return jnp.where(shape > 0, x, inversion[step])

    for sampler in (ddim, dpm_solver_pp_2m):
        latents = sampler(
            process,
            tools.toy(),
            inversion[-1],
            clip=False,
            after_step=copy_background,
            trajectory=True,
        )
        np.testing.assert_array_equal(latents[:, :, 2:], inversion[:, :, 2:])
        assert (latents[0, :, :2] != photo[:, :2]).any()


def test_partial_schedule_starts_from_a_noised_picture(tools):
    base = linear_schedule()
    full = respace(base, spaced_timesteps(1000, 20, "trailing"))
    half = respace(full, full.timesteps[:10])
    process = Process(full)
    x_T = start_noise(KEYS, (4, 4, 1))
    passed = ddim(process, tools.toy(), x_T, clip=False, trajectory=True)
    finished = ddim(Process(half), tools.toy(), passed[10], clip=False)
    tools.close(finished, passed[0])


def test_a_second_call_compiles_nothing(tools):
    @jax.jit
    @chex.assert_max_traces(1)
    def run(schedule: Schedule, weight, x_T, keys, eta):
        process = Process(schedule, "v", "learned_range")

        def denoiser(x, t):
            return weight * tools.toy("learned_range")(x, t)

        return (
            ddpm(process, denoiser, x_T, keys, clip=True),
            ddim(process, denoiser, x_T, clip=True, eta=eta, keys=keys),
            dpm_solver_pp_2m(process, denoiser, x_T, clip=True),
            ddim_inversion(process, denoiser, x_T),
            bits_per_dimension(process, denoiser, x_T, keys, clip=True).total,
        )

    base = linear_schedule()
    outputs = []
    for seed, text, weight, eta in ((0, "12", 1.0, 0.0), (1, "7,5", 0.9, 1.0)):
        keys = example_keys(jax.random.key(seed), 2)
        schedule = respace(base, parse_timesteps(1000, text))
        x_T = start_noise(keys, (4, 4, 1))
        outputs.append(run(schedule, jnp.float32(weight), x_T, keys, jnp.float32(eta)))
    for first, second in zip(*outputs, strict=True):
        assert np.isfinite(first).all()
        assert np.isfinite(second).all()
        assert not np.allclose(first, second)
    # One program, one loop per sampler.
    text = str(jax.make_jaxpr(lambda x: ddim(Process(schedule), tools.toy(), x, clip=True))(x_T))
    assert text.count("scan[") == 1


def test_low_precision_denoisers_and_inputs_stay_float32_inside(tools):
    process = Process(respace(linear_schedule(), TIMES))

    def denoiser(x, t):
        assert x.dtype == jnp.float32
        return tools.toy()(x, t).astype(jnp.bfloat16)

    x_T = start_noise(KEYS, (4, 4, 1)).astype(jnp.bfloat16)
    for samples in all_samplers(process, denoiser, x_T, KEYS):
        assert samples.dtype == jnp.float32
        assert np.isfinite(samples).all()


def test_mistakes_are_named(tools):
    process = Process(linear_schedule(50))
    x = start_noise(KEYS, (2, 2, 1))
    with pytest.raises(UserError, match=r"^eta=0.5: "):
        ddim(process, tools.toy(), x, clip=True, eta=0.5)
    with pytest.raises(UserError, match=r"^evaluate_at='previous': "):
        ddim_inversion(process, tools.toy(), x, evaluate_at="previous")
