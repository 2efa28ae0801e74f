"""GeNeVA's localiser against torchvision's Inception-v3 under GeNeVA's heads.

Golden numbers: torchvision 0.28.0's `Inception3` and `InceptionAux` with the two heads of
Maluuba/GeNeVA at commit 7e8d597, in PyTorch in float32, with the weights and pictures that are made
anew here; pictures through torchvision's `Resize(299)` and `ToTensor`.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import published_weights, random_tensor, standard_normal
from vljax import pretrained
from vljax.models.localizer import ObjectLocalizer, localizer_pixels
from vljax.models.parameters import named_parameters

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden" / "localizer.npz"


def tensor(name, shape):
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(standard_normal(name, shape))
    return random_tensor(name, shape, gain=2.0)


@pytest.fixture(scope="module")
def skeleton():
    return jax.eval_shape(lambda: ObjectLocalizer(24, 2, rngs=nnx.Rngs(0)))


def test_a_published_file_would_load(skeleton):
    """Names as `DataParallel` writes them; CoDraw's has a depth and 58 classes."""
    names = named_parameters(skeleton)
    assert names["inception3.AuxLogits.conv1.conv.weight"].shape == (5, 5, 128, 768)
    tensors = published_weights(skeleton, tensor=lambda name, shape: np.zeros(shape, np.float32))
    assert tensors["detector.1.weight"].shape == (24, 256)
    published = {f"module.{name}": one for name, one in tensors.items()}
    published["module.inception3.Conv2d_1a_3x3.bn.num_batches_tracked"] = np.array(3)
    assert ObjectLocalizer.published_names(published).keys() == names.keys()
    codraw = jax.eval_shape(lambda: ObjectLocalizer(58, 3, rngs=nnx.Rngs(0)))
    assert named_parameters(codraw)["localizer.1.weight"].shape == (512, 58 * 3)


@pytest.mark.slow
def test_classes_and_places_match_torchvision(skeleton):
    golden = np.load(GOLDEN)
    tensors = published_weights(skeleton, tensor=tensor)
    model = pretrained.assign(skeleton, tensors, origin="golden weights")
    pictures = np.random.default_rng(7).integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    found, places = jax.jit(lambda m, x: m(x))(model, localizer_pixels(pictures))
    np.testing.assert_allclose(found, golden["detections"], atol=1e-4)
    scale = np.abs(golden["places"]).max()
    np.testing.assert_allclose(places, golden["places"], atol=1e-4 * scale)
