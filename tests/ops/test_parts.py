"""Numbers in parts of one size."""

import numpy as np
import pytest

from vljax.ops.parts import equal_parts, filled_batches, joined


@pytest.mark.parametrize(
    ("count", "most", "parts"),
    [
        (5, 2, [[0, 1], [2, 3], [4, 4]]),
        (9, 8, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 8]]),
        (3, 8, [[0, 1, 2]]),
        (2, 1, [[0], [1]]),
    ],
)
def test_all_numbers_in_as_few_parts_of_one_size(count, most, parts):
    assert [part.tolist() for part in equal_parts(count, most)] == parts


@pytest.mark.parametrize(
    ("count", "batches"), [(0, []), (2, [[0, 1, 1]]), (3, [[0, 1, 2]]), (4, [[0, 1, 2], [3, 3, 3]])]
)
def test_the_last_batch_is_filled_up(count, batches):
    assert [batch.tolist() for batch in filled_batches(count, 3)] == batches


def test_what_is_made_in_batches_is_joined():
    parts = ({"double": 2 * places, "none": None} for places in filled_batches(5, 2))
    made = joined(parts, 5)
    np.testing.assert_array_equal(made["double"], 2 * np.arange(5))
    assert made["none"] is None
