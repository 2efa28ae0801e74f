"""Inception-v3 against pytorch-fid.

Golden numbers: every eighth feature and logit of pytorch-fid's `InceptionV3` at commit
b9c18118d082cbd263c1b8963fc4221dc1cbb659, on torchvision 0.29.2 (commit
f12281517f1b2f6255904639b027c9436f3e5008), in PyTorch in float32, with the weights and pictures
that are made anew here, one picture to be enlarged and one to be reduced.
"""

import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.models.inception import InceptionV3
from vljax.models.parameters import variables

GOLDEN = Path(__file__).parents[1] / "golden" / "inception.npz"


def published_weights(model):
    """Every tensor from its own name, as the golden run made it."""
    tensors = {}
    for name, variable in variables(model).items():
        shape = variable.get_value().shape
        shape = pretrained.to_published(np.zeros(shape, bool), variable).shape
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        w = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("running_var"):
            w = 1 + 0.1 * np.abs(w)
        elif len(shape) == 1:
            w = 0.1 * w + (1.0 if name.endswith("bn.weight") else 0.0)
        else:
            w = w * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        tensors[name] = w.astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def model():
    skeleton = jax.eval_shape(lambda: InceptionV3(rngs=nnx.Rngs(0)))
    tensors = published_weights(skeleton)
    norms = [n.removesuffix(".weight") for n in tensors if n.endswith("bn.weight")]
    assert len(norms) == 94
    tensors |= {f"{norm}.num_batches_tracked": np.array(3) for norm in norms}
    tensors = InceptionV3.published_names(tensors)
    return pretrained.assign(skeleton, tensors, origin="golden weights")


def test_features_and_logits_match_pytorch_fid(model):
    golden = np.load(GOLDEN)

    @jax.jit
    def run(model, images):
        features = model.features(images)
        return features, model.logits(features)

    rng = np.random.default_rng(7)
    for name, shape in {"small": (1, 48, 64, 3), "large": (1, 320, 320, 3)}.items():
        images = rng.integers(0, 256, shape).astype(np.uint8)
        features, logits = run(model, images.astype(np.float32) / 127.5 - 1)
        assert features.shape == (1, 2048)
        assert logits.shape == (1, 1008)
        np.testing.assert_allclose(features[:, ::8], golden[f"{name}_features"], atol=1e-4)
        np.testing.assert_allclose(logits[:, ::8], golden[f"{name}_logits"], atol=1e-4)


def test_logits_without_bias(model):
    features = np.random.default_rng(1).random((2, 2048), dtype=np.float32)
    difference = model.logits(features) - model.logits(features, bias=False)
    bias = np.broadcast_to(model.fc.bias[...], (2, 1008))
    np.testing.assert_allclose(difference, bias, atol=1e-5)
