"""A model's parameters by name."""

import jax
import numpy as np
from flax import nnx

from vljax.models.layers import Linear
from vljax.models.parameters import copied


def test_what_is_set_in_a_copy_leaves_the_first_as_it_is():
    first = Linear(2, 3, rngs=nnx.Rngs(0))
    before = np.asarray(first.weight[...])
    copy = copied(first)
    np.testing.assert_array_equal(copy.weight[...], before)
    copy.weight[...] = before + 1
    copy.bias = None
    np.testing.assert_array_equal(first.weight[...], before)
    assert first.bias is not None
    skeleton = copied(jax.eval_shape(lambda: Linear(2, 3, rngs=nnx.Rngs(0))))
    assert skeleton.weight.shape == (2, 3)
