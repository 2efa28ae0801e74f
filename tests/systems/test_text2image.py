"""text2image: each family's stages and pictures; Stable Diffusion's folders as in diffusers."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax import pretrained
from vljax.data.pictures.images import write_png
from vljax.data.pictures.sources import ImageFolder
from vljax.diffusion.noise import start_noise
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, with_parameters
from vljax.ops.pixels import to_unit
from vljax.pretrained.concepts import Concept, read_concepts, write_concept
from vljax.request import check
from vljax.systems.text2image import FAMILIES, SYSTEM, get_config, get_published_config, use
from vljax.systems.text2image.evaluation import TABLE, Judging
from vljax.systems.text2image.families import FAMILIES as DRAW
from vljax.systems.text2image.families import Wish, adversarial, latent
from vljax.systems.text2image.families.tokens import plain_of
from vljax.systems.text2image.model import make_model, make_tokenizer
from vljax.systems.text2image.use import Request
from vljax.systems.text2image.use import generate as draw_request

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
CLIP = {"vision_layers": 1, "vision_width": 16, "text_width": 16, "text_layers": 1}
CLIP |= {"embed_dim": 8, "head_channels": 8}
LEVEL = {"block_out_channels": (8,), "norm_groups": 8, "layers_per_block": 1}
MASKED = {"features": 6, "layers": 2, "kernel": 3, "first_kernel": 3, "value_features": 2}
MASKED |= {"head_features": 6}
PICTURES = {"widths": (8, 8), "norm_groups": 8}
TINY = {
    "latent": {
        "text_encoder": CLIP,
        "vae": {"block_out_channels": (8, 8), "norm_groups": 8},
        "unet": {**LEVEL, "attention_levels": (True,), "num_heads": (2,), "context_features": 16},
    },
    "pixels": {
        "unet": {
            **{"model_channels": 8, "channel_mult": (1.0, 1.0), "norm_groups": 8},
            **{"num_head_channels": 8, "attention_resolutions": ()},
        },
        "text_encoder": {"text_width": 8, "text_layers": 1, "text_heads": 2},
    },
    "tokens": {
        "vqgan": {"num_codes": 8, "block_out_channels": (8, 8, 8), "attention_levels": (False,) * 3}
        | {"code_channels": 4, "latent_channels": 4},
        "transformer": {"features": 16, "layers": 1, "heads": 2, "head_channels": 8},
    },
    "vqvae": {
        "vqgan": {"num_codes": 8, "block_out_channels": (8, 8, 8), "attention_levels": (False,) * 3}
        | {"code_channels": 4, "latent_channels": 4},
        "pixelcnn": MASKED,
    },
    "pixelcnn": {"pixelcnn": {"levels": 4, **MASKED}},
    "variational": {"vae": {"latents": 4, **PICTURES}},
    "unclip": {
        # Texts are as wide as embeddings are long.
        "clip": {"embed_dim": 16},
        "unclip": {"layers": 1, "heads": 2, "head_channels": 8},
        "vae": {"latents": 4, **PICTURES},
    },
    "adversarial": {
        "generator": {"latents": 4, "condition": 8, **PICTURES},
        "discriminator": PICTURES,
    },
}


def tiny_config(family):
    """The recipe on scenes with networks that compile quickly."""
    config = get_config(family)
    if config.model.clip:
        config.model.clip.update(CLIP)
    for part, fields in TINY[family].items():
        config.model[part].update(fields)
    config.samples.update({"steps": "leading2" if family == "latent" else "2", "count": 2})
    config.compilation_cache = ""
    return config


_SLOW = ("latent", "pixels", "tokens", "vqvae", "pixelcnn")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in _SLOW]


def with_random_weights(skeleton):
    """As large as initial ones; none begins at zero, where all texts draw the same."""
    rng = np.random.default_rng(0)

    def drawn(name, leaf):
        if leaf.ndim > 1:
            fan_in = np.prod(leaf.shape[:-1]) if "emb" not in name else 1
            return rng.normal(0, fan_in**-0.5, leaf.shape)
        return name.endswith(("weight", "scale")) + rng.normal(0, 0.3, leaf.shape)

    weights = {name: drawn(name, leaf) for name, leaf in named_parameters(skeleton).items()}
    return with_parameters(skeleton, {n: jnp.float32(v) for n, v in weights.items()})


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request):
    """A family's tiny model of random weights, and its config."""
    config = tiny_config(request.param)
    return config, with_random_weights(jax.eval_shape(lambda: make_model(config)))


@pytest.mark.parametrize(
    "opened", [*SLOW[:4], "pixelcnn", "variational", "adversarial"], indirect=True
)
def test_the_last_stage_has_gradients_for_what_it_trains(opened):
    """Of the others `test_lowering` has the gradients' programs."""
    config, model = opened
    for stage in SYSTEM.stages(config)[-1:]:
        rng = np.random.default_rng(0)
        examples = [stage.transform(stage.source[i], rng) for i in range(4)]
        batch = {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}
        gradient, metrics = jax.jit(
            lambda m, b, s=stage: jax.grad(lambda m: s.loss(m, b, jax.random.key(0)), has_aux=True)(
                m
            )
        )(model, batch)
        assert all(np.isfinite(v) for v in jax.tree.leaves(metrics))
        moved = {n for n, g in named_parameters(gradient).items() if np.abs(g).max() > 0}
        for pattern, _ in stage.train:
            assert any(re.match(pattern, n) for n in moved), (stage.name, pattern)
        learns = {n.partition(".")[0] for n in moved}
        trained = {p.partition("\\")[0] for p, _ in stage.train}
        assert learns == trained, stage.name


def test_a_text_is_drawn_and_nothing_recompiles(opened, compilations):
    config, model = opened
    family = DRAW[config.family]

    def drawn(text="a red star", first=0, **how):
        wish = Wish((text,) * 2, (first, first + 1), **how).filled(config)
        return np.asarray(family.draw(model, config, wish, None))

    one = drawn()
    side = config.data.image_size
    assert (one.dtype, one.shape) == (np.uint8, (2, side, side, 3))
    assert not np.array_equal(one[0], one[1])
    compilations()
    other = drawn("a blue circle")
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(drawn(first=1)[0], one[1])  # a picture has its own seed only
    if "guidance_scale" in family.heeds:
        assert not np.array_equal(drawn(guidance_scale=4.0, negative="gray"), one)
    if "temperature" in family.heeds:
        drawn(temperature=0.5, top_k=3)
    assert compilations() == 0


@pytest.mark.parametrize("opened", [*SLOW[:2], "tokens", "adversarial"], indirect=True)
def test_a_request(opened, tmp_path):
    config, model = opened
    request = Request(prompt=("a red star", "a blue heart"), count=2, candidates=2, seed=3)
    made = {one.name: one for one in draw_request(model, config, request)}
    assert list(made) == [
        *(f"picture_{t:02d}_{i:02d}.png" for t in range(2) for i in range(2)),
        "sheet.png",
    ]
    told = made["picture_01_01.png"].settings
    assert (told["prompt"], told["seed"], told["family"]) == ("a blue heart", "4", config.family)
    # The better of two candidates is what comes back.
    alone = [
        next(iter(draw_request(model, config, Request(prompt=("a red star",), count=1, seed=s))))
        for s in (3, 5)
    ]
    scores = [float(one.settings["CLIP cosine"]) for one in alone]
    best = alone[int(np.argmax(scores))].value
    np.testing.assert_array_equal(made["picture_00_00.png"].value, best)
    # A folder of them is one of pictures, such as DreamBooth's prior.
    for one in made.values():
        write_png(tmp_path / one.name, one.value, one.settings)
    assert ImageFolder(tmp_path).paths == tuple(name for name in made if name != "sheet.png")


@pytest.mark.parametrize("opened", ["adversarial"], indirect=True)
def test_many_pictures_are_drawn_few_at_a_time(opened, compilations, monkeypatch):
    """They are the same, and one program draws them all."""
    config, model = opened
    monkeypatch.setattr(use, "_TOGETHER", 2)

    def drawn(count, first, candidates=1):
        request = Request(prompt=("a star",), count=count, seed=first, candidates=candidates)
        wish = use.read(model, config, request)
        return use.draw_best(model, config, wish, "a star", request)

    pairs = [drawn(2, first) for first in (3, 5, 7)]
    compilations()
    pictures, scores = drawn(5, 3)
    assert compilations() == 0
    np.testing.assert_array_equal(pictures, np.concatenate([p for p, _ in pairs])[:5])
    np.testing.assert_array_equal(scores, np.concatenate([s for _, s in pairs])[:5])
    # The second candidates of pictures 0, 1, 2 are pictures 3, 4, 5.
    _, best = drawn(3, 3, candidates=2)
    six = np.concatenate([s for _, s in pairs])
    np.testing.assert_array_equal(best, np.maximum(six[:3], six[3:]))


@pytest.mark.parametrize("opened", [*SLOW, "variational"], indirect=True)
def test_the_table(opened):
    config, model = opened
    judging = Judging(num_texts=3, each=2, real=100, candidates=2)
    check(judging)
    report = SYSTEM.judge(model, config, judging)
    rows = report.tables()[TABLE]
    first, nearest = rows[0], rows[-2]
    assert rows[-1]["method"] == "chance"
    assert nearest["method"] == "nearest training pictures by CLIP"
    assert nearest["shape right"] >= 0
    assert nearest["SOA-I"] >= nearest["both right"]  # the largest object is one of all
    assert nearest["SceneFID"] >= 0
    assert 0 <= nearest["captioned back, accuracy"] <= 100
    assert first["seconds a picture"] > 0
    assert first["parameters"] > 0
    assert ("bits/dim" in first) == (DRAW[config.family].bits is not None)
    assert ("nats a code" in first) == (DRAW[config.family].nats is not None)
    assert all(first.get(name, 1) > 0 for name in ("bits/dim", "nats a code"))
    assert len(report.figures) == len(rows) - 2


def test_published_codes_are_given_and_levels_divide_what_a_byte_holds():
    config = get_published_config("tokens", "/data/coco")
    skeleton = jax.eval_shape(lambda: make_model(config))
    assert skeleton.transformer.codes == 256
    assert skeleton.vqgan.quantize.embedding.weight.shape == (1024, 256)
    config = get_config("vqvae")
    del config.stages["vqgan"]
    with pytest.raises(UserError, match=r"no codes are trained: .*pretrained\.vqgan=FILE"):
        SYSTEM.stages(config)
    config = get_config("pixelcnn")
    config.model.pixelcnn.levels = 6
    with pytest.raises(UserError, match=r"model\.pixelcnn\.levels=6: .*give a power of 2"):
        jax.eval_shape(lambda: make_model(config))


def test_a_transformers_words_are_the_tokens_between_start_and_end():
    config = get_config("tokens")
    tokenizer, told = make_tokenizer(config), ["a photo of a red star", "blue"]
    tokens = jnp.asarray(tokenizer(told, 25))
    for length in (4, 25, 30):
        expected = tokenizer.plain(told, length, warn=False)
        np.testing.assert_array_equal(plain_of(tokens, length), expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", None, "--prompt is missing"),
        ("mask", np.ones((8, 8, 3), np.uint8), "--mask"),
        ("steps", "4", "--steps"),
        ("height", 33, "--height"),
    ],
)
def test_what_cannot_be_is_told(opened, field, value, message):
    config, model = opened
    request = Request(**{"prompt": ("a red star",), field: value})
    heeded = DRAW[config.family].heeds
    if field == "steps" and field in heeded:
        pytest.skip("this family has steps")
    with pytest.raises(UserError, match=message):
        list(draw_request(model, config, request))


def test_unknown_families_stages_and_missing_clips_are_told():
    with pytest.raises(UserError, match="choose one of latent, pixels"):
        get_config("flow")
    config = get_config("tokens")
    config.stages.polish = config.stages.transformer
    with pytest.raises(UserError, match=r"stages\.polish: the family 'tokens' has clip"):
        SYSTEM.stages(config)
    config = get_config("variational")
    del config.stages["clip"]
    with pytest.raises(UserError, match=r"no CLIP is trained.*pretrained\.clip"):
        SYSTEM.stages(config)


# Stable Diffusion's folders ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tiny_stable_diffusion):
    """A folder's model and config, and its peers' networks."""
    folder, networks = tiny_stable_diffusion
    recipe = str(ROOT / "configs" / "text2image_coco.py")
    flags = (f"--config.pretrained.sd={folder}", "--config.data.image_size=16")
    config, _ = parse_config(
        ("--config", f"{recipe}:{folder}", *flags, "--config.model.unet.dtype=float32")
    )
    model = jax.eval_shape(lambda: make_model(config))
    model.sd = pretrained.load(model.sd, folder)
    return config, jax.tree.map(jnp.asarray, model), networks


def test_a_concept_is_drawn_and_another_compiles_nothing(published, tmp_path, compilations):
    config, model, _ = published
    width = model.sd.text_encoder.token_embedding.weight.shape[1]
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for file, seed in zip(files, (0, 1), strict=True):
        vectors = np.random.default_rng(seed).normal(size=(2, width)).astype(np.float32)
        write_concept(file, Concept("<toy>", vectors))

    def drawn(*concept):
        words = tuple(read_concepts(*concept))
        wish = Wish(("a red <toy>",), (7,), steps="leading2", concept=words).filled(config)
        return np.asarray(latent.draw(model, config, wish))

    one = drawn(files[0])
    compilations()
    assert not np.array_equal(drawn(files[1]), one)
    assert compilations() == 0


def test_candidates_ask_for_a_clip_and_it_can_be_given(published):
    config, model, _ = published
    request = Request(prompt=("a red star",), candidates=2)
    with pytest.raises(UserError, match=r"--candidates=2: .*--config\.pretrained\.clip=FILE, or"):
        use.read(model, config, request)
    with_clip = config.copy_and_resolve_references()
    with_clip.pretrained.clip = "ViT-B-32.pt"
    skeleton = jax.eval_shape(lambda: make_model(with_clip))
    assert (skeleton.clip.context_length, skeleton.clip.visual.image_size) == (77, 224)
    assert use.read(skeleton, with_clip, request).texts == ()
    config = get_config("latent")
    with pytest.raises(UserError, match=r"no CLIP that could choose; leave it out"):
        use.read(model, config, request)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TEXT, NEGATIVE = "a red star", "gray ground"


def pipeline_of(kind, networks, scheduler):
    unet, vae, text_encoder = networks
    unet.register_to_config(sample_size=64)  # pipelines that change pictures ask
    made = kind(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def peers(torch, diffusers, config, networks, sampler):
    """A scheduler of ten steps and the embedded texts, as `diffusers` takes them."""
    if sampler == "ddim":
        more = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
        scheduler, steps = diffusers.DDIMScheduler(**SCHEDULE, **more), "leading10+1"
    else:
        more = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
        scheduler = diffusers.DPMSolverMultistepScheduler(**SCHEDULE, **more)
        steps = "trailing10"
    tokens = torch.from_numpy(make_tokenizer(config)([TEXT, NEGATIVE], 77)).long()
    with torch.no_grad():
        embedded = networks[2](tokens).last_hidden_state
    told = {"prompt_embeds": embedded[:1], "negative_prompt_embeds": embedded[1:]}
    return scheduler, steps, {**told, "num_inference_steps": 10, "output_type": "np"}


def noise_of(seed, side, torch):
    """Our noise in their layout."""
    key = jax.vmap(jax.random.key)(jnp.array([seed], jnp.uint32))
    noise = np.moveaxis(np.asarray(start_noise(key, (side, side, 4))), -1, 1)
    return torch.from_numpy(noise.copy())


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver"])
def test_a_prompt_becomes_diffusers_picture(published, sampler):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, model, networks = published
    scheduler, steps, told = peers(torch, diffusers, config, networks, sampler)
    pipeline = pipeline_of(diffusers.StableDiffusionPipeline, networks, scheduler)
    expected = pipeline(
        **told, guidance_scale=7.5, height=16, width=16, latents=noise_of(7, 8, torch)
    ).images[0]
    wish = Wish((TEXT,), (7,), NEGATIVE, 6.5, sampler, steps).filled(config)
    ours = np.asarray(latent.draw(model, config, wish))[0]
    np.testing.assert_allclose(ours / 255, expected, atol=0.5 / 255 + 1e-3)
    assert expected.std() > 0.01
    plain = np.asarray(latent.draw(model, config, Wish((TEXT,), (7,)).filled(config)))[0]
    assert np.abs(plain / 255 - expected).max() > 0.01  # scale and negative prompt matter


@pytest.fixture(scope="module")
def inpainting(published, tiny_inpainting):
    """The published model with a network that was trained under masks, and its peer."""
    config, model, _ = published
    folder, (unet, *_) = tiny_inpainting
    wide = config.copy_and_resolve_references()
    wide.pretrained.inpaint = str(folder / "unet")
    told = jax.eval_shape(lambda: make_model(wide))
    loaded = pretrained.load(told.inpaint, folder / "unet")
    told.sd, told.inpaint = model.sd, jax.tree.map(jnp.asarray, loaded)
    return told, unet


@pytest.mark.parametrize("kind", ["picture", "mask", "network"])
def test_pictures_are_changed_as_diffusers_changes_them(published, inpainting, kind, monkeypatch):
    """Image to image at strength 0.6; under a mask with a network that knows none or knows them."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, model, networks = published
    scheduler, steps, told = peers(torch, diffusers, config, networks, "ddim")
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:12, 2:10] = True
    noise = noise_of(3, 8, torch)
    with torch.no_grad():
        pixels = torch.from_numpy(np.moveaxis(np.asarray(to_unit(image)), -1, 0)[None].copy())
    module = "img2img" if kind == "picture" else "inpaint"
    file = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{module}"
    monkeypatch.setattr(f"{file}.randn_tensor", lambda *_, **__: noise)
    monkeypatch.setattr(f"{file}.retrieve_latents", lambda seen, **_: seen.latent_dist.mode())
    strength = 0.6 if kind == "picture" else 1.0
    given = {"image": pixels, "strength": strength, "guidance_scale": 7.5}
    if kind == "picture":
        made = pipeline_of(diffusers.StableDiffusionImg2ImgPipeline, networks, scheduler)
    else:
        if kind == "network":
            model, unet = inpainting
            networks = (unet, *networks[1:])
        made = pipeline_of(diffusers.StableDiffusionInpaintPipeline, networks, scheduler)
        given |= {"mask_image": torch.from_numpy(mask[None, None].astype(np.float32))}
        given |= {"height": 16, "width": 16, "latents": noise}
    expected = made(**told, **given).images[0]
    how = {"image": image, "strength": strength, "mask": None if kind == "picture" else mask}
    wish = Wish((TEXT,), (3,), NEGATIVE, 6.5, "ddim", steps, **how).filled(config)
    ours = np.asarray(latent.draw(model, config, wish))[0]
    np.testing.assert_allclose(ours / 255, expected, atol=0.5 / 255 + 1e-3)


@pytest.mark.slow
def test_a_gan_learns_from_mismatched_pairs_and_interpolated_texts():
    """Each setting changes what the discriminator or the generator learns, and nothing else."""
    config = tiny_config("adversarial")
    model = jax.jit(lambda: make_model(config))()
    stage = SYSTEM.stages(config)[-1]
    rng = np.random.default_rng(0)
    examples = [stage.transform(stage.source[i], rng) for i in range(4)]
    batch = {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}

    def found(**changed):
        config.adversarial.update({"mismatch": True, "interpolated": 0.0, "r1": 1.0, **changed})
        loss = adversarial._loss(config, adversarial._first, "generator", "discriminator")
        value, told = jax.jit(loss)(model, batch, jax.random.key(0))
        return float(value), {name: float(v) for name, v in told.items()}

    usual, told = found()
    without, same = found(mismatch=False)
    assert same == told
    assert without != usual
    _, others = found(interpolated=0.5)
    assert others["fake"] != told["fake"]
    assert others["right"] == told["right"]
    assert others["penalty"] == told["penalty"]
    unpunished, _ = found(r1=0.0)
    assert usual - unpunished == pytest.approx(0.5 * told["penalty"], rel=1e-3)
