"""Insertion orders: three forms of one thing, against writing into a list."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.ops import insertion

LENGTH = 9
neighbours, order_from_slots = map(jax.jit, (insertion.neighbours, insertion.order_from_slots))
insert, successors = jax.jit(insertion.insert), jax.jit(insertion.successors)


def framed(permutation):
    """An order of words between a start mark, an end mark and padding."""
    n = len(permutation)
    return np.array([0, *(p + 1 for p in permutation), *range(n + 1, LENGTH)], np.int32)


def write(slots):
    """The steps in the finished sequence, by inserting into a Python list."""
    sequence = [0]
    for step, slot in enumerate(slots[1:], 1):
        sequence.insert(sequence.index(slot) + 1, step)
    return sequence


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(6)))
def test_slots_write_the_order_they_came_from(permutation):
    order = framed(permutation)
    slots, _ = neighbours(order)
    assert (np.asarray(slots)[1:] < np.arange(1, LENGTH)).all()
    np.testing.assert_array_equal(write(list(map(int, slots))), np.argsort(order))
    np.testing.assert_array_equal(order_from_slots(slots), order)


def test_slots_and_orders_are_one_to_one():
    orders = np.array([framed(p) for p in itertools.permutations(range(4))])
    slots, _ = insertion.neighbours(jnp.asarray(orders))
    assert len({tuple(map(int, row)) for row in slots}) == 24
    np.testing.assert_array_equal(insertion.order_from_slots(slots), orders)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_step_by_step(seed):
    order = framed(np.random.default_rng(seed).permutation(6))
    slots, right = (np.asarray(side) for side in neighbours(order))
    ranks = jnp.zeros(LENGTH, jnp.int32)
    for step in range(1, LENGTH):
        follows = np.asarray(successors(ranks, step))
        sequence = write(slots[:step])
        for left, after in zip(sequence, [*sequence[1:], 0], strict=True):
            assert follows[left] == after
        assert follows[slots[step]] == right[step]
        ranks = insert(ranks, slots[step], step)
        expected = np.argsort(np.argsort(order[: step + 1]))
        np.testing.assert_array_equal(ranks[: step + 1], expected)
    np.testing.assert_array_equal(ranks, order)


def test_relations_hold_for_every_prefix():
    order = framed([2, 0, 3, 1])
    labels = np.asarray(insertion.relations(jnp.asarray(order)))
    assert set(np.unique(labels)) == {-1, 0, 1}
    np.testing.assert_array_equal(labels, -labels.T)
    for step in range(1, LENGTH):
        places = np.argsort(np.argsort(order[:step]))
        np.testing.assert_array_equal(labels[:step, :step], np.sign(places[:, None] - places[None]))


def test_movable_are_the_words_between_the_marks():
    mask = np.zeros((4, 6), bool)
    for row, framed_length in enumerate((2, 3, 6, 1)):
        mask[row, :framed_length] = True
    expected = np.zeros_like(mask)
    expected[1, 1] = True
    expected[2, 1:5] = True
    np.testing.assert_array_equal(jax.jit(insertion.movable)(mask), expected)


def test_written_values_and_back():
    order = jnp.asarray(np.stack([framed([2, 0, 1]), framed([1, 2, 0])]))
    values = jnp.arange(2 * LENGTH).reshape(2, LENGTH)
    written = insertion.in_order(values, order)
    np.testing.assert_array_equal(written[0, :4], [0, 3, 1, 2])
    np.testing.assert_array_equal(insertion.in_order(written, insertion.steps_of(order)), values)
