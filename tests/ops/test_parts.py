"""Numbers in parts of one size."""

import pytest

from vljax.ops.parts import equal_parts


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
