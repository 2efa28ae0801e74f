"""Guidance by scores, against finite differences, closed forms and guided-diffusion's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.diffusion import guidance as guiding
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Process, condition_mean, p_mean_variance
from vljax.diffusion.samplers import ddim, ddpm
from vljax.diffusion.schedules import named_schedule, respace
from vljax.errors import UserError

SCHEDULE = named_schedule("linear", 1000)
SIZE, EMBED = 16, 6


def patches(x, size):
    """The squares of a picture as vectors: [b h w c] to [b h/size w/size size²·c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


@pytest.fixture(scope="module")
def tower():
    """A smooth tower of two layers whose answer depends on time."""
    rng = np.random.default_rng(0)
    fine, coarse, last = (
        rng.normal(0, n**-0.5, (n, m)).astype(np.float32) for n, m in ((48, 8), (32, 5), (5, EMBED))
    )

    def encode(x, t):
        first = jnp.tanh(patches(x, 4) @ fine + 1e-3 * t[:, None, None, None])
        second = jnp.tanh(patches(first, 2) @ coarse)
        return second.mean((1, 2)) @ last, (first, second)

    return encode


@pytest.fixture(scope="module")
def pictures():
    return jax.random.uniform(jax.random.key(3), (2, SIZE, SIZE, 3), minval=-1)


def terms(tower, pictures):
    """One of each aspect, by name."""
    keys = example_keys(jax.random.key(4), 2)
    photo = guiding.noised_reference(tower, SCHEDULE, pictures[:1], keys)
    return {
        "language": guiding.language(jax.random.normal(jax.random.key(5), (EMBED,))),
        "content": guiding.content(photo),
        "structure": guiding.structure(photo),
        "style": guiding.style(photo),
    }


@pytest.fixture(scope="module")
def gradients(tower, pictures):
    """Scores and gradients of each aspect and of their sum, from one program."""
    t = jnp.array([700, 40])
    weights = {"language": 3.0, "content": 2.0, "structure": 1.5, "style": 50.0}

    @jax.jit
    def compute(x, direction, step):
        made = terms(tower, pictures)
        scores = {n: guiding.semantic_score(tower, [(1.0, f)]) for n, f in made.items()}
        scores["sum"] = guiding.semantic_score(tower, [(weights[n], made[n]) for n in made])
        results = {}
        for name, score in scores.items():
            gradient = guiding.score_guidance(score)(x, t)
            slope = (score(x + step * direction, t) - score(x - step * direction, t)) / (2 * step)
            results[name] = score(x, t), gradient, slope
        return results

    x = jax.random.normal(jax.random.key(6), (2, SIZE, SIZE, 3))
    direction = jax.random.normal(jax.random.key(7), x.shape)
    return compute(x, direction, 1e-2), direction, weights


@pytest.mark.parametrize("name", ["language", "content", "structure", "style", "sum"])
def test_gradients_are_finite_differences(gradients, name):
    results, direction, _ = gradients
    score, gradient, slope = results[name]
    along = (gradient * direction).sum((1, 2, 3))
    # A score is known to some steps of float32, and their difference is divided by 0.02.
    known = 4 * np.spacing(np.abs(score)) / 0.02
    assert (np.abs(along - slope) <= 1e-2 * np.abs(slope) + known).all()
    assert (np.abs(along) > 10 * known).all()


def test_multimodal_guidance_is_the_weighted_sum(gradients):
    results, _, weights = gradients
    for place in (0, 1):
        parts = sum(weight * results[name][place] for name, weight in weights.items())
        np.testing.assert_allclose(results["sum"][place], parts, rtol=1e-4, atol=1e-6)


def test_terms_have_the_papers_form():
    """Equations 4.6 to 4.9, spelled out in numpy."""
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((2, 2, 2, 5))]
    others = [rng.standard_normal(m.shape) for m in maps]
    seen = guiding.Encoding(rng.standard_normal((2, 6)), maps)
    reference = guiding.Encoding(rng.standard_normal((2, 6)), others)
    t = jnp.array([5, 6])

    def cosine(a, b):
        return [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]

    expected = {
        "content": cosine(seen.embedding, reference.embedding),
        "structure": np.zeros(2),
        "style": np.zeros(2),
    }
    for ours, theirs in zip(maps, others, strict=True):
        _, h, w, c = ours.shape
        for i in range(2):
            expected["structure"][i] -= ((ours[i] - theirs[i]) ** 2).sum() / (c * h * w)
            a, b = (m[i].reshape(-1, c) for m in (ours, theirs))
            expected["style"][i] -= np.linalg.norm((a.T @ a - b.T @ b) / (c * h * w)) ** 2
    seen = jax.tree.map(jnp.asarray, seen)
    for name, value in expected.items():
        term = getattr(guiding, name)(lambda t: jax.tree.map(jnp.asarray, reference))
        np.testing.assert_allclose(term(seen, t), value, rtol=1e-5)
    text = rng.standard_normal(6)
    np.testing.assert_allclose(
        guiding.language(jnp.asarray(text))(seen, t), cosine(seen.embedding, [text] * 2), rtol=1e-5
    )


def test_a_reference_has_the_noise_of_its_time():
    """The encoder sees √ᾱ x_0 + √(1-ᾱ) ε at each picture's own time; ε follows its key."""
    x0 = jnp.full((1, 16, 16, 3), 0.5)
    seen = []
    reference = guiding.noised_reference(
        lambda x, t: (seen.append(x), (x[:, 0, 0], []))[1],
        SCHEDULE,
        x0,
        example_keys(jax.random.key(0), 3),
    )
    reference(jnp.array([0, 500, 999]))
    reference(jnp.array([999, 500, 0]))
    for i, t in enumerate((0, 500, 999)):
        noise = (seen[0][i] - SCHEDULE.signal[t] * 0.5) / SCHEDULE.noise[t]
        assert abs(float(noise.mean())) < 0.15
        assert abs(float(noise.std()) - 1) < 0.1
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    assert not np.allclose(seen[0][0], seen[1][2])


def toy_denoiser(x, t):
    """The perfect one for pixels drawn from N(0, 0.25)."""
    signal, noise = (
        jnp.asarray(f)[t][:, None, None, None] for f in (SCHEDULE.signal, SCHEDULE.noise)
    )
    return noise * x / (0.25 * signal**2 + noise**2)


def test_the_ancestral_shift_is_guided_diffusions():
    """x_{t-1} is drawn around μ + s·Σ·∇F, as `condition_mean` has it (checked there)."""
    process = Process(respace(SCHEDULE, range(0, 1000, 100)), "epsilon", "fixed_small")
    target = jnp.full((8, 8, 3), 0.3)

    def score(x, t):
        return -jnp.square(x - target).sum((1, 2, 3))

    guidance = guiding.score_guidance(guiding.weighted_sum([(2.5, score)]))
    keys = example_keys(jax.random.key(0), 2)
    x = start_noise(keys, (8, 8, 3))
    free = ddpm(process, toy_denoiser, x, keys, clip=True, trajectory=True)
    bent = ddpm(process, toy_denoiser, x, keys, clip=True, guidance=guidance, trajectory=True)
    # The first step of both starts alike; they part by the variance times the gradient.
    last = len(process.schedule) - 1
    step = jnp.full(2, last)
    reverse = p_mean_variance(process, toy_denoiser, x, step, clip=True)
    gradient = -2 * 2.5 * (x - target)
    shift = condition_mean(reverse, gradient).mean - reverse.mean
    np.testing.assert_allclose(shift, reverse.variance * gradient, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bent[last] - free[last], shift, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_guidance_reaches_its_target_and_pictures_stay_apart(sampler):
    """Guided samples come close to each one's own target; another neighbour changes nothing."""
    process = Process(respace(SCHEDULE, range(0, 1000, 20)), "epsilon", "fixed_small")
    keys = example_keys(jax.random.key(0), 2)
    x = start_noise(keys, (8, 8, 3))

    @jax.jit
    def run(targets, scale):
        def score(x, t):
            return -jnp.square(x - targets[:, None, None, None]).sum((1, 2, 3))

        guidance = guiding.score_guidance(guiding.weighted_sum([(scale, score)]))
        if sampler == "ddim":
            return ddim(process, toy_denoiser, x, clip=True, guidance=guidance)
        return ddpm(process, toy_denoiser, x, keys, clip=True, guidance=guidance)

    free, bent = run(jnp.array([0.5, -0.5]), 0.0), run(jnp.array([0.5, -0.5]), 1.0)
    means = bent.mean((1, 2, 3)) - free.mean((1, 2, 3))
    assert means[0] > 0.05
    assert means[1] < -0.05
    np.testing.assert_array_equal(run(jnp.array([0.5, 0.9]), 1.0)[0], bent[0])
    assert run._cache_size() == 1


def test_scale_schedules_and_clipping():
    def score(x, t):
        return (jnp.array([1.0, 10.0])[:, None, None, None] * x).sum((1, 2, 3))

    x, t = jnp.zeros((2, 4, 4, 3)), jnp.array([999, 0])
    norm = jnp.sqrt(48.0)

    def norms(**options):
        gradient = guiding.score_guidance(score, **options)(x, t)
        return jnp.sqrt(jnp.square(gradient).sum((1, 2, 3)))

    np.testing.assert_allclose(norms(), [norm, 10 * norm], rtol=1e-6)
    np.testing.assert_allclose(norms(schedule="linear"), [norm, 0], atol=1e-6)
    np.testing.assert_allclose(norms(schedule="cosine"), [norm, 0], atol=1e-6)
    np.testing.assert_allclose(norms(max_rms=jnp.float32(2.0)), [norm, 2 * norm], rtol=1e-6)
    falling = jnp.linspace(5.0, 0.5, 1000)
    np.testing.assert_allclose(norms(max_rms=falling), [0.5 * norm, 5 * norm], rtol=1e-6)
    with pytest.raises(UserError, match="scale_schedule='square': choose one of constant"):
        guiding.score_guidance(score, schedule="square")


def test_classifier_guidance_is_the_log_probability():
    logits = jnp.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    score = guiding.classifier_score(lambda x, t: logits, jnp.array([1, 0]))
    expected = [float(jax.nn.log_softmax(logits[0])[1]), float(jax.nn.log_softmax(logits[1])[0])]
    np.testing.assert_allclose(score(jnp.zeros((2, 4, 4, 3)), jnp.array([3, 4])), expected)


def test_predicted_x0_is_what_the_encoder_sees():
    process = Process(SCHEDULE, "epsilon", "fixed_small")
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    t = jnp.array([10, 300])
    encode = guiding.on_predicted_x0(process, toy_denoiser, lambda x0: (x0[:, 0, 0], []))
    signal, noise = (np.asarray(f)[np.asarray(t)] for f in (SCHEDULE.signal, SCHEDULE.noise))
    expected = (x[:, 0, 0] - noise[:, None] * toy_denoiser(x, t)[:, 0, 0]) / signal[:, None]
    np.testing.assert_allclose(encode(x, t)[0], np.clip(expected, -1, 1), rtol=1e-4, atol=1e-5)


def test_ilvr_keeps_the_references_low_frequencies():
    """Choi et al.: at the end the small versions agree, whatever the noise was."""
    schedule = respace(SCHEDULE, range(0, 1000, 50))
    process = Process(schedule, "epsilon", "fixed_small")
    keys = example_keys(jax.random.key(0), 2)
    reference = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3), minval=-0.5, maxval=0.5)
    x = start_noise(keys, (16, 16, 3))

    def run(**options):
        return ddpm(process, toy_denoiser, x, keys, clip=True, **options)

    kept = run(after_step=guiding.ilvr(schedule, reference, 4, example_keys(jax.random.key(9), 2)))

    def small(images):
        return jax.image.resize(images, (len(images), 4, 4, 3), "cubic")

    # Down and up again is not quite a projection, so the small versions agree nearly.
    off = jnp.abs(small(kept) - small(reference)).mean()
    free = jnp.abs(small(run()) - small(reference)).mean()
    assert off < 0.3 * free
    assert not np.allclose(kept[0], kept[1], atol=0.05)
    with pytest.raises(UserError, match="ilvr_factor=5: choose a number that divides"):
        guiding.ilvr(schedule, reference, 5, keys)
