"""Pixels: every level survives the way in and out, by JAX and by numpy alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from vljax.ops.pixels import to_levels, to_pixels, to_unit


@pytest.mark.parametrize("library", [np, jnp])
def test_every_level_comes_back(library):
    levels = library.arange(256, dtype=library.uint8)
    unit = to_unit(levels)
    assert type(unit) is type(levels)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, np.linspace(-1, 1, 256), atol=1e-7)
    np.testing.assert_allclose(to_levels(unit), levels, atol=2e-5)
    back = to_pixels(unit)
    assert type(back) is type(levels)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("library", [np, jnp])
def test_pixels_are_rounded_and_limited(library):
    unit = library.asarray([-9, -1.001, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.001, 9], np.float32)
    np.testing.assert_array_equal(to_pixels(unit), [0, 0, 0, 1, 255, 255])
