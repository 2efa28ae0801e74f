"""Inception-v3 against pytorch-fid.

Golden numbers: every eighth feature and logit of pytorch-fid's `InceptionV3` at commit
b9c18118d082cbd263c1b8963fc4221dc1cbb659, on torchvision 0.29.2 (commit
f12281517f1b2f6255904639b027c9436f3e5008), in PyTorch in float32, with the weights and pictures
that are made anew here, one picture to be enlarged and one to be reduced.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import published_weights, random_tensor, standard_normal
from vljax import pretrained
from vljax.models.inception import InceptionV3
from vljax.ops.pixels import to_unit

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.npz"


def fid_tensor(name, shape):
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(standard_normal(name, shape))
    return random_tensor(name, shape, gain=2.0)


@pytest.fixture(scope="module")
def model():
    skeleton = jax.eval_shape(lambda: InceptionV3(rngs=nnx.Rngs(0)))
    tensors = published_weights(skeleton, tensor=fid_tensor)
    norms = [n.removesuffix(".weight") for n in tensors if n.endswith("bn.weight")]
    assert len(norms) == 94
    tensors |= {f"{norm}.num_batches_tracked": np.array(3) for norm in norms}
    tensors = InceptionV3.published_names(tensors)
    return pretrained.assign(skeleton, tensors, origin="golden weights")


@pytest.mark.parametrize("name", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_features_and_logits_match_pytorch_fid(model, name):
    golden = np.load(GOLDEN)

    @jax.jit
    def run(model, images):
        features = model.features(images)
        return features, model.logits(features)

    # The golden run drew the small picture first.
    rng = np.random.default_rng(7)
    pictures = {
        name: rng.integers(0, 256, shape).astype(np.uint8)
        for name, shape in (("small", (1, 48, 64, 3)), ("large", (1, 320, 320, 3)))
    }
    features, logits = run(model, to_unit(pictures[name]))
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    np.testing.assert_allclose(features[:, ::8], golden[f"{name}_features"], atol=1e-4)
    np.testing.assert_allclose(logits[:, ::8], golden[f"{name}_logits"], atol=1e-4)


def test_logits_without_bias(model):
    features = np.random.default_rng(1).random((2, 2048), dtype=np.float32)
    difference = model.logits(features) - model.logits(features, bias=False)
    bias = np.broadcast_to(model.fc.bias[...], (2, 1008))
    np.testing.assert_allclose(difference, bias, atol=1e-5)
