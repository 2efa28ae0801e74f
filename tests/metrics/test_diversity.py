"""Diversity: which pairs are compared, with what distance, and how that is summed up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vljax import pretrained
from vljax.errors import UserError
from vljax.metrics.diversity import (
    Distance,
    diversity,
    embedding_distance,
    load_lpips,
    lpips_distance,
    picture_distance,
)
from vljax.models.parameters import named_parameters, variables
from vljax.models.perceptual import LPIPS

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ABSOLUTE = Distance("absolute", lambda x: x, lambda a, b: jnp.abs(a - b).mean((1, 2, 3)))


def plain(*values):
    return np.stack([np.full((2, 2, 3), value, np.float32) for value in values])


def test_mean_and_spread_over_guidances():
    found = diversity([plain(0, 1, 3), plain(5, 5)], ABSOLUTE)
    assert found.label == "absolute"
    assert found.pairs == 4
    assert found.mean == pytest.approx((2 + 0) / 2)
    assert found.spread == pytest.approx(1)


def test_batches_of_pairs_do_not_change_the_result():
    group = np.random.default_rng(0).random((7, 2, 2, 3), dtype=np.float32)
    whole = diversity([group], ABSOLUTE, batch_size=21)
    assert whole.pairs == 21
    assert diversity([group], ABSOLUTE, batch_size=4).mean == pytest.approx(whole.mean, rel=1e-6)


def test_stand_in_is_labelled_and_measures_angles():
    distance = embedding_distance(lambda x: x.reshape(len(x), -1), "CLIP of this run")
    a, b, c = plain(1, 2, -1)
    found = diversity([np.stack([a, b]), np.stack([a, c])], distance)
    assert found.label == "1 − cosine of CLIP of this run (stand-in for LPIPS)"
    assert found.mean == pytest.approx((0 + 2) / 2, abs=1e-6)


def test_without_lpips_embeddings_of_pictures_stand_in(tmp_path):
    """They are of uint8 pictures, as every judge embeds them."""

    def embed(pictures):
        assert pictures.dtype == jnp.uint8
        return pictures.reshape(len(pictures), -1).astype(jnp.float32)

    distance = picture_distance((), embed, "CLIP")
    assert distance.label == "1 − cosine of CLIP (stand-in for LPIPS)"
    assert diversity([plain(1, 1)], distance).mean == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match=r"no checkpoint at .*absent\.pth"):
        picture_distance((tmp_path / "absent.pth",), embed, "CLIP")


def test_lpips_of_all_pairs_equals_pair_by_pair():
    rng = np.random.default_rng(0)
    model = jax.tree.map(
        lambda leaf: rng.uniform(0, 0.1, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: LPIPS("alex", rngs=nnx.Rngs(0))),
    )
    images = rng.uniform(-1, 1, (3, 33, 33, 3)).astype(np.float32)
    found = diversity([images], lpips_distance(model))
    assert found.label == "LPIPS (alex)"
    i, j = zip(*itertools.combinations(range(3), 2), strict=True)
    expected = jax.jit(lambda model, x, y: model(x, y))(model, images[[*i]], images[[*j]])
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """LPIPS of random weights as it is published, heads and trunk apart, and both in one file."""
    folder, rng = tmp_path_factory.mktemp("lpips"), np.random.default_rng(0)
    layouts = variables(jax.eval_shape(lambda: LPIPS("vgg", rngs=nnx.Rngs(0))))
    tensors = {
        name: pretrained.to_published(rng.random(v.get_value().shape, np.float32), v)
        for name, v in layouts.items()
    }
    parts = {
        "vgg": {name: tensor for name, tensor in tensors.items() if name.startswith("lin")},
        "vgg16": {name: tensor for name, tensor in tensors.items() if name.startswith("features")},
        "both": tensors,
    }
    # torchvision's file also tells ImageNet's classes.
    parts["vgg16"]["classifier.6.bias"] = np.zeros(1000, np.float32)
    for name, part in parts.items():
        pretrained.write_tensors(part, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in parts}


def test_lpips_is_read_as_published_and_joined(published):
    heads, trunk, both = published["vgg"], published["vgg16"], published["both"]
    joined = named_parameters(load_lpips([both]))
    assert joined["lin0.model.1.weight"].shape == (64, 1)
    for files in ([heads, trunk], [trunk, heads]):
        for name, value in named_parameters(load_lpips(files)).items():
            np.testing.assert_array_equal(value, joined[name])


def test_what_lpips_lacks_is_named(published):
    with pytest.raises(UserError, match=r"--lpips=.*vgg\.safetensors: the trunk \(torchvision's"):
        load_lpips([published["vgg"]])
    with pytest.raises(UserError, match=r"the heads \(LPIPS 0\.1's vgg\.pth\) is missing"):
        load_lpips([published["vgg16"]])
    with pytest.raises(UserError, match=r"--lpips=.* does not fit the model.* misshapen: features"):
        load_lpips([published["both"]], "alex")


def test_too_few_pictures_are_refused():
    with pytest.raises(UserError, match="got 1"):
        diversity([plain(0)], ABSOLUTE)
    with pytest.raises(UserError, match="got none"):
        diversity([], ABSOLUTE)
