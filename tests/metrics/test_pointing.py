"""Pointing: the exact distance against two solvers, closed forms, ties, degenerate maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vljax.metrics import pointing
from vljax.metrics.pointing import (
    SHARES,
    area_under_curve,
    cell_distances,
    deletion_curve,
    earth_movers_distance,
    mass_on,
    pointing_game,
    random_point_distance,
    rank_correlation,
    to_grid,
    top_iou,
)


def maps(seed, kind, side=14):
    """A map of a kind: dense, a softmax's peak, a mask, one cell, all cells alike."""
    rng = np.random.default_rng(seed)
    match kind:
        case "dense":
            weights = rng.random((side, side))
        case "peaked":
            weights = np.exp(6 * rng.random((side, side)))
        case "mask":
            weights = np.zeros((side, side))
            row, column = rng.integers(0, side - 4, 2)
            weights[row : row + 4, column : column + 3] = 1
        case "point":
            weights = np.eye(side * side)[rng.integers(side * side)].reshape(side, side)
        case "uniform":
            weights = np.ones((side, side))
    return weights / weights.sum()


KINDS = ("dense", "peaked", "mask", "point", "uniform")


@pytest.mark.parametrize("a", KINDS)
@pytest.mark.parametrize("b", ["dense", "mask", "point"])
def test_earth_movers_distance_is_pyemds(a, b):
    pyemd = pytest.importorskip("pyemd")
    ours, theirs = maps(1, a), maps(2, b)
    expected = pyemd.emd(ours.ravel(), theirs.ravel(), cell_distances(14, 14))
    assert earth_movers_distance(ours, theirs) == pytest.approx(expected, abs=1e-4)


def test_earth_movers_distance_is_a_metric():
    a, b, c = (maps(seed, "peaked", 7) for seed in range(3))
    assert earth_movers_distance(a, a) == 0
    assert earth_movers_distance(a, b) == pytest.approx(earth_movers_distance(b, a), abs=1e-9)
    through = earth_movers_distance(a, c) + earth_movers_distance(c, b)
    assert earth_movers_distance(a, b) <= through + 1e-9
    shifted = np.roll(maps(3, "point", 7), 1, axis=1)
    assert earth_movers_distance(maps(3, "point", 7), shifted) in (
        pytest.approx(1),
        pytest.approx(6),
    )
    with pytest.raises(ValueError, match="sums to 1"):
        earth_movers_distance(2 * a, b)
    with pytest.raises(ValueError, match="cannot be compared"):
        earth_movers_distance(a, maps(0, "mask", 8))


def test_the_random_points_row_is_its_closed_form():
    evidence = maps(5, "mask", 6)
    points = np.eye(36).reshape(36, 6, 6)
    mean = np.mean([earth_movers_distance(point, evidence) for point in points])
    assert random_point_distance(evidence) == pytest.approx(mean, abs=1e-9)
    # Facts of the grid: nothing is nearer to a random point than the centre, nothing farther than
    # the uniform map's mass is from it on average.
    centre = np.zeros((14, 14))
    centre[6:8, 6:8] = 0.25
    assert random_point_distance(centre) == pytest.approx(5.376, abs=0.001)
    assert random_point_distance(maps(0, "uniform")) == pytest.approx(7.28, abs=0.02)


def test_ranks_are_scipys_and_ties_break_by_chance():
    a, b = maps(1, "dense"), maps(2, "dense")
    expected = stats.spearmanr(a.ravel(), b.ravel()).statistic
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, b, np.random.default_rng(0)) == pytest.approx(expected, abs=1e-12)
    mask, uniform = maps(3, "mask"), maps(0, "uniform")
    tied = stats.spearmanr(a.ravel(), mask.ravel()).statistic
    assert rank_correlation(a, mask) == pytest.approx(tied, abs=1e-12)
    assert np.isnan(rank_correlation(uniform, mask))
    rng = np.random.default_rng(0)
    broken = [rank_correlation(uniform, mask, rng) for _ in range(500)]
    assert abs(np.mean(broken)) < 4 / np.sqrt(500 * 195)
    assert np.std(broken) == pytest.approx(1 / np.sqrt(195), rel=0.15)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 14), st.integers(0, 99))
def test_a_grid_keeps_mass_and_its_centre(height, width, side, seed):
    weights = np.random.default_rng(seed).random((height, width))
    grid = to_grid(weights, side)
    assert grid.sum() == pytest.approx(1)
    if height == width == side:
        np.testing.assert_allclose(grid, weights / weights.sum())
    if height % side == 0 and width % side == 0:
        blocks = weights.reshape(side, height // side, side, width // side).sum((1, 3))
        np.testing.assert_allclose(grid, blocks / blocks.sum(), atol=1e-12)


def test_empty_and_impossible_maps():
    assert to_grid(np.zeros((20, 30), bool)) is None
    for wrong in (np.full((3, 3), -1.0), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="not negative"):
            to_grid(wrong)


def test_shares_of_the_evidence():
    evidence = np.zeros((56, 56), bool)
    evidence[8:16, 4:12] = True  # cells 2 and 3 down, 1 and 2 across
    truth = to_grid(evidence)
    point = np.zeros((14, 14))
    point[2, 1] = 1
    assert pointing_game(point, evidence) == 1
    assert pointing_game(np.roll(point, 5, axis=0), evidence) == 0
    assert mass_on(point, evidence) == 1
    assert mass_on(np.full((14, 14), 1 / 196), evidence) == pytest.approx(evidence.mean())
    assert top_iou(truth, truth) == 1
    assert top_iou(np.roll(truth, 5, axis=0), truth) == 0
    assert area_under_curve(truth, truth) == 1
    assert area_under_curve(np.full((14, 14), 1.0), truth) == 0.5
    assert np.isnan(area_under_curve(point, np.ones((14, 14))))


def test_tied_cells_count_as_draws_among_them_do():
    evidence = np.zeros((56, 56), bool)
    evidence[:12, :16] = True  # 3 × 4 cells in the corner where an order would begin
    truth, uniform = to_grid(evidence), np.full((14, 14), 1.0)
    assert pointing_game(uniform, evidence) == pytest.approx(evidence.mean())
    half = np.zeros((14, 14))
    half[2, 2:6] = 1
    assert pointing_game(half, evidence) == 0.5
    # All the evidence's 12 cells tie with 8 others, above them 2 of which one is right.
    points = np.zeros((14, 14))
    points[:4, :5] = 1
    points[0, 0] = points[3, 4] = 2
    rng, drawn = np.random.default_rng(0), []
    for _ in range(4000):
        drawn.append(top_iou(points + 0.1 * rng.random(points.shape), truth))
    assert top_iou(points, truth) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 60)
    assert top_iou(uniform, truth) < 0.1


def test_deletion_breaks_ties_by_chance():
    weight = np.zeros((6, 6))
    weight[:2] = 1 / 12

    def probability(seen):
        return (seen * weight).sum((1, 2))

    rng, uniform = np.random.default_rng(0), np.ones((6, 6))
    curves = [deletion_curve(uniform, probability, rng=rng) for _ in range(400)]
    taken = np.round(36 * np.array(SHARES)) / 36
    np.testing.assert_allclose(np.mean(curves, axis=0), 1 - taken, atol=0.02)
    # Cells that differ go by their weight whatever is drawn.
    np.testing.assert_array_equal(
        deletion_curve(weight + uniform.cumsum().reshape(6, 6), probability, rng=rng),
        deletion_curve(weight + uniform.cumsum().reshape(6, 6), probability),
    )


def test_deleting_what_matters_first_lowers_the_curve_and_inserting_raises_it():
    weight = maps(1, "peaked", 6)

    def probability(seen):
        return (seen * weight).sum((1, 2))

    falls, rises = (
        deletion_curve(weight, probability),
        deletion_curve(weight, probability, insert=True),
    )
    assert falls[0] == pytest.approx(1)
    assert falls[-1] == 0
    np.testing.assert_allclose(falls + rises, 1)
    other = deletion_curve(maps(2, "dense", 6), probability)
    assert falls.mean() < other.mean()


@pytest.mark.slow
def test_three_thousand_maps_take_minutes():
    import time

    pairs = [(maps(seed, "peaked"), maps(seed + 1, "mask")) for seed in range(60)]
    began = time.process_time()
    for a, b in pairs:
        pointing.earth_movers_distance(a, b)
    assert (time.process_time() - began) / len(pairs) * 3000 < 300
