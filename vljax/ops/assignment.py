"""The linear assignment problem: the permutation of least cost."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when they are first used
from jax import lax
from jax.experimental.buffer_callback import Buffer, ExecutionContext, buffer_callback
from jaxtyping import Array, Bool, Float, Int

from vljax.errors import UserError


def linear_sum_assignment(
    cost: Float[Array, "*b n n"], mask: Bool[Array, "*#b n"] | None = None
) -> Int[Array, "*b n"]:
    """Finds the permutation p that minimises Σ_i cost[i, p[i]], exactly.

    Works under `jit` and `vmap`. On CPU it is SciPy's compiled solver, in double precision,
    called back from the program. Elsewhere it is a `lax.while_loop` in which every matrix of the
    batch advances at its own pace. Both augment along shortest paths (Jonker & Volgenant, 1987;
    Crouse, "On implementing 2D rectangular assignment algorithms", 2016) from column prices that
    are nearly optimal, which any start may be. The device solves twice, the second time on the
    reduced costs with the rounding errors that they lost: so float32 hardware reaches the
    optimum to about 1e-13 of the largest cost, as double precision would.

    Args:
        cost: square matrices of any float or integer dtype (16-bit floats and integers are read
            as float32). +inf and NaN forbid an entry: it is used only where no permutation
            avoids it, and then as rarely as possible. −inf is used as often as possible.
        mask: True where a position takes part; the others are assigned to themselves.

    Returns:
        int32 column of every row. Among permutations of equal cost any may be returned, and
        backends may differ. The result carries no gradient.

    Raises:
        UserError: the matrix is not square.
    """
    if cost.ndim < 2 or cost.shape[-1] != cost.shape[-2]:
        raise UserError(f"cost.shape={cost.shape}: give square matrices, [..., n, n]")
    cost = lax.stop_gradient(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)))
    if not cost.size:
        return jnp.zeros(cost.shape[:-1], jnp.int32)
    cost = jnp.where(jnp.isnan(cost), jnp.inf, cost)
    if mask is not None:
        fixed = jnp.where(jnp.eye(cost.shape[-1], dtype=bool), 0.0, jnp.inf)
        cost = jnp.where(mask[..., :, None] & mask[..., None, :], cost, fixed)
    return lax.platform_dependent(cost, cpu=_on_host, default=_on_device)


def _on_host(cost: Array) -> Array:
    importlib.import_module("scipy.optimize")  # here, and not in a running program's thread
    # The column minima of the row-reduced costs spare SciPy a third of its search.
    prices = (cost - cost.min(-1, keepdims=True)).min(-2)
    prices = jnp.where(jnp.isfinite(prices), prices, 0)
    shape = jax.ShapeDtypeStruct(cost.shape[:-1], jnp.int32)
    # `jax.pure_callback` would hand over arrays that a thread of the running program's own pool has
    # yet to copy: where a step is dispatched before the last has ended, one core waits for ever.
    solve = buffer_callback(_scipy, shape, vmap_method="broadcast_all")
    return solve(cost, prices)


def _scipy(context: ExecutionContext, out: Buffer, costs: Buffer, column_prices: Buffer) -> None:
    """Writes the columns of every row to `out`."""
    del context
    columns, cost, prices = np.asarray(out), np.asarray(costs), np.asarray(column_prices)
    reduced = np.empty(cost.shape[-2:])
    for index in np.ndindex(cost.shape[:-2]):
        np.subtract(cost[index], prices[index], out=reduced, dtype=np.float64)
        try:
            columns[index] = scipy.optimize.linear_sum_assignment(reduced)[1]
        except ValueError:  # an entry is −inf, or no permutation avoids +inf
            finite = _finite(cost[index].astype(np.float64), np)
            columns[index] = scipy.optimize.linear_sum_assignment(finite)[1]


def _finite(cost: Any, xp: Any) -> Any:
    """Costs scaled to at most about one, infinities replaced, by numpy or `jax.numpy`."""

    def largest(x: Any) -> Any:
        return xp.max(x, axis=(-2, -1), keepdims=True)

    finite = xp.isfinite(cost)
    magnitude = largest(xp.where(finite, xp.abs(cost), 0))
    # A power of two, so that scaling rounds nothing.
    exponent = xp.clip(xp.frexp(magnitude)[1], -100, 100)
    cost = cost * xp.ldexp(xp.ones_like(magnitude), -exponent)
    high = largest(xp.where(finite, cost, -xp.inf))
    low = -largest(xp.where(finite, -cost, -xp.inf))
    span = xp.where(xp.isfinite(high), high - low, 0)
    # One such entry outweighs any difference that n finite ones can make.
    penalty = (cost.shape[-1] + 1) * span + 1
    low, high = xp.where(xp.isfinite(low), low, 0), xp.where(xp.isfinite(high), high, 0)
    return xp.where(finite, cost, xp.where(cost < 0, low - penalty, high + penalty))


def _on_device(cost: Array) -> Array:
    solve = _solve
    for _ in cost.shape[:-2]:
        solve = jax.vmap(solve)
    return solve(cost)


def _solve(cost: Array) -> Array:
    """One problem on the device: solved, then solved again on its exact reduced costs."""
    allowed = jnp.isfinite(cost)
    whole = jnp.all(~allowed | (cost == jnp.round(cost)))
    magnitude = jnp.max(jnp.where(allowed, jnp.abs(cost), 0))
    grid = jnp.ldexp(jnp.ones_like(magnitude), -jnp.frexp(magnitude)[1])
    cost = _finite(cost, jnp)
    mean = jnp.mean(cost, where=allowed)
    spread = jnp.sqrt(jnp.mean((cost - mean) ** 2, where=allowed))
    prices = _prices(cost, 0.05 * spread + 1e-30)
    # Whole costs have whole optimal prices; others would only break ties into long searches.
    grid = jnp.where(whole & (magnitude < 2**24), grid, 0)
    prices = jnp.where(grid > 0, jnp.round(prices / jnp.where(grid > 0, grid, 1)) * grid, prices)

    choice = jnp.argmin(cost - prices, -1)
    column, prices = _augment(cost, prices, choice)
    rows = jnp.arange(cost.shape[-1])
    u = (cost[rows, column] - prices[column])[:, None]
    reduced, first = _difference(cost, u)
    reduced, second = _difference(reduced, prices[None, :])
    reduced = reduced + (first + second)
    best = jnp.argmin(reduced, -1)
    keep = reduced[rows, column] <= reduced[rows, best]
    return _augment(reduced, jnp.zeros_like(prices), jnp.where(keep, column, best))[0]


def _prices(cost: Array, temperature: Array, num_iters: int = 8) -> Array:
    """Near-optimal dual prices of the columns, entropically smoothed."""
    row = cost.min(-1, keepdims=True)
    column = (cost - row).min(-2)
    kernel = jnp.exp((row + column - cost) / temperature)

    def step(u: Array, _: None) -> tuple[Array, None]:
        return 1 / (kernel @ (1 / (u @ kernel))), None

    u, _ = lax.scan(step, 1 / kernel.sum(-1), length=num_iters - 1)
    smooth = column - temperature * jnp.log(u @ kernel)
    # A kernel of extreme range can leave factors that are no numbers: then the hard minimum.
    return jnp.where(jnp.all(jnp.isfinite(smooth)), smooth, column)


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Rounds a − b and returns with it what the rounding lost (Knuth's TwoSum)."""
    s = a - b
    t = s - a
    return s, (a - (s - t)) - (b + t)


def _augment(cost: Array, prices: Array, choice: Array) -> tuple[Array, Array]:
    """Shortest augmenting paths from any prices, as one flat loop.

    Args:
        cost: [n, n].
        prices: [n], of the columns.
        choice: [n], for every row a column of least `cost − prices`. The lowest row that chose a
            column starts out with it.

    Returns:
        The column of every row, and optimal prices.
    """
    n = cost.shape[-1]
    index = jnp.arange(n, dtype=jnp.int32)
    owner = jnp.full(n, n, jnp.int32).at[choice].min(index)
    column = jnp.where(owner[choice] == index, choice.astype(jnp.int32), -1)
    owner = jnp.where(owner == n, -1, owner)
    root = jnp.argmin(column).astype(jnp.int32)
    state = {
        "column": column,  # of every row, −1 when it has none
        "owner": owner,  # of every column
        "prices": prices,
        "root": root,  # the free row whose path is sought
        "distance": cost[root] - prices,  # from the root to every column
        "parent": jnp.full(n, root),  # the row before every column
        "scanned": jnp.zeros(n, bool),
        "flip": jnp.int32(-1),  # the column that the found path is being flipped at
    }

    # Under vmap each problem is at its own point of search or flip; so a step does either.
    def step(s: dict[str, Array]) -> dict[str, Array]:
        flipping = s["flip"] >= 0
        open_ = jnp.where(s["scanned"], jnp.inf, s["distance"])
        nearest = open_.min()
        # Among equally near columns a free one ends the search.
        j = jnp.argmax((open_ == nearest) * (1 + (s["owner"] < 0))).astype(jnp.int32)
        i = s["owner"][j]
        found = ~flipping & (i < 0)
        scan = ~flipping & (i >= 0)

        row = cost[i] - s["prices"]
        through = row - (row[j] - nearest)
        shorter = scan & ~s["scanned"] & (index != j) & (through < s["distance"])
        distance = jnp.where(shorter, through, s["distance"])
        parent = jnp.where(shorter, i, s["parent"])
        gain = jnp.where(found & s["scanned"], s["distance"] - nearest, 0)
        prices = s["prices"] + gain

        at = jnp.where(flipping, s["flip"], j)
        flip = flipping | found
        above = s["parent"][at]
        owner = jnp.where(flip & (index == at), above, s["owner"])
        column = jnp.where(flip & (index == above), at, s["column"])
        done = flip & (above == s["root"])
        root = jnp.where(done, jnp.argmin(column).astype(jnp.int32), s["root"])
        return {
            "column": column,
            "owner": owner,
            "prices": prices,
            "root": root,
            "distance": jnp.where(done, cost[root] - prices, distance),
            "parent": jnp.where(done, root, parent),
            "scanned": (s["scanned"] | (scan & (index == j))) & ~done,
            "flip": jnp.where(flip & ~done, s["column"][above], -1),
        }

    def unfinished(s: dict[str, Array]) -> Array:
        return jnp.any(s["column"] < 0) | (s["flip"] >= 0)

    state = lax.while_loop(unfinished, step, state)
    return state["column"], state["prices"]
