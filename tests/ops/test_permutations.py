"""Distributions over permutations: frequencies against exact probabilities, and the bounds."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vljax.ops.permanent import log_bethe_permanent, log_permanent
from vljax.ops.permutations import GumbelMatching, GumbelSinkhorn, PlackettLuce, gumbel_kl

pytestmark = pytest.mark.usefixtures("quick_to_compile")

N = 4
EVERY = np.array(list(itertools.permutations(range(N))))
CODE = {tuple(p): i for i, p in enumerate(EVERY.tolist())}
DRAWS = 40_000
X = np.random.default_rng(5).standard_normal((N, N)).astype(np.float32) * 1.5
# One test in a thousand would fail by chance; the keys are fixed.
LEVEL = 1e-3


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def counts(permutations) -> np.ndarray:
    codes = [CODE[tuple(p)] for p in np.asarray(permutations).tolist()]
    return np.bincount(codes, minlength=len(EVERY))


def p_value(observed: np.ndarray, probability: np.ndarray) -> float:
    """χ² of the counts against probabilities, cells that expect under 5 pooled."""
    assert observed[probability == 0].sum() == 0
    expected = probability * observed.sum()
    common = expected >= 5
    pools = [np.array([*c[common], c[~common].sum()]) for c in (observed, expected)]
    observed, expected = (pool[pools[1] > 0] for pool in pools)
    return stats.chisquare(observed, expected).pvalue


def two_sample_p_value(a: np.ndarray, b: np.ndarray) -> float:
    common = (a + b) >= 20
    table = np.array([[*c[common], c[~common].sum()] for c in (a, b)])
    return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue


def gibbs(x: np.ndarray) -> np.ndarray:
    weight = np.exp(np.float64(x)[np.arange(N), EVERY].sum(-1))
    return weight / weight.sum()


def reference_counts(x: np.ndarray, num_iters: int, draws: int) -> np.ndarray:
    """Perturb-and-MAP in numpy float64, the best of all 24 permutations looked up."""
    total = np.zeros(len(EVERY), int)
    rng = np.random.default_rng(11)
    for _ in range(draws // 50_000):
        score = x + rng.gumbel(size=(50_000, N, N))
        for k in range(num_iters):
            for axis in (1, 2):
                score = score - np.log(np.exp(score).sum(axis, keepdims=True))
            if k == num_iters - 1:
                score = np.exp(score)
        best = score[:, np.arange(N), EVERY].sum(-1).argmax(-1)
        total += np.bincount(best, minlength=len(EVERY))
    return total


def two_logistics_cdf(t: float) -> float:
    """P(L₁ + L₂ ≤ t), logistic L: the chance that a 2 × 2 perturb-and-MAP takes the diagonal."""
    return 0.5 if t == 0 else math.exp(t) * (math.exp(t) - 1 - t) / math.expm1(t) ** 2


def draw(q: GumbelMatching, seed: int, **options):
    return jax.jit(lambda q, key: q.sample(key, (DRAWS,), **options))(q, jax.random.key(seed))


def test_two_logistics_against_quadrature():
    grid = np.linspace(-60, 60, 240_001)
    for t in (-3.0, -0.4, 0.0, 1.7):
        mass = stats.logistic.pdf(grid) * stats.logistic.cdf(t - grid)
        np.testing.assert_allclose(two_logistics_cdf(t), np.trapezoid(mass, grid), atol=1e-9)


@pytest.mark.parametrize("sinkhorn_iters", [0, *slow(20)])
def test_gumbel_matching_is_uniform_for_sums_of_rows_and_columns(sinkhorn_iters):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((N, 1)) * 2 + rng.standard_normal(N) * 2).astype(np.float32)
    drawn = draw(GumbelMatching(jnp.asarray(x)), 0, sinkhorn_iters=sinkhorn_iters)
    uniform = np.full(24, 1 / 24)
    assert p_value(counts(drawn), uniform) > LEVEL
    np.testing.assert_allclose(gibbs(x), uniform, atol=1e-6)


@pytest.mark.parametrize("sinkhorn_iters", [0, *slow(200)])
def test_gumbel_matching_two_blocks_against_the_closed_form(sinkhorn_iters):
    x = np.full((N, N), -np.inf, np.float32)
    x[:2, :2], x[2:, 2:] = X[:2, :2], X[2:, 2:]
    exact = np.zeros(24)
    stay = [
        two_logistics_cdf(float(b[0, 0] + b[1, 1] - b[0, 1] - b[1, 0]))
        for b in (x[:2, :2], x[2:, 2:])
    ]
    for first, second in itertools.product((0, 1), repeat=2):
        code = CODE[(first, 1 - first, 2 + second, 3 - second)]
        exact[code] = abs(first - stay[0]) * abs(second - stay[1])
    np.testing.assert_allclose(exact.sum(), 1)
    observed = counts(draw(GumbelMatching(jnp.asarray(x)), 1, sinkhorn_iters=sinkhorn_iters))
    assert p_value(observed, exact) > LEVEL
    assert p_value(observed, gibbs(x)) < 1e-9  # the Gibbs probabilities are not the samples'


@pytest.mark.parametrize("sinkhorn_iters", [20, *slow(0)])
def test_gumbel_matching_in_general_against_brute_force(sinkhorn_iters):
    observed = counts(draw(GumbelMatching(jnp.asarray(X)), 2, sinkhorn_iters=sinkhorn_iters))
    reference = reference_counts(X, sinkhorn_iters, 200_000)
    assert two_sample_p_value(observed, reference) > LEVEL
    assert p_value(observed, gibbs(X)) < 1e-9


def test_gumbel_matching_log_prob_is_normalised_and_its_gradient_is_marginals():
    q = GumbelMatching(jnp.asarray(X))
    every = jnp.asarray(EVERY)

    def exact(x):
        return GumbelMatching(x).log_potential(every) - log_permanent(x)

    np.testing.assert_allclose(jnp.exp(exact(q.logits)), gibbs(X), rtol=1e-5)
    bethe = jnp.exp(q.log_prob(every, 500)).sum()
    assert 1 <= bethe <= 2 ** (N / 2)
    normalizer = log_bethe_permanent(q.logits)
    np.testing.assert_allclose(q.log_prob(every), q.log_potential(every) - normalizer, atol=1e-5)
    score = jax.jit(jax.jacobian(exact))(q.logits)
    np.testing.assert_allclose(np.einsum("p,pij->ij", gibbs(X), score), 0, atol=1e-6)


def test_log_prob_keeps_its_digits_under_large_offsets():
    every = jnp.asarray(EVERY)
    x = jnp.round(jnp.asarray(X) * 8) / 8
    plain = GumbelMatching(x).log_prob(every)
    moved = GumbelMatching(x + 2.0**19).log_prob(every)
    np.testing.assert_allclose(moved, plain, atol=1e-5)


def test_bounds_hold_against_the_samples_entropy():
    for scale in (0.0, 0.3, 1.0):
        q = GumbelMatching(jnp.asarray(X) * scale)
        frequency = reference_counts(X * scale, 0, 200_000) / 200_000
        entropy = stats.entropy(frequency)
        assert math.log(24) - q.kl_divergence() <= entropy + 2e-3
        pl = PlackettLuce(jnp.asarray(X[0]) * scale)
        chance = np.exp(pl.log_prob(jnp.asarray(EVERY)))
        assert math.log(24) - pl.kl_divergence() <= stats.entropy(chance) + 1e-5
    attained = GumbelMatching(jnp.zeros((N, N))).kl_divergence()
    np.testing.assert_allclose(attained, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "prior"),
    [
        (2.0, 0.7),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1.0, 1.0), (0.5, 1.0))),
    ],
)
def test_gumbel_kl_against_quadrature(temperature, prior):
    y = np.linspace(-80, 160, 2_000_001)
    for x in (-1.0, 0.0, 2.5):
        q = stats.gumbel_r(x / temperature, 1 / temperature)
        p = stats.gumbel_r(0, 1 / prior)
        integrand = np.where(q.pdf(y) > 0, q.pdf(y) * (q.logpdf(y) - p.logpdf(y)), 0)
        expected = np.trapezoid(np.nan_to_num(integrand), y)
        np.testing.assert_allclose(gumbel_kl(jnp.float32(x), temperature, prior), expected, 1e-4)
    extreme = jnp.array([-1e6, -25.0, 1e6])
    value, slope = jax.vmap(jax.value_and_grad(gumbel_kl))(extreme)
    assert np.isfinite(value).all()
    assert (slope[:2] < 0).all()  # pulled back towards the prior from below
    assert slope[2] > 0


def test_gumbel_sinkhorn():
    q = GumbelSinkhorn(jnp.asarray(X), temperature=0.5)
    p = q.sample(jax.random.key(3), (500,), num_iters=200)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.median(np.abs(p.sum(-2) - 1)), 0, atol=1e-5)
    # As the temperature falls, the samples become the matchings of the same noise.
    cold = GumbelSinkhorn(jnp.asarray(X), temperature=0.05)
    matched = GumbelMatching(jnp.asarray(X)).sample(jax.random.key(3), (500,))
    near = np.abs(cold.sample(jax.random.key(3), (500,), 500) - jax.nn.one_hot(matched, N))
    assert (near.max((-2, -1)) < 0.1).mean() > 0.8

    def spread(x, temperature):
        return (GumbelSinkhorn(x, None, temperature).sample(jax.random.key(0), (64,)) ** 2).mean()

    slopes = jax.jit(jax.grad(spread, (0, 1)))(jnp.asarray(X), 0.5)
    assert all(np.isfinite(s).all() for s in slopes)
    assert slopes[1] < 0  # hotter is flatter


def test_plackett_luce_frequencies_and_normalisation():
    scores = np.array([0.3, -1.0, 1.2, 0.0], np.float32)
    exact = []
    for p in EVERY:  # one draw after another, without replacement
        left, chance = list(range(N)), 1.0
        for item in p:
            weights = np.exp(np.float64(scores[left]))
            chance *= np.exp(np.float64(scores[item])) / weights.sum()
            left.remove(item)
        exact.append(chance)
    q = PlackettLuce(jnp.asarray(scores))
    np.testing.assert_allclose(jnp.exp(q.log_prob(jnp.asarray(EVERY))), exact, rtol=1e-5)
    drawn = q.sample(jax.random.key(4), (DRAWS,))
    assert p_value(counts(drawn), np.array(exact)) > LEVEL
    np.testing.assert_array_equal(q.mode(), EVERY[np.argmax(exact)])


MASK = np.array([[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)


@pytest.mark.parametrize("family", ["matching", *slow("relaxed"), "plackett-luce"])
def test_masked_positions_stay_and_do_not_count(family):
    rng = np.random.default_rng(6)
    shape = (3, 6) if family == "plackett-luce" else (3, 6, 6)
    logits = jnp.asarray(rng.standard_normal(shape) * 0.3, jnp.float32)
    make = PlackettLuce if family == "plackett-luce" else GumbelMatching
    options = {"sinkhorn_iters": 20} if family == "relaxed" else {}
    q = make(logits, jnp.asarray(MASK))
    draws = jax.jit(lambda q, key: q.sample(key, (400,), **options))
    drawn = np.asarray(draws(q, jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(drawn, -1), np.broadcast_to(np.arange(6), drawn.shape))
    np.testing.assert_array_equal(
        np.where(MASK, 0, drawn), np.broadcast_to(np.where(MASK, 0, np.arange(6)), drawn.shape)
    )
    assert len(np.unique(drawn[:, 0], axis=0)) == 6
    inside = make(logits[0, 1:4] if family == "plackett-luce" else logits[0, 1:4, 1:4])
    tell = jax.jit(lambda q, drawn: (q.log_prob(drawn), q.kl_divergence(), q.mode()))
    log_prob, kl, mode = tell(q, drawn)
    inner_log_prob, inner_kl, inner_mode = tell(inside, drawn[:, 0, 1:4] - 1)
    np.testing.assert_allclose(log_prob[:, 0], inner_log_prob, atol=1e-5)
    np.testing.assert_allclose(log_prob[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(kl[0], inner_kl, atol=1e-5)
    np.testing.assert_array_equal(mode[0, 1:4] - 1, inner_mode)

    @jax.jit
    @jax.grad
    def objective(logits):
        q = make(logits, jnp.asarray(MASK))
        return (q.log_prob(drawn).mean(0) + q.kl_divergence()).sum()

    # What lies under the mask may be anything, −inf included.
    hidden = MASK if family == "plackett-luce" else MASK[:, :, None] & MASK[:, None, :]
    gradient = objective(jnp.where(hidden, logits, -jnp.inf))
    np.testing.assert_allclose(gradient, objective(logits), atol=1e-5)
    np.testing.assert_array_equal(np.where(hidden, 0, gradient), 0)


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (GumbelMatching, 64),
        (PlackettLuce, 2),
        *(
            pytest.param(make, n, marks=pytest.mark.slow)
            for make, n in (
                *((GumbelMatching, n) for n in (1, 2)),
                *((PlackettLuce, n) for n in (1, 64)),
            )
        ),
    ],
)
def test_extreme_logits_and_half_precision(make, n):
    shape = (n,) if make is PlackettLuce else (n, n)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jax.random.uniform(jax.random.key(n), shape, minval=-1e6, maxval=1e6).astype(dtype)

        @jax.jit
        def run(x):
            drawn = make(x).sample(jax.random.key(0), (4,))
            return drawn, make(x).log_prob(drawn), make(x).kl_divergence()

        drawn, log_prob, kl = run(x)
        assert log_prob.dtype == kl.dtype == jnp.float32
        np.testing.assert_array_equal(np.sort(drawn, -1), np.broadcast_to(np.arange(n), (4, n)))
        assert np.isfinite(log_prob).all()
        assert np.isfinite(kl)


def test_nothing_recompiles():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(key, logits, mask, temperature):
        q = GumbelMatching(logits, mask)
        drawn = q.sample(key, (3,), sinkhorn_iters=5, temperature=temperature)
        return q.log_prob(drawn)

    for k in (2, 4, 6):
        mask = jnp.arange(6) < k
        run(jax.random.key(k), jax.random.normal(jax.random.key(0), (6, 6)), mask, 1.0 / k)
