"""He's ResNet against `transformers`' and a PyTorch transcription, by every family's names."""

import json
import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests import golden_weights
from tests.golden_weights import random_tensor, standard_normal
from vljax import pretrained
from vljax.errors import UserError
from vljax.models.folders import resnet_arguments
from vljax.models.parameters import named_parameters
from vljax.models.resnet import (
    DEPTHS,
    Bottleneck,
    ResNet,
    normalise_pixels,
    subtract_mean,
)

SMALL = {"layers": (1, 1, 1, 1), "width": 8}


pytestmark = pytest.mark.usefixtures("quick_to_compile")


def skeleton(**fields):
    return jax.eval_shape(lambda: ResNet(**fields, rngs=nnx.Rngs(0)))


def resnet_tensor(name, shape):
    """Such that signals neither vanish nor explode."""
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(standard_normal(name, shape))
    w = random_tensor(name, shape, gain=2.0)
    return w - 0.7 if name.endswith("bn3.weight") else w


def published_weights(model):
    return golden_weights.published_weights(model, tensor=resnet_tensor)


def pictures(side):
    return np.random.default_rng(1).uniform(-1, 1, (1, side, side + 30, 3)).astype(np.float32)


def transcribed(tensors, layers, x, *, stride_in, pool):
    """Table 1 of the paper in PyTorch, over torchvision's names; x is [b 3 h w]."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    t = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}

    def norm(x, name):
        return f.batch_norm(
            x, *(t[f"{name}.{v}"] for v in ("running_mean", "running_var", "weight", "bias"))
        )

    x = f.conv2d(torch.from_numpy(x), t["conv1.weight"], stride=2, padding=3)
    x = f.relu(norm(x, "bn1"))
    x = f.max_pool2d(x, 3, 2, 1) if pool == "padded" else f.max_pool2d(x, 3, 2, ceil_mode=True)
    for group, blocks in enumerate(layers):
        for block in range(blocks):
            at = f"layer{group + 1}.{block}"
            stride = 2 if group and not block else 1
            strides = (stride, 1) if stride_in == "1x1" else (1, stride)
            h = f.relu(norm(f.conv2d(x, t[f"{at}.conv1.weight"], stride=strides[0]), f"{at}.bn1"))
            h = f.conv2d(h, t[f"{at}.conv2.weight"], stride=strides[1], padding=1)
            h = norm(f.conv2d(f.relu(norm(h, f"{at}.bn2")), t[f"{at}.conv3.weight"]), f"{at}.bn3")
            if not block:
                x = f.conv2d(x, t[f"{at}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{at}.downsample.1")
            x = f.relu(h + x)
    logits = f.linear(x.mean((2, 3)), t["fc.weight"], t["fc.bias"])
    return x.permute(0, 2, 3, 1).numpy(), logits.numpy()


def channels_first(x):
    return np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2))


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@jax.jit
def run(model, x):
    features = model(x)
    return features, model.classify(features)


@pytest.mark.parametrize(
    ("stride_in", "pool", "layers", "width", "side"),
    [
        ("3x3", "padded", (1, 2, 1, 1), 8, 75),
        ("1x1", "ceil", (1, 2, 1, 1), 8, 75),
        pytest.param("3x3", "padded", DEPTHS[152], 64, 224, marks=pytest.mark.slow),
        pytest.param("1x1", "ceil", DEPTHS[152], 64, 224, marks=pytest.mark.slow),
    ],
)
def test_features_and_logits_match_a_transcription(stride_in, pool, layers, width, side, tmp_path):
    torch = pytest.importorskip("torch")
    fields = {"layers": layers, "width": width, "stride_in": stride_in, "pool": pool}
    model = skeleton(**fields, classes=10)
    tensors = published_weights(model)
    state = {name: torch.from_numpy(t) for name, t in tensors.items()}
    state |= {"bn1.num_batches_tracked": torch.tensor(3)}
    torch.save(state, path := tmp_path / "resnet.pth")
    x = normalise_pixels(pictures(side))
    features, logits = run(pretrained.load(model, path), x)
    theirs = transcribed(tensors, layers, channels_first(x), stride_in=stride_in, pool=pool)
    assert features.shape == (1, math.ceil(side / 32), math.ceil((side + 30) / 32), 32 * width)
    errors = relative_error(features, theirs[0]), relative_error(logits, theirs[1])
    print(f"\nrelative errors {errors}")
    assert max(errors) <= 1e-4
    assert np.abs(theirs[0]).max() > 0.1


@pytest.mark.parametrize(
    ("depths", "width", "side", "first"),
    [
        ((1, 2, 1, 1), 8, 75, True),
        pytest.param(DEPTHS[152], 64, 224, False, marks=pytest.mark.slow),
    ],
)
def test_a_hugging_face_folder_is_loaded(depths, width, side, first, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=width,
        hidden_sizes=[4 * width * 2**i for i in range(4)],
        depths=list(depths),
        downsample_in_bottleneck=first,
        num_labels=10,
    )
    peer = transformers.ResNetForImageClassification(config).eval()
    ours = published_weights(skeleton(layers=depths, width=width, classes=10))
    with torch.no_grad():
        for name, tensor in peer.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.from_numpy(ours[_by_hand(name)]))
    peer.save_pretrained(tmp_path)
    fields = resnet_arguments(tmp_path)
    assert fields["stride_in"] == ("1x1" if first else "3x3")
    model = pretrained.load(skeleton(**fields, classes=10), tmp_path)
    x = normalise_pixels(pictures(side))
    features, logits = run(model, x)
    with torch.no_grad():
        theirs = peer.resnet(torch.from_numpy(channels_first(x))).last_hidden_state
        scores = peer(torch.from_numpy(channels_first(x))).logits
    errors = (
        relative_error(features, theirs.permute(0, 2, 3, 1).numpy()),
        relative_error(logits, scores.numpy()),
    )
    print(f"\nrelative errors {errors}")
    assert max(errors) <= 1e-4


def _by_hand(name):
    """Torchvision's name, spelt out with splits where the importer has one expression."""
    if name.startswith("classifier"):
        return name.replace("classifier.1", "fc")
    words = name.split(".")[1:]
    kind = {"convolution": "conv", "normalization": "bn"}[words[-2]]
    if words[0] == "embedder":
        return f"{kind}1.{words[-1]}"
    group, block = int(words[2]) + 1, words[4]
    if words[5] == "shortcut":
        return f"layer{group}.{block}.downsample.{0 if kind == 'conv' else 1}.{words[-1]}"
    return f"layer{group}.{block}.{kind}{int(words[6]) + 1}.{words[-1]}"


def caffe_blobs(tensors, layers, factor=999.0):
    """Torchvision's tensors as MSRA's caffemodels hold them."""
    blobs = {"conv1.0": tensors["conv1.weight"], "fc1000.0": tensors["fc.weight"]}
    blobs["fc1000.1"] = tensors["fc.bias"]

    def norm(ours, suffix):
        mean, var = tensors[f"{ours}.running_mean"], tensors[f"{ours}.running_var"]
        blobs[f"bn{suffix}.0"], blobs[f"bn{suffix}.1"] = mean * factor, var * factor
        blobs[f"bn{suffix}.2"] = np.array([factor], np.float32)
        blobs[f"scale{suffix}.0"] = tensors[f"{ours}.weight"]
        blobs[f"scale{suffix}.1"] = tensors[f"{ours}.bias"]

    norm("bn1", "_conv1")
    for group, count in enumerate(layers):
        # Groups of four and more blocks are counted from b1 in ResNet-101 and 152.
        long = ["a", *(f"b{i}" for i in range(1, count))]
        for block, letter in enumerate(long if count > 3 else "abc"[:count]):
            for i, branch in enumerate(("2a", "2b", "2c")):
                at, to = f"layer{group + 1}.{block}", f"{group + 2}{letter}_branch{branch}"
                blobs[f"res{to}.0"] = tensors[f"{at}.conv{i + 1}.weight"]
                norm(f"{at}.bn{i + 1}", to)
            if not block:
                blobs[f"res{group + 2}a_branch1.0"] = tensors[f"{at}.downsample.0.weight"]
                norm(f"{at}.downsample.1", f"{group + 2}a_branch1")
    return blobs


def test_a_caffemodels_names_and_norms_are_mapped():
    layers = (3, 8, 4, 3)
    model = skeleton(layers=layers, width=2, classes=10)
    tensors = published_weights(model)
    blobs = caffe_blobs(tensors, layers)
    renamed = model.published_names(blobs)
    assert renamed.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(renamed[name], tensor, rtol=1e-6, err_msg=name)
    # The norm takes off a bias before it, as it takes off the mean.
    bias = np.float32([1, -2])
    shifted = model.published_names(blobs | {"conv1.1": bias})
    np.testing.assert_allclose(
        shifted["bn1.running_mean"], tensors["bn1.running_mean"] - bias, rtol=1e-6
    )
    # What is unknown stays, and the importer lists it.
    with pytest.raises(UserError, match=r"surplus: res2a_branch2d\.0"):
        pretrained.assign(
            model, model.published_names(blobs | {"res2a_branch2d.0": bias}), origin="net"
        )


def test_a_trunk_leaves_the_classifier():
    trunk = skeleton(**SMALL)
    tensors = published_weights(skeleton(**SMALL, classes=10))
    loaded = pretrained.assign(trunk, trunk.published_names(tensors), origin="net")
    assert not any(name.startswith("fc") for name in named_parameters(loaded))
    with pytest.raises(ValueError, match="no classifier"):
        loaded.classify(np.zeros((1, 1, 1, 256)))


def test_an_untrained_network_of_any_depth_is_sane():
    """A block starts as the identity, so features keep their size, however many there are."""
    block = Bottleneck(8, 2, 1, "3x3", rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(lambda block, x: block(x))(block, x), x)


def test_recomputed_blocks_have_the_same_gradient():
    x = pictures(32)

    @jax.jit
    def gradients(models, x):
        return [jax.grad(lambda x, m=m: (m(x) ** 2).mean())(x) for m in models]

    models = [ResNet((1, 1, 1, 1), width=4, remat=r, rngs=nnx.Rngs(0)) for r in (False, True)]
    plain, recomputed = gradients(models, x)
    np.testing.assert_allclose(recomputed, plain, rtol=1e-4, atol=1e-9)
    assert np.abs(plain).max() > 0


def test_pixels_as_each_familys_weights_see_them():
    red = np.float32([[[[1, -1, -1]]]])
    np.testing.assert_allclose(
        normalise_pixels(red)[0, 0, 0], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], 1e-5
    )
    np.testing.assert_allclose(
        subtract_mean(red)[0, 0, 0], [-103.06, -115.90, 255 - 123.15], rtol=1e-5
    )


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="stride_in='2x2'"):
        ResNet((1, 1, 1, 1), stride_in="2x2", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="pool='floor'"):
        ResNet((1, 1, 1, 1), pool="floor", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"layers=\(3, 4\)"):
        ResNet((3, 4), rngs=nnx.Rngs(0))
    for wrong, word in (
        ({"layer_type": "basic"}, "layer_type='basic'"),
        ({"model_type": "vit"}, "model_type='vit'"),
        ({"hidden_sizes": [64, 128, 256, 512]}, "hidden_sizes="),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"} | wrong))
        with pytest.raises(UserError, match=word):
            resnet_arguments(tmp_path)
