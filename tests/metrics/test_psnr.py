"""PSNR against its closed form and torch's squared error."""

import numpy as np
import pytest

from vljax.errors import UserError
from vljax.metrics.psnr import psnr


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 200, (3, 5, 7, 3), np.uint8)


@pytest.mark.parametrize("error", [1, 10, 55])
def test_a_constant_error(pictures, error):
    expected = 20 * np.log10(255 / error)
    np.testing.assert_allclose(psnr(pictures + np.uint8(error), pictures), expected, rtol=1e-6)
    np.testing.assert_allclose(psnr(pictures, pictures + np.uint8(error)), expected, rtol=1e-6)


def test_pictures_count_for_themselves(pictures):
    torch = pytest.importorskip("torch")
    other = np.random.default_rng(1).integers(0, 256, pictures.shape, np.uint8)
    for got, a, b in zip(psnr(other, pictures), other, pictures, strict=True):
        error = torch.nn.functional.mse_loss(torch.tensor(a).float(), torch.tensor(b).float())
        np.testing.assert_allclose(got, 10 * np.log10(255**2 / error.item()), rtol=1e-6)


def test_only_chosen_pixels_count(pictures):
    where = np.zeros((3, 5, 7), bool)
    where[0, 0, 0] = where[1, :, 2:] = True
    other = np.where(where[..., None], pictures + np.uint8(10), 0).astype(np.uint8)
    first, second, nothing = psnr(other, pictures, where)
    assert first == second == pytest.approx(20 * np.log10(25.5))
    assert np.isnan(nothing)


def test_equal_pictures_are_infinitely_close(pictures):
    assert (psnr(pictures, pictures) == np.inf).all()


def test_shapes_must_agree(pictures):
    with pytest.raises(UserError, match="one size"):
        psnr(pictures, pictures[:, 1:])
    with pytest.raises(UserError, match="one size"):
        psnr(pictures, pictures, np.ones((3, 5), bool))
