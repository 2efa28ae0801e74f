"""Folders both ways, against `diffusers` and `transformers` themselves."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import vljax
from vljax.data.text.tokenizers import open_tokenizer, train_tokenizer
from vljax.errors import UserError
from vljax.models.arguments import arguments_of
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.clip import CLIP, TextTransformer
from vljax.models.clipseg import CLIPSeg
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders.families import FAMILIES
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.prior import PriorTransformer
from vljax.models.resnet import ResNet, normalise_pixels
from vljax.models.stable_diffusion import StableDiffusion
from vljax.models.vqgan import VQGAN
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, standardise
from vljax.pretrained import hub, networks
from vljax.pretrained.concepts import Concept, read_concepts, with_concepts, write_concept

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TOWER = {"text_width": 32, "text_layers": 1, "context_length": 12, "head_channels": 16}
PICTURES = {
    "embed_dim": 16,
    "image_size": 16,
    "patch_size": 8,
    "vision_layers": 1,
    "vision_width": 32,
}
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_groups": 4}
# What each network is made with, nothing as its default where that costs nothing.
MADE = {
    ConditionalUNet: {
        **LEVELS,
        "in_channels": 5,
        "attention_levels": (True, False),
        "context_features": 32,
        "num_heads": (2, 4),
        "linear_projection": True,
        "norm_epsilon": 1e-4,
    },
    AutoencoderKL: {**LEVELS, "latent_channels": 3, "scaling_factor": 0.75},
    VQGAN: {
        **LEVELS,
        "latent_channels": 6,
        "code_channels": 5,
        "num_codes": 7,
        "attention_levels": (False, True),
    },
    PriorTransformer: {
        "embedding": 12,
        "text_length": 5,
        "layers": 2,
        "heads": 3,
        "head_channels": 8,
    },
    TextTransformer: {**TOWER, "vocabulary_size": 600, "activation": "gelu"},
    CLIP: {**TOWER, **PICTURES, "vocabulary_size": 600},
    CLIPSeg: {
        **TOWER,
        **PICTURES,
        "vocabulary_size": 600,
        "image_size": 32,
        "patch_size": 16,
        "vision_layers": 2,
        "extract_layers": (0, 1),
        "reduce_dim": 8,
        "decoder_heads": 2,
        "decoder_hidden": 12,
        "input_size": 48,
    },
    ResNet: {"layers": (1, 1, 1, 1), "width": 4, "stride_in": "1x1", "classes": 3},
}
THEIRS = {
    ConditionalUNet: "UNet2DConditionModel",
    AutoencoderKL: "AutoencoderKL",
    VQGAN: "VQModel",
    PriorTransformer: "PriorTransformer",
    TextTransformer: "CLIPTextModel",
    CLIP: "CLIPModel",
    CLIPSeg: "CLIPSegForImageSegmentation",
    ResNet: "ResNetForImageClassification",
}


@pytest.fixture(scope="module", autouse=True)
def peers():
    """Imported when the first test runs, not when tests are collected."""
    global torch, diffusers, transformers
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")


def made(network, arguments=None):
    """A network of random weights, none at its start; variances are positive."""
    arguments = MADE[network] if arguments is None else arguments
    skeleton = jax.eval_shape(lambda: network(**arguments, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    weights = {}
    for name, value in named_parameters(skeleton).items():
        fan = max(1, value.size // value.shape[-1]) if value.ndim > 1 else 25
        weights[name] = rng.standard_normal(value.shape, np.float32) * fan**-0.5
        if name.endswith("running_var"):
            weights[name] = np.abs(weights[name]) + 0.5
    return with_parameters(skeleton, jax.tree.map(jnp.asarray, weights))


def peer_in(folder, network):
    name = THEIRS[network]
    kind = getattr(diffusers, name, None) or getattr(transformers, name)
    peer, said = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    return peer.eval()


def tensor(array, channels_first=True):
    array = np.asarray(array)
    return torch.from_numpy((array.transpose(0, 3, 1, 2) if channels_first else array).copy())


def pictures(side, channels=3, batch=2):
    shape = (batch, side, side, channels)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


TOKENS = np.array([[597, 3, 9, 40, 5, 598, 0, 0, 0, 0, 0, 0], [597, 7, 598] + [0] * 9])


def last(array):
    return array.permute(0, 2, 3, 1)


def unet_outputs(ours, theirs):
    x, times, context = pictures(8, 5), np.array([3, 700]), pictures(4, 32).reshape(2, 16, 32)
    seen = jax.jit(lambda m, *a: m(*a))(ours, x, times, context)
    yield seen, last(theirs(tensor(x), torch.from_numpy(times), torch.from_numpy(context)).sample)


def autoencoder_outputs(ours, theirs):
    x = pictures(8)
    mean = theirs.encode(tensor(x)).latent_dist.mean
    seen = jax.jit(lambda m, x: m.decode(m.encode(x).mean))(ours, x)
    yield seen, last(theirs.decode(mean).sample)


def vqgan_outputs(ours, theirs):
    x = pictures(8)
    seen = jax.jit(lambda m, x: (m.encode(x), m.decode(m.vectors(m.codes(x)))))(ours, x)
    encoded = theirs.encode(tensor(x)).latents
    yield from zip(seen, (last(encoded), last(theirs.decode(encoded).sample)), strict=True)


def prior_outputs(ours, theirs):
    rng = np.random.default_rng(1)
    noisy, text, hidden = (
        rng.standard_normal(s, np.float32) for s in ((2, 12), (2, 12), (2, 5, 12))
    )
    times, real = np.array([3, 700]), np.arange(5) < np.array([[5], [2]])
    seen = jax.jit(lambda m, *a: m.unwhiten(m(*a)))(ours, noisy, times, text, hidden, real)
    given = (torch.from_numpy(a) for a in (noisy, times, text, hidden, real))
    yield seen, theirs.post_process_latents(theirs(*given).predicted_image_embedding)


def text_outputs(ours, theirs):
    seen = jax.jit(lambda m, t: m.hidden_states(t))(ours, TOKENS)
    yield seen, theirs(torch.from_numpy(TOKENS)).last_hidden_state


def clip_outputs(ours, theirs):
    from vljax.models.clip_towers import normalise_pixels as prepared

    x = pictures(16)
    seen = jax.jit(lambda m, x, t: (m.encode_image(x), m.encode_text(t)))(ours, x, TOKENS)
    pixels = tensor(prepared(jnp.asarray(x)))
    expected = theirs(input_ids=torch.from_numpy(TOKENS), pixel_values=pixels)
    for embedding, unit in zip(seen, (expected.image_embeds, expected.text_embeds), strict=True):
        yield embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True), unit


def clipseg_outputs(ours, theirs):
    x = pictures(48)
    seen = jax.jit(lambda m, x, t: m(x, t))(ours, x, TOKENS)
    pixels = tensor(standardise(jnp.asarray(x), IMAGENET_MEAN, IMAGENET_STD))
    yield seen, theirs(input_ids=torch.from_numpy(TOKENS), pixel_values=pixels).logits


def resnet_outputs(ours, theirs):
    x = normalise_pixels(jnp.asarray(pictures(32)))
    yield jax.jit(lambda m, x: m.classify(m(x)))(ours, x), theirs(tensor(x)).logits


OUTPUTS = {
    ConditionalUNet: unet_outputs,
    AutoencoderKL: autoencoder_outputs,
    VQGAN: vqgan_outputs,
    PriorTransformer: prior_outputs,
    TextTransformer: text_outputs,
    CLIP: clip_outputs,
    CLIPSeg: clipseg_outputs,
    ResNet: resnet_outputs,
}


def test_every_family_is_tested():
    assert {family.network for family in FAMILIES} == set(MADE) == set(OUTPUTS)


# Those whose names are theirs already, and whose outputs the networks' own tests compare.
SLOW = (ConditionalUNet, AutoencoderKL, VQGAN)


@pytest.mark.parametrize(
    "network",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MADE],
    ids=lambda n: n.__name__,
)
def test_ours_opens_in_their_library_with_the_same_outputs(network, tmp_path):
    ours = made(network)
    vljax.save(ours, tmp_path)
    theirs = peer_in(tmp_path, network)
    with torch.no_grad():
        for seen, expected in OUTPUTS[network](ours, theirs):
            expected = expected.numpy()
            assert np.abs(seen - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("network", MADE, ids=lambda n: n.__name__)
def test_theirs_comes_back_bit_for_bit(network, tmp_path):
    ours = made(network)
    vljax.save(ours, tmp_path / "ours")
    theirs = peer_in(tmp_path / "ours", network)
    theirs.save_pretrained(tmp_path / "theirs")
    told = tmp_path / "ours" / "preprocessor_config.json"  # which belongs to no model of theirs
    if told.exists():
        shutil.copy(told, tmp_path / "theirs")
    back = vljax.load(tmp_path / "theirs")
    kept = dict.fromkeys(("beta", "legacy"))  # of training alone
    assert arguments_of(back) | kept == arguments_of(ours) | kept
    weights = named_parameters(ours)
    for name, value in named_parameters(back).items():
        np.testing.assert_array_equal(value, weights[name], name)
    vljax.save(back, tmp_path / "again")
    again = peer_in(tmp_path / "again", network).state_dict()
    assert theirs.state_dict().keys() == again.keys()
    for name, value in theirs.state_dict().items():
        np.testing.assert_array_equal(again[name].numpy(), value.numpy(), name)


SPOKEN = ["a photo of a red star", "Blue  circle, 2 squares!"]


@pytest.fixture(scope="module")
def drawn():
    """A small pipeline whose text encoder is a whole CLIP, and its tokenizer."""
    tokenizer = train_tokenizer(SPOKEN, 530)
    text = {**TOWER, **PICTURES, "vocabulary_size": tokenizer.vocabulary_size}
    unet = {**MADE[ConditionalUNet], "in_channels": 4, "out_channels": 4}
    parts = {"vae": LEVELS, "unet": unet, "text_encoder": text}
    return made(StableDiffusion, parts), tokenizer


NOISE = {"schedule": "scaled_linear", "num_steps": 1000, "prediction": "v"}


def test_a_pipeline_both_ways(drawn, tmp_path):
    """Diffusers opens and draws with it; tokens are ours; vljax reads what diffusers writes."""
    sd, tokenizer = drawn
    vljax.save(sd, tmp_path / "ours", tokenizer=tokenizer, diffusion=NOISE, image_size=16)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(SPOKEN[0], num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 16, 16, 3)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    told = pipeline.tokenizer(SPOKEN, padding="max_length", truncation=True).input_ids
    np.testing.assert_array_equal(told, tokenizer(SPOKEN, 12, warn=False))
    clip = vljax.load(tmp_path / "ours" / "clip")
    assert isinstance(clip, CLIP)

    pipeline.save_pretrained(tmp_path / "theirs")
    back = vljax.load(tmp_path / "theirs", dtype="bfloat16")
    assert (back.unet.dtype, back.vae.dtype) == ("bfloat16", "bfloat16")
    ours = named_parameters(sd)
    for name, value in named_parameters(back).items():
        np.testing.assert_array_equal(value, ours[name], name)
    again = open_tokenizer(tmp_path / "theirs")
    np.testing.assert_array_equal(again(SPOKEN, 12, warn=False), tokenizer(SPOKEN, 12, warn=False))
    vljax.save(back, tmp_path / "copied", like=tmp_path / "theirs")
    assert networks.load(tmp_path / "copied").tokens == 12
    assert open_tokenizer(tmp_path / "copied").vocabulary_size == tokenizer.vocabulary_size
    with pytest.raises(UserError, match=r"tokenizer=.* like=FOLDER"):
        vljax.save(back, tmp_path / "bare")


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_concept_is_told_as_diffusers_tells_it(drawn, tmp_path, vectors, suffix):
    sd, tokenizer = drawn
    vljax.save(sd, tmp_path / "ours", tokenizer=tokenizer, diffusion=NOISE, image_size=16)
    width = sd.text_encoder.token_embedding.weight.shape[1]
    learnt = np.random.default_rng(0).normal(size=(vectors, width)).astype(np.float32)
    file = tmp_path / f"learned_embeds{suffix}"
    if suffix == ".bin":
        torch.save({"<cat-toy>": torch.from_numpy(learnt.squeeze())}, file)
    else:
        write_concept(file, Concept("<cat-toy>", learnt))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ours")
    pipeline.load_textual_inversion(file.parent, weight_name=file.name)
    prompt = "a photo of <cat-toy> star"
    expected = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]
    knowing, words = with_concepts(sd, tokenizer, read_concepts(file))
    ours = knowing.embed(jnp.asarray(words([prompt], sd.tokens)))
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    assert words.decode(words(["<cat-toy>"], 12))[0].startswith("<cat-toy>")
    # What was given stays as it was, and its texts as well.
    assert sd.text_encoder.token_embedding.weight.shape[0] == tokenizer.vocabulary_size
    np.testing.assert_array_equal(words(SPOKEN, 12), tokenizer(SPOKEN, 12))


def test_concepts_that_cannot_be(drawn, tmp_path):
    sd, tokenizer = drawn
    width = sd.text_encoder.token_embedding.weight.shape[1]
    file = tmp_path / "concept.safetensors"
    for concept, problem in (
        (
            Concept("<toy>", np.ones((1, width + 1), np.float32)),
            "this text tower reads",
        ),
        (Concept("a", np.ones((1, width), np.float32)), "is a word of the vocabulary"),
        (Concept("<toy>", np.ones((2, 1, width), np.float32)), "whose vectors are"),
    ):
        write_concept(file, concept)
        with pytest.raises(UserError, match=problem):
            with_concepts(sd, tokenizer, read_concepts(file))
    write_concept(file, Concept("<toy>", np.ones((1, width), np.float32)))
    with pytest.raises(UserError, match="was learnt already"):
        with_concepts(sd, tokenizer, read_concepts(file, file))


def test_shards_and_what_was_there_before(tmp_path):
    """Several files and their index, no larger than asked; older files do not stay beside them."""
    tower = made(TextTransformer)
    vljax.save(tower, tmp_path)
    vljax.save(tower, tmp_path, shard_bytes=20_000, dtype="float16")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == files
    tensors = {name: load_file(tmp_path / name) for name in files}
    assert all(
        len(own) == 1 or sum(t.nbytes for t in own.values()) <= 20_000 for own in tensors.values()
    )
    assert {t.dtype for own in tensors.values() for t in own.values()} == {np.dtype("float16")}
    peer_in(tmp_path, TextTransformer)
    back = named_parameters(vljax.load(tmp_path))
    for name, value in named_parameters(tower).items():
        np.testing.assert_array_equal(back[name], value.astype(np.float16), name)
    vljax.save(tower, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_has_no_layout_is_refused(tmp_path):
    prompts = made(CLIP, {**MADE[CLIP], "mask_prompts": 1})
    fine = made(CLIPSeg, {**MADE[CLIPSeg], "patch_size": 8})
    caffe = made(ResNet, {**MADE[ResNet], "pool": "ceil"})
    for model in (prompts, fine, caffe, prompts.visual):
        with pytest.raises(UserError, match=r"no published layout holds .*pretrained\.save"):
            vljax.save(model, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="describes a 'bert', but vljax builds UNet2D"):
        vljax.load(tmp_path)
    vljax.save(made(TextTransformer), tmp_path)
    with pytest.raises(UserError, match="cannot be built with depth=3"):
        vljax.load(tmp_path, depth=3)
    for wrong in (
        {"model_type": "clip", "text_config": 5, "vision_config": 5},
        {"_class_name": "AutoencoderKL", "block_out_channels": []},
        {"_class_name": "PriorTransformer", "num_layers": "2"},
        {"model_type": "clip_text_model", "num_attention_heads": 0},
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"cannot be built \(.*its config.json"):
            vljax.load(tmp_path)


def test_arguments_are_structure_and_compile_nothing(compilations):
    """Networks made alike are one to `jit`, however their arguments were written."""
    run = jax.jit(lambda m, t: m.hidden_states(t))
    first, second = made(TextTransformer), made(TextTransformer)
    run(first, TOKENS)
    compilations()
    run(second, TOKENS)
    assert compilations() == 0
    told = {**LEVELS, "block_out_channels": [8, 16]}
    shapes = [
        jax.eval_shape(lambda a=a: AutoencoderKL(**a, rngs=nnx.Rngs(0))) for a in (LEVELS, told)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert arguments_of(shapes[0])["in_channels"] == 3  # a default


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A hub of one repository, a local folder named for its commit; what is asked of it."""
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo_id, revision, allow_patterns))
        if repo_id != "people/networks":
            raise OSError(f"404 of {repo_id}\nand more")
        return str(tmp_path / "c0ff1e")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return tmp_path / "c0ff1e", asked


def test_loading_from_the_hub(repository):
    folder, asked = repository
    vljax.save(made(TextTransformer), folder / "text_encoder")
    tower = vljax.load("people/networks/text_encoder", revision="v2")
    assert arguments_of(tower) == arguments_of(made(TextTransformer))
    (name, revision, small), (_, commit, weights) = asked
    assert (name, revision) == ("people/networks", "v2")
    assert commit == folder.name, "the weights may be of another commit than the config"
    assert "text_encoder/*.json" in small
    assert "text_encoder/model*.safetensors" in weights
    with pytest.raises(UserError, match=r"^no/one is no folder .*\(404 of no/one\): check"):
        vljax.load("no/one")
    with pytest.raises(UserError, match="neither a folder nor the name of a repository"):
        vljax.load("../elsewhere")
    count = len(asked)
    vljax.load(folder / "text_encoder")
    assert len(asked) == count, "a folder was asked of the hub"


def test_publishing(tmp_path, monkeypatch):
    sent = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            sent.append((name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            sent.append((repo_id, folder_path))
            if repo_id == "not/mine":
                raise PermissionError("403")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert hub.push(tmp_path, "people/networks") == "https://hub/people/networks"
    assert sent == [("people/networks", True, True), ("people/networks", str(tmp_path))]
    with pytest.raises(UserError, match=r"published as not/mine \(403\).*hf auth login"):
        hub.push(tmp_path, "not/mine")
    with pytest.raises(UserError, match="give ORG/NAME"):
        hub.push(tmp_path, "nameless")
    with pytest.raises(UserError, match="is no folder"):
        hub.push(tmp_path / "absent", "people/networks")
