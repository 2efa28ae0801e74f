"""CLIP against OpenAI's implementation and `transformers`'.

Golden numbers: embeddings, feature maps and image gradients of OpenAI's CLIP at commit
d05afc436d78f1c48dc0dbf8e5980a9d471f35f6, run in PyTorch in float32 with the weights and inputs
that `published_weights` and `pictures` make anew here. `clip.npz` holds narrow networks, of RN50's
depth and of a small ViT, `clip_full.npz` image towers at their published sizes. A golden file
holds of each gradient every eighth (full size: 32nd or 48th) pixel, of each feature map the first
row's last pixel and every fourth (32nd) channel.
"""

from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from tests.golden_weights import (
    published_weights,
    random_tensor,
    standard_normal,
    with_golden_weights,
)
from vljax import pretrained
from vljax.errors import UserError
from vljax.models.clip import (
    CLIP,
    PUBLISHED,
    TextTransformer,
)
from vljax.models.clip_towers import image_tower, normalise_pixels, prepare_images
from vljax.models.layers import Linear, fresh_norm
from vljax.models.parameters import named_parameters
from vljax.training.weights import pretrained_parameters

pytestmark = pytest.mark.usefixtures("quick_to_compile")

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = {"context_length": 16, "vocabulary_size": 100, "text_width": 64, "text_layers": 2}
NARROW = {
    "rn50_narrow": {
        "embed_dim": 48,
        "image_size": 64,
        "vision_layers": (3, 4, 6, 3),
        "vision_width": 16,
        **TEXT,
    },
    "vit_narrow": {
        "embed_dim": 48,
        "image_size": 32,
        "vision_layers": 3,
        "vision_width": 64,
        "patch_size": 8,
        **TEXT,
    },
}
# For what does not depend on depth.
SHALLOW = {**NARROW["rn50_narrow"], "vision_layers": (1, 1, 1, 1)}


def skeleton(**sizes):
    return jax.eval_shape(lambda: CLIP(**sizes, rngs=nnx.Rngs(0)))


def clip_tensor(name, shape):
    """The temperature is of its own size."""
    return standard_normal(name, shape) if name == "logit_scale" else random_tensor(name, shape)


def golden_clip(**sizes):
    return with_golden_weights(skeleton(**sizes), tensor=clip_tensor)


def with_weights(model, tensors):
    return jax.tree.map(jnp.asarray, pretrained.assign(model, tensors, origin="the test"))


def pictures(batch, size):
    return np.random.default_rng(7).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def embedding_maps_and_gradient(model, encode, images, embed_dim):
    shape = (len(images), embed_dim)
    weights = np.random.default_rng(8).standard_normal(shape, dtype=np.float32)

    @jax.jit
    def run(model, images):
        def weighted(images):
            embedding, maps = encode(model, images)
            return (embedding * weights).sum(), (embedding, maps)

        (_, results), gradient = jax.value_and_grad(weighted, has_aux=True)(images)
        return *results, gradient

    return run(model, images)


def assert_matches(golden, name, embedding, maps, gradient, pixels, channels, full_size=False):
    expected = golden[f"{name}_image"]
    np.testing.assert_allclose(embedding, expected, rtol=1e-5, atol=1e-4)
    expected = golden[f"{name}_gradient"]
    error = np.abs(gradient[:, ::pixels, ::pixels] - expected) / np.abs(expected).max()
    if full_size:
        worst = np.abs(embedding - golden[f"{name}_image"]).max()
        print(f"\n{name}: embedding {worst:.1e}, gradient {np.median(error):.1e} {error.max():.1e}")
    # Of millions of rectified features some lie within rounding of zero, and each that another
    # order of summation puts on the other side changes the gradient of all pixels that it sees:
    # one rounding of the input moves RN50x16's own gradient by 2e-5 (median) and 6e-3 (greatest).
    median, greatest = (5e-5, 1e-2) if full_size else (1e-5, 1e-4)
    assert np.median(error) < median
    assert error.max() < greatest
    for i, feature_map in enumerate(maps):
        if (key := f"{name}_map{i}") in golden:
            seen = feature_map[:, 0, -1, ::channels]
            np.testing.assert_allclose(seen, golden[key], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NARROW)
def test_both_towers_match_openais(name):
    golden = np.load(GOLDEN / "clip.npz")
    model = golden_clip(**NARROW[name], remat=name == "vit_narrow")
    images = pictures(2, NARROW[name]["image_size"])
    results = embedding_maps_and_gradient(
        model,
        lambda model, x: model.encode_image(x, features=True),
        images,
        NARROW[name]["embed_dim"],
    )
    assert_matches(golden, name, *results, pixels=8, channels=4)

    tokens = np.random.default_rng(9).integers(0, 98, (3, 16))
    tokens[:, 0] = 98
    for row, end in zip(tokens, (5, 15, 1), strict=True):
        row[end:] = 99
    text = jax.jit(CLIP.encode_text)(model, tokens)
    np.testing.assert_allclose(text, golden[f"{name}_text"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("name", "pixels"), [("RN50", 32), ("RN50x16", 48)])
def test_full_size_resnets_match_openais(name, pixels):
    sizes = {k: v for k, v in PUBLISHED[name].items() if not k.startswith("text")}
    tower = jax.eval_shape(lambda: image_tower(**sizes, rngs=nnx.Rngs(0)))
    # The golden run named the tensors of the whole model.
    tower = with_golden_weights(tower, tensor=lambda n, shape: random_tensor(f"visual.{n}", shape))
    results = embedding_maps_and_gradient(
        tower,
        lambda tower, x: tower(normalise_pixels(x)),
        pictures(1, sizes["image_size"]),
        sizes["embed_dim"],
    )
    golden = np.load(GOLDEN / "clip_full.npz")
    assert_matches(golden, name.lower(), *results, pixels=pixels, channels=32, full_size=True)


def transformers_clip(image_size, patch_size, vision, text, embed_dim, activation):
    """A `transformers` CLIP, our sizes of the same, and its weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def tower(width, layers, **others):
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "hidden_act": activation,
            **others,
        }

    config = transformers.CLIPConfig(
        text_config=tower(*text, eos_token_id=49_407, bos_token_id=49_406, pad_token_id=49_407),
        vision_config=tower(*vision, image_size=image_size, patch_size=patch_size),
        projection_dim=embed_dim,
        attn_implementation="eager",
    )
    theirs = transformers.CLIPModel(config).eval()
    tensors = {n: random_tensor(n, tuple(t.shape)) for n, t in theirs.state_dict().items()}
    theirs.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()})
    sizes = {
        "embed_dim": embed_dim,
        "image_size": image_size,
        "patch_size": patch_size,
        "vision_width": vision[0],
        "vision_layers": vision[1],
        "text_width": text[0],
        "text_layers": text[1],
        "activation": activation,
    }
    return theirs, sizes, tensors


def assert_same_as_transformers(theirs, sizes, tensors, batch):
    ours = with_weights(skeleton(**sizes), CLIP.published_names(tensors))
    torch = pytest.importorskip("torch")
    size = ours.visual.image_size
    images = pictures(batch, size)
    tokens = np.random.default_rng(9).integers(0, 49_406, (batch, 77))
    tokens[:, 0], tokens[:, 20:] = 49_406, 49_407
    pixels = np.asarray(normalise_pixels(jnp.asarray(images))).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(pixels.copy()).requires_grad_()
    with torch.no_grad():
        hidden = theirs.text_model(torch.from_numpy(tokens)).last_hidden_state
        text = theirs.text_projection(theirs.text_model(torch.from_numpy(tokens)).pooler_output)
    image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
    weights = np.random.default_rng(8).standard_normal(image.shape, dtype=np.float32)
    (image * torch.from_numpy(weights)).sum().backward()
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = pixels.grad.numpy().transpose(0, 2, 3, 1) / (2 * std)

    embedding, _, gradient = embedding_maps_and_gradient(
        ours, lambda ours, x: ours.encode_image(x, features=True), images, image.shape[1]
    )
    np.testing.assert_allclose(embedding, image.detach(), atol=1e-4)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
    seen = jax.jit(CLIP.encode_text)(ours, tokens)
    np.testing.assert_allclose(seen, text, atol=1e-4)
    seen = jax.jit(CLIP.hidden_states)(ours, tokens)
    np.testing.assert_allclose(seen, hidden, atol=1e-4)


@pytest.mark.parametrize("activation", [pytest.param("quick_gelu", marks=pytest.mark.slow), "gelu"])
def test_both_towers_match_transformers(activation):
    assert_same_as_transformers(
        *transformers_clip(32, 8, (128, 2), (64, 2), 32, activation), batch=2
    )


@pytest.mark.slow
def test_full_size_vit_matches_transformers():
    """ViT-L/14, both towers: 428 million parameters."""
    theirs, sizes, tensors = transformers_clip(224, 14, (1024, 24), (768, 12), 768, "quick_gelu")
    assert sizes == {**PUBLISHED["ViT-L/14"], "activation": "quick_gelu"}
    assert_same_as_transformers(theirs, sizes, tensors, batch=1)


def test_transformers_folder_loads_and_the_text_tower_alone(tmp_path):
    theirs, sizes, tensors = transformers_clip(32, 8, (64, 1), (64, 2), 32, "quick_gelu")
    ours = with_weights(skeleton(**sizes), CLIP.published_names(tensors))
    theirs.save_pretrained(tmp_path)
    loaded = pretrained.load(skeleton(**sizes), tmp_path)
    chex.assert_trees_all_equal(named_parameters(loaded), named_parameters(ours))
    # And as a part of a system's model, by --config.pretrained.clip.
    system = SimpleNamespace(clip=skeleton(**sizes))
    given = pretrained_parameters(system, ConfigDict({"pretrained": {"clip": str(tmp_path)}}))
    expected = {f"clip.{name}": value for name, value in named_parameters(ours).items()}
    chex.assert_trees_all_equal(given, expected)

    # Stable Diffusion's text encoder, with a position buffer as old folders have it.
    text = {n: t for n, t in tensors.items() if n.startswith("text_model.")}
    text["text_model.embeddings.position_ids"] = np.arange(77)[None]
    tower = jax.eval_shape(lambda: TextTransformer(text_width=64, text_layers=2, rngs=nnx.Rngs(0)))
    tower = with_weights(tower, TextTransformer.published_names(text))
    tokens = np.array([[49_406, 320, 49_407]])
    np.testing.assert_array_equal(tower.hidden_states(tokens), ours.hidden_states(tokens))


def test_openais_file_loads_without_its_counters(tmp_path):
    model = golden_clip(**SHALLOW)
    tensors = published_weights(model, tensor=clip_tensor)
    extra = {n: np.array(64) for n in ("input_resolution", "context_length", "vocab_size")}
    extra["visual.layer1.0.bn1.num_batches_tracked"] = np.array(7)
    save_file(tensors | extra, tmp_path / "RN50.safetensors")
    loaded = pretrained.load(skeleton(**SHALLOW), tmp_path / "RN50.safetensors")
    chex.assert_trees_all_equal(named_parameters(loaded), named_parameters(model))


def test_incomplete_attention_is_reported_by_name():
    model = skeleton(**NARROW["vit_narrow"])
    tensors = published_weights(model, tensor=clip_tensor)
    joint = tensors.pop("transformer.resblocks.1.attn.in_proj_weight")
    for part, letter in zip(np.split(joint, 3)[:2], "qk", strict=True):
        tensors[f"text_model.encoder.layers.1.self_attn.{letter}_proj.weight"] = part
    with pytest.raises(UserError, match=r"missing: transformer.resblocks.1.attn.in_proj_weight.*"):
        pretrained.assign(model, CLIP.published_names(tensors), origin="a folder")


# Parameters in millions without running statistics, as the published checkpoints have them.
MILLIONS = {
    "RN50": 102.01,
    "RN101": 119.69,
    "RN50x4": 178.30,
    "RN50x16": 290.98,
    "RN50x64": 623.26,
    "ViT-B/32": 151.28,
    "ViT-B/16": 149.62,
    "ViT-L/14": 427.62,
    "ViT-L/14@336px": 427.94,
}


# Tracing the deep ones takes seconds each.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("RN50", "ViT-B/32") else pytest.mark.slow)
        for name in MILLIONS
    ],
)
def test_published_sizes(name):
    assert MILLIONS.keys() == PUBLISHED.keys()
    parameters = named_parameters(skeleton(**PUBLISHED[name]))
    count = sum(v.size for n, v in parameters.items() if "running_" not in n)
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.01)


def test_other_sizes_are_resampled_as_clip_does_with_a_gradient():
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (1, 50, 60, 3), np.uint8)
    seen = prepare_images(jnp.asarray(images / 127.5 - 1), 32)
    # Pillow's resampling of floating-point pictures is per channel and does not round.
    channels = [
        Image.fromarray(images[0, ..., c].astype(np.float32)).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    expected = normalise_pixels(jnp.asarray(np.stack(channels, -1) / 127.5 - 1))
    np.testing.assert_allclose(seen[0], expected, atol=1e-4)
    gradient = jax.grad(lambda x: prepare_images(x, 32)[0, 16, 16, 0])(jnp.zeros((1, 50, 60, 3)))
    # The filter's weights sum to one, so the gradient's sum is that of the normalisation.
    assert gradient.sum() == pytest.approx(0.5 / 0.26862954, rel=1e-4)
    # A picture of the right size only changes its scale: black is −mean/std.
    black = prepare_images(-jnp.ones((1, 32, 32, 3)), 32)[0, 0, 0]
    np.testing.assert_allclose(black, [-1.7923, -1.7521, -1.4802], atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [pytest.param(SHALLOW, marks=pytest.mark.slow), NARROW["vit_narrow"]],
    ids=["resnet", "vit"],
)
def test_bfloat16_keeps_the_result(sizes):
    images, tokens = pictures(2, sizes["image_size"]), np.array([[98, 1, 2, 99]])
    exact, half = golden_clip(**sizes), golden_clip(**sizes, dtype="bfloat16")
    encode = jax.jit(lambda model: (model.encode_image(images), model.encode_text(tokens)))
    for expected, seen in zip(encode(exact), encode(half), strict=True):
        assert seen.dtype == jnp.float32
        assert np.abs(seen - expected).max() > 0
        np.testing.assert_allclose(seen, expected, atol=0.05 * float(jnp.abs(expected).max()))


def test_examples_do_not_influence_one_another_and_nothing_is_recompiled():
    model = golden_clip(**NARROW["vit_narrow"])
    encode = jax.jit(
        chex.assert_max_traces(lambda m, x, t: (m.encode_image(x), m.encode_text(t)), 1)
    )
    images, tokens = jnp.asarray(pictures(3, 32)), jnp.full((3, 8), 99)
    tokens = tokens.at[:, :2].set(jnp.array([[98, 5], [98, 6], [98, 7]]))
    first = encode(model, images, tokens)
    # What stands after the end token counts as little as the other examples.
    second = encode(model, images.at[2].set(0.5), tokens.at[2, 1].set(8).at[:, 4].set(50))
    chex.assert_trees_all_close([x[:2] for x in first], [x[:2] for x in second], atol=1e-6)
    assert all(np.abs(a[2] - b[2]).max() > 1e-2 for a, b in zip(first, second, strict=True))


def test_a_fresh_norm_keeps_the_size_of_features_and_its_statistics():
    """No statistics are ever updated: features must neither vanish nor explode with depth."""
    x = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    linear, norm = Linear(64, 64, bias=False, rngs=nnx.Rngs(0)), fresh_norm(64)
    for _ in range(4):
        x = norm(linear(jax.nn.relu(x)))
    assert 0.5 < float(x.std()) < 2

    gradient = named_parameters(jax.grad(lambda norm: (norm(x) ** 2).sum())(norm))
    assert gradient["weight"].all()
    assert not gradient["running_mean"].any()
    assert not gradient["running_var"].any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_layers": 3}, "vision_layers=3 with patch_size=None"),
        ({"patch_size": 8}, "patch_size=8"),
        ({"image_size": 63}, "image_size=63"),
        ({"vision_width": 15}, "vision_width=15"),
        ({"text_width": 65}, "head_channels=64: a tower.s width of 65"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"vision_layers": 3, "patch_size": 7}, "patch_size=7"),
    ],
)
def test_impossible_configurations_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        skeleton(**{**NARROW["rn50_narrow"], **change})


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="17 tokens are more than context_length=16"):
        golden_clip(**NARROW["vit_narrow"]).encode_text(np.zeros((1, 17), int))
