"""Linear assignment against SciPy, on both routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from vljax.errors import UserError
from vljax.ops import assignment
from vljax.ops.assignment import linear_sum_assignment

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def device(cost, mask=None):
    """The route of accelerators, run here; masking comes before the routes part."""
    assert mask is None
    cost = jnp.asarray(cost)
    return assignment._on_device(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)))


ROUTES = {"public": jax.jit(linear_sum_assignment), "device": jax.jit(device)}


def total(cost: np.ndarray, columns: np.ndarray) -> np.ndarray:
    columns = np.asarray(columns)
    np.testing.assert_array_equal(
        np.sort(columns, -1), np.broadcast_to(np.arange(columns.shape[-1]), columns.shape)
    )
    chosen = np.take_along_axis(cost.astype(np.float64), columns[..., None], -1)
    return chosen[..., 0].sum(-1)


def problems(kind: str, b: int, n: int, rng: np.random.Generator) -> np.ndarray:
    shape = (b, n, n)
    return {
        "normal": lambda: rng.standard_normal(shape),
        "tied": lambda: rng.integers(0, 3, shape),
        "integer": lambda: rng.integers(-1000, 1000, shape),
        "constant": lambda: np.full(shape, 0.1),
        "rank one": lambda: rng.random((b, n, 1)) + rng.random((b, 1, n)),
        "outer product": lambda: rng.integers(0, 100, (b, n, 1)) * rng.integers(0, 100, (b, 1, n)),
        "million": lambda: rng.uniform(-1e6, 1e6, shape),
        "huge": lambda: rng.standard_normal(shape) * 1e37,
        "tiny": lambda: rng.standard_normal(shape) * 1e-30,
        "mixed": lambda: rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 7, shape),
    }[kind]().astype(np.float32)


KINDS = [
    *("normal", "tied", "integer", "constant", "million", "huge", "tiny", "mixed"),
    *("rank one", "outer product"),
]
QUICK = [("tied", "device"), ("mixed", "device"), ("rank one", "device"), ("normal", "public")]
SIZES = ((500, 2), (300, 5), (150, 12), (50, 31))  # 1,000 problems a kind, 10,000 in all
QUICK_SIZES = SIZES[1::2]


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        # The public route is SciPy itself, behind arrays and masks.
        pytest.param(kind, route, marks=() if (kind, route) in QUICK else pytest.mark.slow)
        for kind in KINDS
        for route in ROUTES
    ],
)
def test_cost_equals_scipys(kind, route):
    rng = np.random.default_rng(KINDS.index(kind))
    for b, n in QUICK_SIZES if (kind, route) in QUICK else SIZES:
        cost = problems(kind, b, n, rng)
        ours = total(cost, ROUTES[route](cost))
        theirs = np.array([c[optimize.linear_sum_assignment(c)].sum() for c in np.float64(cost)])
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(cost).max() * n)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("n", [1, 128, pytest.param(512, marks=pytest.mark.slow)])
def test_sizes(n, route):
    cost = np.random.default_rng(n).uniform(-1e6, 1e6, (1, n, n)).astype(np.float32)
    theirs = cost[0].astype(np.float64)[optimize.linear_sum_assignment(cost[0])].sum()
    np.testing.assert_allclose(total(cost, ROUTES[route](cost)), theirs, rtol=1e-12)


def test_float32_device_needs_its_second_pass():
    """Near ties of 1e-8: one pass in float32 misses the optimum, the refined one does not."""
    cost = problems("rank one", 64, 64, np.random.default_rng(0))
    theirs = np.array([c[optimize.linear_sum_assignment(c)].sum() for c in np.float64(cost)])

    def once(c):
        prices = assignment._prices(c, jnp.float32(0.02))
        return assignment._augment(c, prices, jnp.argmin(c - prices, -1))[0]

    assert (total(cost, jax.jit(jax.vmap(once))(cost)) > theirs + 1e-10).any()
    np.testing.assert_allclose(total(cost, ROUTES["device"](cost)), theirs, rtol=0, atol=1e-11)


def test_mask_keeps_positions_in_place():
    rng = np.random.default_rng(3)
    cost = rng.standard_normal((20, 10, 10)).astype(np.float32)
    mask = rng.random((20, 10)) < 0.6
    mask[0], mask[1] = False, True
    columns = np.asarray(linear_sum_assignment(jnp.asarray(cost), jnp.asarray(mask)))
    for c, m, p in zip(cost, mask, columns, strict=True):
        np.testing.assert_array_equal(p[~m], np.arange(10)[~m])
        inside = c[np.ix_(m, m)].astype(np.float64)
        best = inside[optimize.linear_sum_assignment(inside)].sum()
        np.testing.assert_allclose(c[np.arange(10), p][m].astype(np.float64).sum(), best, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_infinities_and_nan(route):
    inf = np.inf
    cost = np.array(
        [
            [[inf, 1.0, 5.0], [2.0, inf, 7.0], [9.0, 9.0, inf]],  # avoidable
            [[0.0, inf, inf], [0.0, inf, inf], [3.0, 1.0, 2.0]],  # two rows want one column
            [[0.0, -inf, inf], [-100.0, 0.0, inf], [inf, inf, 0.0]],
            np.full((3, 3), inf),
        ],
        np.float32,
    )
    columns = np.asarray(ROUTES[route](cost))
    np.testing.assert_array_equal(columns[0], [2, 0, 1])
    assert columns[1, 2] == 1
    np.testing.assert_array_equal(columns[2], [1, 0, 2])
    np.testing.assert_array_equal(np.sort(columns), np.broadcast_to(np.arange(3), (4, 3)))
    if route == "public":
        without = np.stack([np.full((3, 3), np.nan), np.diag([np.nan] * 3)]).astype(np.float32)
        without[1] += [[0, 5, 9], [1, 0, 9], [9, 9, 0]]
        without[1, 1, 1] = without[1, 2, 2] = 0
        columns = np.asarray(ROUTES[route](without))
        np.testing.assert_array_equal(np.sort(columns[0]), np.arange(3))
        np.testing.assert_array_equal(columns[1], [1, 0, 2])


def test_transformations_and_dtypes():
    cost = np.random.default_rng(0).standard_normal((2, 3, 6, 6), np.float32)

    def through(cost):
        columns = linear_sum_assignment(cost)
        return jnp.take_along_axis(cost, columns[..., None], -1).sum(), columns

    @jax.jit
    def run(cost):
        half = cost.astype(jnp.bfloat16)
        gradient, batched = jax.grad(through, has_aux=True)(cost)
        return (
            (batched, jax.vmap(jax.vmap(linear_sum_assignment))(cost)),
            [linear_sum_assignment(x) for x in (half, half.astype(jnp.float32))],
            (gradient, jax.nn.one_hot(batched, 6)),
        )

    pairs = run(cost)
    assert pairs[0][0].dtype == jnp.int32
    for found, expected in pairs:
        np.testing.assert_array_equal(found, expected)
    integer = np.array([[3, 1], [1, 3]])
    np.testing.assert_array_equal(linear_sum_assignment(integer), [1, 0])
    assert linear_sum_assignment(np.zeros((0, 4, 4))).shape == (0, 4)
    assert linear_sum_assignment(np.zeros((2, 0, 0))).shape == (2, 0)


def test_many_calls_inside_one_program():
    """The host route neither deadlocks nor mixes up its calls under scan."""
    cost = jax.random.normal(jax.random.key(1), (20, 64, 32, 32))
    scanned = jax.jit(lambda c: jax.lax.map(linear_sum_assignment, c))(cost)
    np.testing.assert_array_equal(scanned[7], linear_sum_assignment(cost[7]))


@pytest.mark.parametrize(("platform", "on_host"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_accelerators_do_not_call_the_host(platform, on_host):
    shape = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)
    lowered = jax.jit(linear_sum_assignment).trace(shape).lower(lowering_platforms=(platform,))
    assert ("callback" in lowered.as_text()) == on_host


def test_not_square_is_named():
    with pytest.raises(UserError, match="cost"):
        linear_sum_assignment(jnp.zeros((2, 3)))
