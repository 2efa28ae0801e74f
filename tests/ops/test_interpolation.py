"""Resampling equals PyTorch's."""

import numpy as np
import pytest

from vljax.ops.interpolation import interpolate


@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(16, 16), (3, 50), (40, 7)])
def test_it_is_torchs(method, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 33)).astype(np.float32)
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    theirs = torch.nn.functional.interpolate(torch.tensor(x), size, mode=mode).numpy()
    np.testing.assert_allclose(interpolate(x, size, method), theirs, atol=1e-5)  # float32 places
