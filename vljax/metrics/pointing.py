"""How well a map points at the evidence: distances, correlations and shares of mass.

Thesis section 2.4.4, table 2.3: maps of a model against maps of people, by Earth Mover's Distance
and by rank correlation; Das et al., *Human Attention in Visual Question Answering* (2016), for the
latter. The paper does not say on which grid: here maps are distributions over the cells of the
model's own 14 × 14 grid, brought there by averaging over areas, and distances are Euclid's between
the cells' centres, in cells; a point's expected distance to a random cell is then near the paper's
6.71.

Beside these: the pointing game (Zhang et al. 2016), mass on the evidence ("relevance mass
accuracy", Arras et al. 2022), intersection over union, and the area under the ROC curve.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its parts load when they are first used
from jaxtyping import Bool, Float, Int

#: Side of the grid on which maps are compared.
SIDE = 14

#: Of the cells, how many are taken away or inserted at the points of a `deletion_curve`.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

#: Not negative, summing to 1.
Map = Float[np.ndarray, "h w"]


def to_grid(weights: Float[np.ndarray, "H W"], side: int = SIDE) -> Map | None:
    """A map or mask of any size as a distribution on a grid, each cell the mean of its area.

    Args:
        weights: Not negative; a mask counts as 0 and 1.
        side: Cells along each side.

    Returns:
        Float64 [side side] that sums to 1, or None where the map is empty.

    Raises:
        ValueError: it is negative somewhere, or not finite.
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("a map has finite values that are not negative")
    rows, columns = (_shares(length, side) for length in weights.shape)
    grid = rows @ weights @ columns.T
    total = grid.sum()
    return grid / total if total > 0 else None


@functools.cache
def _shares(length: int, side: int) -> Float[np.ndarray, "side length"]:
    """How much of each of `length` pixels lies in each of `side` cells, the pixels being 1 long."""
    edges = np.linspace(0, length, side + 1)
    left, right = np.arange(length), np.arange(length) + 1
    overlap = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
    return overlap.clip(min=0)


@functools.cache
def cell_distances(height: int, width: int) -> Float[np.ndarray, "n n"]:
    """Euclid's distance between the centres of every two cells of a grid, row after row."""
    places = np.stack(np.divmod(np.arange(height * width), width), axis=-1).astype(np.float64)
    return np.linalg.norm(places[:, None] - places[None], axis=-1)


def earth_movers_distance(a: Map, b: Map) -> float:
    """The least work that turns one distribution into another, in cells (Rubner et al. 2000).

    Exact. The ground distance is a metric, so that what both have in a cell stays there and only
    the surpluses of one travel to those of the other: a transport problem of far fewer cells,
    which HiGHS's dual simplex solves.

    Args:
        a: A map that sums to 1.
        b: Another on the same grid.

    Raises:
        ValueError: the grids differ, or a map does not sum to 1.
    """
    if a.shape != b.shape:
        raise ValueError(f"a map of {a.shape} cannot be compared with one of {b.shape}")
    for one in (a, b):
        if abs(one.sum() - 1) > 1e-6:
            raise ValueError("a map sums to 1: see `to_grid`")
    difference = (a - b).ravel()
    gives, takes = np.flatnonzero(difference > 0), np.flatnonzero(difference < 0)
    if not gives.size or not takes.size:
        return 0.0
    supply, demand = difference[gives], -difference[takes]
    supply, demand = supply / supply.sum(), demand / demand.sum()
    moved = 0.5 * np.abs(difference).sum()
    cost = cell_distances(*a.shape)[np.ix_(gives, takes)]
    m, n = cost.shape
    rows = scipy.sparse.kron(scipy.sparse.eye(m), np.ones((1, n)), format="csr")
    columns = scipy.sparse.kron(np.ones((1, m)), scipy.sparse.eye(n), format="csr")
    # One of the equations follows from the others: without it the program is never infeasible by
    # a rounding.
    solved = scipy.optimize.linprog(
        cost.ravel(),
        A_eq=scipy.sparse.vstack([rows, columns[1:]], format="csr"),
        b_eq=np.concatenate([supply, demand[1:]]),
        method="highs-ds",
    )
    return float(solved.fun * moved)


def random_point_distance(evidence: Map) -> float:
    """The expected distance of a point in a random cell, in closed form.

    A point's only plan is to send its mass to all the evidence: the mean over points of the
    evidence's mean distance from them.

    Args:
        evidence: A map that sums to 1.
    """
    return float(cell_distances(*evidence.shape).mean(0) @ evidence.ravel())


def rank_correlation(a: Map, b: Map, rng: np.random.Generator | None = None) -> float:
    """Spearman's correlation of two maps' cells.

    Args:
        a: A map.
        b: Another of its size.
        rng: Breaks ties, each map's by its own draw: then a constant map has a correlation, on
            average 0, as in the paper's table. Without it tied cells share their mean rank.

    Returns:
        −1 to 1; NaN where a map is constant and ties are not broken.
    """
    ranks = []
    for one in (a.ravel(), b.ravel()):
        if rng is None:
            ranks.append(scipy.stats.rankdata(one))
        else:
            ranks.append(_places(np.lexsort((rng.random(one.size), one))))
    centred = [rank - rank.mean() for rank in ranks]
    norms = np.prod([np.linalg.norm(rank) for rank in centred])
    return float(centred[0] @ centred[1] / norms) if norms else float("nan")


def _places(order: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    places = np.empty(order.size)
    places[order] = np.arange(order.size)
    return places


def pointing_game(points: Float[np.ndarray, "h w"], evidence: Bool[np.ndarray, "H W"]) -> float:
    """Whether the centre of the map's highest cell lies on the evidence, a mask of any size.

    Args:
        points: A map of weights on a grid.
        evidence: The mask of what is right, at a size of its own.

    Returns:
        1 or 0; where several cells are highest alike the share of them that lie on it, which is
        what one drawn among them comes to.
    """
    rows, columns = np.nonzero(points == points.max())
    height, width = evidence.shape
    y = ((rows + 0.5) * height / points.shape[0]).astype(int)
    x = ((columns + 0.5) * width / points.shape[1]).astype(int)
    return float(evidence[y, x].mean())


def mass_on(points: Map, evidence: Bool[np.ndarray, "H W"]) -> float:
    """The share of the map's mass on the evidence, of cells on its border their covered part.

    Args:
        points: A map of weights on a grid.
        evidence: The mask of what is right, at a size of its own.
    """
    rows = _shares(evidence.shape[0], points.shape[0])
    columns = _shares(evidence.shape[1], points.shape[1])
    area = np.outer(rows.sum(1), columns.sum(1))
    covered = rows @ evidence.astype(np.float64) @ columns.T / area
    return float((points * covered).sum() / points.sum())


def top_iou(points: Map, evidence: Map) -> float:
    """Intersection over union of the map's highest cells with the evidence's cells.

    As many cells are taken as the evidence has with at least half of its fullest cell's mass.
    Where not all cells of a level are, it is what a draw among them comes to on average.

    Args:
        points: A map of weights on a grid.
        evidence: The truth on the same grid, each cell its share.
    """
    truth = (evidence >= evidence.max() / 2).ravel()
    cells, count = points.ravel(), int(truth.sum())
    lowest = np.sort(cells)[-count]
    above, level = cells > lowest, cells == lowest
    # How many cells of the lowest level that is taken hit is hypergeometric.
    drawn = count - int(above.sum())
    hits = np.arange(drawn + 1)
    chance = scipy.stats.hypergeom.pmf(hits, level.sum(), (level & truth).sum(), drawn)
    both = (above & truth).sum() + hits
    return float(chance @ (both / (2 * count - both)))


def area_under_curve(points: Map, evidence: Map) -> float:
    """The chance that a cell of the evidence is higher than one beside it, ties counting half.

    NaN where every cell is evidence.

    Args:
        points: A map of weights on a grid.
        evidence: The truth on the same grid, each cell its share.
    """
    truth = (evidence >= evidence.max() / 2).ravel()
    ranks = scipy.stats.rankdata(points.ravel())
    inside, outside = truth.sum(), (~truth).sum()
    if not outside:
        return float("nan")
    return float((ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))


def deletion_curve(
    points: Float[np.ndarray, "h w"],
    probability: Callable[[Bool[np.ndarray, "k h w"]], Float[np.ndarray, " k"]],
    shares: Sequence[float] = SHARES,
    *,
    insert: bool = False,
    rng: np.random.Generator | None = None,
) -> Float[np.ndarray, " k"]:
    """An answer's probability as the highest cells are taken away, or are all that is left.

    Petsiuk et al., *RISE* (2018). A map that shows what the answer rests on makes the first curve
    fall and the second rise early.

    Args:
        points: A map.
        probability: `probability(seen [k h w]) -> [k]`, of an answer when a picture shows only the
            cells that are seen.
        shares: Of the cells, taken away or inserted.
        insert: Whether the highest cells are shown alone instead of taken away.
        rng: Breaks ties; without it equal cells go row after row, from the top.

    Returns:
        The probability at each share; RISE's number is the area below, `numpy.trapezoid` of it
        over the shares.
    """
    cells = points.ravel()
    chance = np.arange(cells.size) if rng is None else rng.random(cells.size)
    order = np.lexsort((chance, -cells))
    chosen = np.zeros((len(shares), points.size), bool)
    for row, share in zip(chosen, shares, strict=True):
        row[order[: round(share * points.size)]] = True
    seen = (chosen if insert else ~chosen).reshape(-1, *points.shape)
    return np.asarray(probability(seen), np.float64)
