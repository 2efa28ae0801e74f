"""Trunks that come with weights: by any published names, with the pixels that belong to them."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.pretrained.test_caffemodel import layer
from vljax import pretrained
from vljax.errors import UserError
from vljax.models import resnet
from vljax.models.clip import CLIP
from vljax.models.clip_towers import normalise_pixels
from vljax.models.trunk import ClipTrunk, ResNetTrunk, published_trunk

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LAYERS, WIDTH = (1, 1, 1, 1), 4
CLIP_SIZES = {
    "image_size": 32,
    "patch_size": 16,
    "vision_layers": 1,
    "vision_width": 64,
    "embed_dim": 8,
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)


def caffe_name(path):
    """The layer and the blob of MSRA's file for one of torchvision's parameters."""
    *place, field = path.split(".")
    norm = "bn" in place[-1] or place[-2:] == ["downsample", "1"]
    if place[0] in ("conv1", "bn1"):
        layers = ("bn_conv1", "scale_conv1") if norm else ("conv1",)
    else:
        branch = "1" if "downsample" in place else "2" + "abc"[int(place[-1][-1]) - 1]
        name = f"{int(place[0][-1]) + 1}{'abc'[int(place[1])]}_branch{branch}"
        layers = (f"bn{name}", f"scale{name}") if norm else (f"res{name}",)
    statistic = field.startswith("running")
    return layers[0 if statistic or not norm else 1], field


@pytest.mark.parametrize("caffe", [False, True])
def test_a_resnet_prepares_pixels_as_its_weights_expect(images, tmp_path, caffe):
    network = resnet.ResNet(LAYERS, width=WIDTH, rngs=nnx.Rngs(0))
    pretrained.save(network, tmp_path / "resnet.safetensors")
    tensors = pretrained.read_tensors(tmp_path / "resnet.safetensors")
    file = tmp_path / "resnet.safetensors"
    if caffe:
        blobs = {}
        for name, tensor in tensors.items():
            place, field = caffe_name(name)
            blobs.setdefault(place, {})[field] = tensor
        fields = ("running_mean", "running_var", "weight", "bias")
        file = tmp_path / "resnet.caffemodel"
        file.write_bytes(
            b"".join(
                layer(
                    name,
                    [own[f] for f in fields if f in own] + ([np.ones(1)] * ("running_mean" in own)),
                )
                for name, own in blobs.items()
            )
        )
    trunk = jax.eval_shape(lambda: ResNetTrunk(LAYERS, width=WIDTH, caffe=caffe, rngs=nnx.Rngs(1)))
    trunk = pretrained.load(trunk, file)
    told = {"stride_in": "1x1", "pool": "ceil"} if caffe else {}
    peer = jax.eval_shape(lambda: resnet.ResNet(LAYERS, width=WIDTH, **told, rngs=nnx.Rngs(1)))
    peer = pretrained.assign(peer, tensors, origin="here")
    prepare = resnet.subtract_mean if caffe else resnet.normalise_pixels
    ours, theirs = jax.jit(lambda: (trunk(images), peer(prepare(images))))()
    assert ours.shape == (2, 2, 2, 32 * WIDTH)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # What we write is read again.
    pretrained.save(trunk, tmp_path / "again.safetensors")
    again = pretrained.load(trunk, tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.network.conv1.weight[...], trunk.network.conv1.weight[...])


def test_clips_patches_are_those_of_the_whole_clip(images, tmp_path):
    clip = CLIP(
        **CLIP_SIZES,
        text_width=64,
        text_layers=1,
        context_length=4,
        vocabulary_size=9,
        rngs=nnx.Rngs(0),
    )
    pretrained.save(clip, tmp_path / "clip.safetensors")
    trunk = jax.eval_shape(lambda: ClipTrunk(CLIP_SIZES, rngs=nnx.Rngs(1)))
    trunk = pretrained.load(trunk, tmp_path / "clip.safetensors")
    small = images[:, ::2, ::2]
    ours, theirs = jax.jit(
        lambda: (trunk(small), clip.visual.positions(normalise_pixels(small))[:, 1:])
    )()
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, atol=1e-5)
    assert jax.eval_shape(trunk, images).shape == (2, 2, 2, 64)  # of any size


def test_published_sizes(tmp_path):
    def shape(kind, side, weights=""):
        def run(images):
            trunk, channels = published_trunk(kind, weights, rngs=nnx.Rngs(0))
            features = trunk(images)
            assert features.shape[-1] == channels
            return features

        return jax.eval_shape(run, jax.ShapeDtypeStruct((1, side, side, 3), np.float32)).shape

    assert shape("resnet50", 448) == shape("resnet50", 448, "x.caffemodel") == (1, 14, 14, 2048)
    assert shape("clip", 224) == (1, 14, 14, 768)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type='bert' in config"):
        published_trunk("resnet152", str(tmp_path), rngs=nnx.Rngs(0))
