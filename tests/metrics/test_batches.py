"""Pictures in parts: all of them, in their order, and one size to compile for."""

import jax.numpy as jnp
import numpy as np
import pytest

from vljax.metrics.batches import features_of, parts


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 3), (1, 1)])
def test_features_are_made_by_programs_of_one_size(count, size):
    images = np.arange(count, dtype=np.uint8).repeat(12).reshape(count, 2, 2, 3)
    shapes = set()

    def network(part):
        shapes.add(part.shape)
        return jnp.asarray(part.mean((1, 2)))

    found = features_of(network, images, size)
    np.testing.assert_array_equal(found, images.mean((1, 2)))
    assert shapes == {(min(size, count), 2, 2, 3)}


def test_parts_hold_each_picture_once():
    images = np.arange(7, dtype=np.uint8)[:, None, None, None]
    assert [part.ravel().tolist() for part in parts(images, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
