"""The noise-aware CLIP against the SDG authors' implementation, and its start from a CLIP.

Golden numbers: embedding, feature maps and image gradient of SDG_code's image tower at commit
62fb2725035f2cc327bcfc3710384d9cec0dac3c (its blocks are those of OpenAI's CLIP at commit
d05afc436d78f1c48dc0dbf8e5980a9d471f35f6), at a twelfth of RN50x16's width, with its depth
and with fewer blocks, run in PyTorch in float32 with the weights and inputs that `sdg_weights` and
the test make anew here. Of the gradient
every eighth pixel is kept, of each feature map the first row's last pixel and every fourth channel.
"""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden_weights import published_weights, random_tensor
from vljax import pretrained
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.clip_towers import image_tower
from vljax.models.noisy_clip import NoisyCLIP, from_clip
from vljax.models.parameters import named_parameters, with_parameters

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = {"context_length": 4, "vocabulary_size": 8, "text_width": 64, "text_layers": 1}
RESNET = {
    **TEXT,
    "embed_dim": 32,
    "image_size": 64,
    "vision_layers": (1, 1, 1, 1),
    "vision_width": 8,
}
VIT = {
    **TEXT,
    "embed_dim": 32,
    "image_size": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "patch_size": 8,
}
TOWERS = pytest.mark.parametrize("sizes", [RESNET, VIT], ids=["resnet", "vit"])


def sdg_tensor(name, shape):
    """Scales stay well below one, so that depth does not blow features up."""
    return random_tensor(name, shape, gain=0.01 if name == "emb_layers.1.weight" else 1.0)


def sdg_name(name):
    """The published name of one of our parameters."""
    trunk = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    trunk |= {"layer1": 10, "layer2": 11, "layer3": 12}
    name = re.sub(r"^visual\.attnpool\.", "attn_pool.", name)
    name = re.sub(r"^visual\.layer4\.", "layer4.", name)
    return re.sub(r"^visual\.(\w+)\.", lambda m: f"visual_frozen.{trunk[m[1]]}.", name)


def sdg_weights(model):
    tensors = published_weights(model, tensor=sdg_tensor, published_name=sdg_name)
    return tensors | {"visual_frozen.1.num_batches_tracked": np.array(5)}


def noisy_pictures(batch, size):
    return np.random.default_rng(7).standard_normal((batch, size, size, 3)).astype(np.float32)


def loaded(model, tensors):
    named = NoisyCLIP.published_names(tensors)
    return jax.tree.map(jnp.asarray, pretrained.assign(model, named, origin="the test"))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("shallow", (1, 2, 2, 1)),
        # The published depth: its compilation takes a minute.
        pytest.param("rn50x16", (6, 8, 18, 8), marks=pytest.mark.slow),
    ],
)
def test_matches_sdg(name, layers):
    golden = np.load(GOLDEN / "clip_noisy.npz")

    def make():
        sizes = {"embed_dim": 32, "image_size": 64, "vision_layers": layers, "vision_width": 8}
        tower = image_tower(**sizes, remat=name == "shallow", rngs=nnx.Rngs(0))
        return NoisyCLIP(tower, rngs=nnx.Rngs(0))

    model = jax.eval_shape(make)
    model = loaded(model, sdg_weights(model))
    weights = np.random.default_rng(8).standard_normal((2, 32), dtype=np.float32)

    @jax.jit
    def run(model, images, t):
        def weighted(images):
            embedding, maps = model.encode_image(images, t, features=True)
            return (embedding * weights).sum(), (embedding, maps)

        (_, results), gradient = jax.value_and_grad(weighted, has_aux=True)(images)
        return *results, gradient

    embedding, maps, gradient = run(model, noisy_pictures(2, 64), np.array([12, 871]))
    np.testing.assert_allclose(embedding, golden[f"{name}_embedding"], rtol=1e-5, atol=1e-4)
    expected = golden[f"{name}_gradient"]
    np.testing.assert_allclose(gradient[:, ::8, ::8], expected, atol=1e-4 * np.abs(expected).max())
    for i, feature_map in enumerate(maps):
        expected = golden[f"{name}_map{i}"]
        np.testing.assert_allclose(feature_map[:, 0, -1, ::4], expected, rtol=1e-5, atol=1e-4)


def random_clip(sizes):
    """A CLIP no parameter of which is at its start, where much is zero."""
    clip = jax.eval_shape(lambda: CLIP(**sizes, rngs=nnx.Rngs(0)))
    values = {
        name: jnp.asarray(sdg_tensor(name, value.shape))
        for name, value in named_parameters(clip).items()
    }
    return with_parameters(clip, values)


@TOWERS
def test_starts_as_the_clean_tower_at_any_time(sizes):
    clip = random_clip(sizes)
    images = noisy_pictures(2, sizes["image_size"])

    @jax.jit
    def run(clip, images, t):
        noisy = from_clip(clip, sizes["image_size"], rngs=nnx.Rngs(1))
        return noisy.encode_image(images, t, features=True), clip.encode_image(
            images, features=True
        )

    seen, clean = run(clip, images, np.array([0.0, 999.0]))
    chex.assert_trees_all_close(seen, clean, rtol=0, atol=1e-6)
    assert all(jnp.abs(feature_map).max() > 1e-2 for feature_map in clean[1])


@TOWERS
def test_another_size_has_a_fresh_grid_and_the_same_weights(sizes):
    clip = random_clip(sizes)
    size = sizes["image_size"] // 2
    noisy = from_clip(clip, size, rngs=nnx.Rngs(1))
    theirs, ours = named_parameters(clip), named_parameters(noisy)
    grid = next(n for n in ours if n.endswith("positional_embedding"))
    assert ours[grid].shape[0] == (theirs[grid].shape[0] - 1) // 4 + 1
    assert float(jnp.std(ours[grid])) == pytest.approx(ours[grid].shape[1] ** -0.5, rel=0.2)
    shared = [n for n in ours if n.startswith("visual.") and n != grid]
    assert len(shared) > 20
    chex.assert_trees_all_equal({n: ours[n] for n in shared}, {n: theirs[n] for n in shared})
    # The CLIP keeps its own, and pictures of any size are brought to the tower's.
    assert clip.visual.image_size == sizes["image_size"]
    images = jax.ShapeDtypeStruct((2, sizes["image_size"], sizes["image_size"], 3), jnp.float32)
    seen = jax.eval_shape(lambda x: noisy.encode_image(x, jnp.ones(2), features=True), images)
    assert seen[0].shape == (2, 32)
    assert len(seen[1]) == 5


@TOWERS
def test_every_adaptable_norm_listens_to_the_time_and_only_for_its_own_example(sizes):
    clip = random_clip(sizes)
    noisy = from_clip(clip, sizes["image_size"], rngs=nnx.Rngs(1))
    name = "emb_layers.1.weight"
    shape = named_parameters(noisy)[name].shape
    assert shape[1] == 2 * sum(noisy.visual.adaptable)
    images = jnp.asarray(noisy_pictures(2, sizes["image_size"]))

    @jax.jit
    def run(noisy, weight, t):
        def total(weight):
            model = with_parameters(noisy, {name: weight})
            embedding = model.encode_image(images, t)
            return jnp.sin(embedding).sum(), embedding

        (_, embedding), gradient = jax.value_and_grad(total, has_aux=True)(weight)
        return embedding, gradient

    weight = sdg_tensor(name, shape)
    first, gradient = run(noisy, weight, np.array([10.0, 500.0]))
    second, _ = run(noisy, weight, np.array([10.0, 20.0]))
    # One scale and one shift for each channel: all of them matter to the embedding.
    ends = np.cumsum(np.repeat(noisy.visual.adaptable, 2))[:-1]
    assert all(part.max() > 0 for part in np.split(np.abs(gradient).max(0), ends))
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert np.abs(first[1] - second[1]).max() > 1e-3


def test_sizes_that_do_not_divide_are_refused():
    clip = jax.eval_shape(lambda: CLIP(**RESNET, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"image_size=48 .* multiple of 32"):
        jax.eval_shape(lambda: from_clip(clip, 48, rngs=nnx.Rngs(0)))
