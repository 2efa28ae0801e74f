"""CLIPSeg against `transformers`' CLIPSegForImageSegmentation with the same random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from vljax import pretrained
from vljax.data.pictures.shape_prompts import named_object
from vljax.data.scenes import Scenes
from vljax.data.scenes.world import CLASSES
from vljax.data.text.tokenizers import train_tokenizer
from vljax.errors import UserError
from vljax.models.clipseg import (
    CLIPSeg,
    resample_positions,
)
from vljax.models.folders import clipseg_arguments
from vljax.models.parameters import named_parameters
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from vljax.systems.shape_guided.training import segmentation_loss
from vljax.systems.shape_guided.use import infer_shape

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SMALL = {
    "text_config": {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "eos_token_id": 99,
        "bos_token_id": 98,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    },
    "projection_dim": 24,
    "extract_layers": [0, 1],
    "reduce_dim": 16,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
    "use_complex_transposed_convolution": True,
}
# CIDAS/clipseg-rd64-refined.
FULL = {"vision_config": {"patch_size": 16}, "use_complex_transposed_convolution": True}


@pytest.fixture(scope="module", autouse=True)
def peers():
    """Imported when the first test runs, not when tests are collected."""
    global torch, transformers
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")


def peer_and_folder(folder, **config):
    """A `transformers` network with random weights, none at its start, saved in a folder."""
    torch.manual_seed(0)
    peer = transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.ndim == 1:
                is_scale = "norm" in name and name.endswith("weight")
                parameter.copy_(0.1 * torch.randn_like(parameter) + float(is_scale))
            elif parameter.ndim > 1:
                # Convolutions transposed have their input first.
                fan = parameter[0].numel()
                if "transposed_convolution" in name and not name.endswith(".0.weight"):
                    fan = parameter.shape[0]
                parameter.copy_(torch.randn_like(parameter) * fan**-0.5)
    peer.save_pretrained(folder)
    return peer


def loaded(folder, **changes):
    arguments = clipseg_arguments(folder) | changes
    model = jax.eval_shape(lambda: CLIPSeg(**arguments, rngs=nnx.Rngs(0)))
    return jax.tree.map(jnp.asarray, pretrained.load(model, folder))


@jax.jit
def run(model, images, tokens):
    return model(images, tokens)


def pictures(batch, size):
    return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def token_rows(batch, length, end):
    tokens = np.random.default_rng(1).integers(0, end - 1, (batch, length))
    tokens[:, 0] = end - 1
    for i, row in enumerate(tokens):
        row[3 + i :] = end
    return tokens


def logits_of(peer, images, tokens):
    pixels = ((images * 0.5 + 0.5 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(
        0, 3, 1, 2
    )
    with torch.no_grad():
        return peer(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(pixels.astype(np.float32)),
        ).logits.numpy()


def relative_error(seen, expected):
    assert seen.shape == expected.shape
    return float(np.abs(seen - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clipseg")
    return peer_and_folder(folder, **SMALL), folder, loaded(folder)


@pytest.mark.parametrize("size", [64, 80], ids=["own", "larger"])
def test_matches_transformers(small, size):
    """Also where the positional embedding is resampled."""
    peer, _, model = small
    images, tokens = pictures(2, size), token_rows(2, 16, 99)
    expected = logits_of(peer, images, tokens)
    assert np.std(expected) > 0.1
    seen = run(model, images, tokens)
    assert relative_error(seen, expected) <= 1e-4


def test_unrefined_decoder_matches_transformers(tmp_path):
    """CIDAS/clipseg-rd64 and rd16 are such; here the text also comes in later."""
    change = {"use_complex_transposed_convolution": False, "conditional_layer": 1}
    peer = peer_and_folder(tmp_path, **(SMALL | change))
    images, tokens = pictures(1, 64), token_rows(1, 16, 99)
    assert (
        relative_error(run(loaded(tmp_path), images, tokens), logits_of(peer, images, tokens))
        <= 1e-4
    )


@pytest.mark.slow
def test_full_size_matches_transformers(tmp_path):
    """clipseg-rd64-refined, 151 million parameters, at its 352 pixels."""
    peer = peer_and_folder(tmp_path, **FULL)
    model = loaded(tmp_path)
    images, tokens = pictures(1, 352), token_rows(1, 77, 49_407)
    seen = run(model, images, tokens)
    error = relative_error(seen, logits_of(peer, images, tokens))
    print(f"\nCLIPSeg rd64-refined: relative error {error:.1e}")
    assert error <= 1e-4


def test_the_published_config_gives_the_published_network(tmp_path):
    """Every tensor by name and shape, nothing computed."""
    with torch.device("meta"):
        peer = transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**FULL))
    peer.config.save_pretrained(tmp_path)
    arguments = clipseg_arguments(tmp_path)
    assert arguments["input_size"] == 352
    model = jax.eval_shape(lambda: CLIPSeg(**arguments, rngs=nnx.Rngs(0)))
    ours = named_parameters(model)
    theirs = pretrained.our_names(
        model, {n: np.broadcast_to(np.float32(0), t.shape) for n, t in peer.state_dict().items()}
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].size == theirs[name].size for name in ours)
    assert sum(p.size for p in ours.values()) == sum(p.numel() for p in peer.parameters())


@pytest.mark.parametrize(("old", "new"), [(4, 7), (14, 22), (5, 3)])
def test_positions_are_resampled_as_torch_does(old, new):
    table = np.random.default_rng(0).standard_normal((old**2 + 1, 3)).astype(np.float32)
    grid = torch.from_numpy(table[1:].reshape(1, old, old, 3)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic")
    expected = grid.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    seen = resample_positions(jnp.asarray(table), new)
    np.testing.assert_array_equal(seen[0], table[0])
    np.testing.assert_allclose(seen[1:], expected, atol=1e-5)


def test_bfloat16_keeps_the_result_and_examples_are_independent(small):
    _, folder, model = small
    images, tokens = pictures(2, 64), token_rows(2, 16, 99)
    exact = run(model, images, tokens)
    other = run(model, np.stack([images[0], -images[1]]), np.stack([tokens[0], tokens[0]]))
    np.testing.assert_allclose(other[0], exact[0], atol=1e-5)
    assert np.abs(other[1] - exact[1]).max() > 1e-2
    half = run(loaded(folder, dtype="bfloat16"), images, tokens)
    assert half.dtype == jnp.float32
    assert 1e-4 < relative_error(half, exact) < 0.1


def test_a_folder_of_another_network_is_refused_with_the_whole_list(small, tmp_path):
    _, folder, _ = small
    tensors = load_file(folder / "model.safetensors")
    missing = ["decoder.film_add.bias", "clip.text_model.final_layer_norm.weight"]
    for name in missing:
        del tensors[name]
    tensors["decoder.extra"] = np.zeros(3, np.float32)
    tensors["decoder.layers.1.mlp.fc1.weight"] = np.zeros((7, 16), np.float32)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        loaded(tmp_path)
    message = str(error.value)
    assert "2 missing: clip.ln_final.weight, decoder.film_add.bias" in message
    assert "1 surplus: decoder.extra" in message
    assert "1 misshapen: decoder.layers.1.mlp.fc1.weight" in message


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config", {"model_type": "clip"}, "model_type='clip'"),
        (
            "config",
            {"text_config": {"intermediate_size": 7}},
            "text_config has intermediate_size=7",
        ),
        ("config", {"vision_config": {"hidden_act": "gelu"}}, "builds 'gelu' here"),
        ("config", {"vision_config": {"num_attention_heads": 6}}, "head_channels=32"),
        ("preprocessor_config", {"image_mean": [0.5, 0.5, 0.5]}, "image_mean=.0.5, 0.5, 0.5"),
        ("preprocessor_config", {"size": {"longest_edge": 3}}, "size={'longest_edge': 3}"),
    ],
)
def test_other_architectures_are_refused(small, tmp_path, file, change, words):
    config = json.loads((small[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if file == "config":
        nested = {n: config[n] | v if isinstance(v, dict) else v for n, v in change.items()}
        config |= nested
    else:
        config = change
    (tmp_path / f"{file}.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        clipseg_arguments(tmp_path)


def test_the_preprocessors_size_is_read_and_a_broken_config_refused(small, tmp_path):
    (tmp_path / "config.json").write_text((small[1] / "config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 96, "width": 96}}')
    assert clipseg_arguments(tmp_path)["input_size"] == 96
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="not a readable config"):
        clipseg_arguments(tmp_path)
    with pytest.raises(UserError, match="not a readable config"):
        clipseg_arguments(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extract_layers": (2, 1)}, r"extract_layers=.2, 1.*rising order"),
        ({"extract_layers": ()}, "rising order"),
        ({"extract_layers": (1, 3)}, "blocks 0 to 2"),
        ({"conditional_layer": 2}, "conditional_layer=2.*0 to 1"),
        ({"decoder_heads": 3}, "reduce_dim=16 does not divide by decoder_heads=3"),
        ({"patch_size": 2, "input_size": 64}, "patch_size=2 with refined=True"),
        ({"input_size": 100}, "input_size=100"),
    ],
)
def test_impossible_configurations_are_refused(small, change, words):
    arguments = clipseg_arguments(small[1]) | change
    with pytest.raises(UserError, match=words):
        CLIPSeg(**arguments, rngs=nnx.Rngs(0))


def test_pictures_of_no_possible_size_are_refused(small):
    for size in ((64, 80), (72, 72)):
        images = np.zeros((1, *size, 3), np.float32)
        with pytest.raises(ValueError, match=f"{size[0]}×{size[1]}: give squares of a multiple"):
            small[2](images, token_rows(1, 16, 99))


def test_the_loss_is_the_published_one(small):
    peer, _, model = small
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    tokens, mask = token_rows(2, 16, 99), np.random.default_rng(2).random((2, 64, 64)) < 0.3
    batch = {"image": images, "tokens": tokens, "mask": mask}
    loss, metrics = jax.jit(segmentation_loss)(model, batch)
    logits = torch.from_numpy(logits_of(peer, images / 127.5 - 1, tokens))
    target = torch.from_numpy(mask).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    found = logits.numpy() > 0
    ious = [np.sum(a & b) / np.sum(a | b) for a, b in zip(found, mask, strict=True)]
    assert float(metrics["iou"]) == pytest.approx(np.mean(ious), rel=1e-4)


def test_infer_shape_is_the_published_pipeline_at_the_pictures_size(small):
    peer, folder, _ = small
    model = loaded(folder, input_size=64)
    picture = np.random.default_rng(3).integers(0, 256, (80, 100, 3), np.uint8)
    tokens = token_rows(1, 16, 99)
    asked = []

    def tokenizer(texts, length):
        asked.append((list(texts), length))
        return tokens

    found = infer_shape(model, tokenizer, picture, "a dog")
    assert asked == [(["a dog"], 16)]
    assert (found.shape, found.dtype) == ((80, 100), bool)
    assert 0 < found.sum() < found.size
    # Stretch, segment, stretch back.
    processor = transformers.ViTImageProcessor(
        size={"height": 64, "width": 64}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
    )
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = peer(input_ids=torch.from_numpy(tokens), pixel_values=pixels).logits[None]
    full = torch.nn.functional.interpolate(logits, size=(80, 100), mode="bilinear")[0, 0]
    assert np.mean((full.numpy() > 0) == found) > 0.99


@pytest.mark.slow
def test_learns_the_objects_of_scenes_that_a_text_names():
    """Trained from nothing in half a minute; asked for the other object, it finds that one."""
    colours = ("red", "blue", "green", "yellow")
    scenes = Scenes(
        size=1088,
        image_size=32,
        min_objects=2,
        max_objects=2,
        fields=("image", "class_ids", "masks"),
        shapes=("circle", "square"),
        colours=colours,
        sizes=("large",),
    )
    tokenizer = train_tokenizer(
        [f"a photo of the {c} {s}" for c in colours for s in scenes.shapes] * 9, 560
    )
    transform, generator = named_object(tokenizer, 12, absent=0.0), np.random.default_rng(0)
    examples = [transform(scenes[i], generator) for i in range(1024)]
    data = {name: jnp.asarray(np.stack([e[name] for e in examples])) for name in examples[0]}

    @jax.jit
    def train(data, asked):
        model = CLIPSeg(
            embed_dim=32,
            image_size=32,
            patch_size=8,
            vision_layers=2,
            vision_width=64,
            text_width=32,
            text_layers=1,
            extract_layers=(0, 1),
            reduce_dim=32,
            decoder_hidden=64,
            refined=False,
            input_size=32,
            context_length=12,
            vocabulary_size=tokenizer.vocabulary_size,
            head_channels=16,
            rngs=nnx.Rngs(0),
        )
        optimizer = optax.adam(2e-3)

        def step(carry, chosen):
            model, state = carry
            batch = jax.tree.map(lambda x: x[chosen], data)
            gradient, metrics = jax.grad(segmentation_loss, has_aux=True)(model, batch)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(model, updates), state), metrics["iou"]

        order = jax.random.randint(jax.random.key(0), (1000, 32), 0, 1024)
        (model, _), _ = jax.lax.scan(step, (model, optimizer.init(model)), order)
        return [segmentation_loss(model, batch)[1]["iou"] for batch in asked]

    held_out = [scenes[i] for i in range(1024, len(scenes))]
    first = {
        "image": np.stack([e["image"] for e in held_out]),
        "mask": np.stack([e["masks"][0] for e in held_out]),
    }
    asked = [
        first | {"tokens": tokenizer([f"the {CLASSES[e['class_ids'][i]]}" for e in held_out], 12)}
        for i in (0, 1)
    ]
    iou, other = map(float, train(data, asked))
    print(f"\nCLIPSeg on scenes: IoU {iou:.2f}, asked for the other object {other:.2f}")
    assert iou > 0.5
    assert other < 0.2
