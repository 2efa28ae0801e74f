"""SDG: its stages through the door, pictures for a request, tables. Small networks, one model."""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vljax import evaluate, pretrained, train
from vljax.data.source import CorruptExampleError
from vljax.diffusion.noise import example_keys, step_noise
from vljax.diffusion.process import make_process, p_mean_variance, q_sample
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.metrics import frechet
from vljax.models.layers import Linear
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.models.perceptual import LPIPS
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import clip_scale, contrastive_loss, cosine
from vljax.request import add_flags, from_flags
from vljax.systems.sdg import SYSTEM
from vljax.systems.sdg.evaluation import IMAGE, TEXT, read_guides
from vljax.systems.sdg.face_instructions import face_instructions
from vljax.systems.sdg.method import ENCODERS, make_guidance
from vljax.systems.sdg.model import make_tokenizer
from vljax.systems.sdg.training import noisy_clip_loss, start_noisy_clip
from vljax.systems.sdg.use import Request
from vljax.training.optimizer import learning_rate, learning_rate_factors

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "../shared/data/sdg_reference"
SMALL = (
    *("--config", str(ROOT / "configs" / "sdg_ffhq.py")),
    "--config.compilation_cache=",
    "--config.data.image_size=32",
    "--config.model.diffusion.model_channels=16",
    "--config.model.diffusion.norm_groups=8",
    "--config.model.diffusion.num_head_channels=16",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.model.clip.vision_width=8",
    "--config.model.clip.image_size=32",
    "--config.model.clip.embed_dim=16",
    "--config.model.clip.text_width=32",
    "--config.model.clip.text_layers=1",
    "--config.model.noisy_clip.image_size=32",
    "--config.samples.count=4",
    "--config.samples.steps=2",
    "--config.evaluation.guidances=3",
    "--config.evaluation.images_each=2",
    "--config.evaluation.text_scales=(0.0,100.0)",
    "--config.evaluation.image_scales=(100.0,)",
    "--config.evaluation.ilvr_factors=(4,)",
    "--config.evaluation.real=100",
)
DRAW = {"num_images": 3, "batch_size": 6, "steps": "4"}


def test_a_damaged_reference_picture_is_left_out_where_it_is_skipped(tmp_path):
    for i in range(6):
        Image.new("RGB", (40, 32), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"damaged")
    flags = (f"--config={ROOT / 'configs' / 'sdg_ffhq.py'}:{tmp_path}", *SMALL[2:])
    flags = (*flags, "--config.data.held_out=3")
    config, _ = parse_config((*flags, "--config.data.on_corrupt=skip"))
    assert read_guides(config).pictures[:, 0, 0, 0].tolist() == [3 * 40, 5 * 40]
    with pytest.raises(CorruptExampleError, match=r"4\.png"):
        read_guides(parse_config(flags)[0])


def by_chance(skeleton):
    """A model of random weights as large as initial ones, made without a compiler."""
    rng = np.random.default_rng(0)

    def drawn(name, leaf):
        if leaf.ndim > 1:
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        around = 1.0 if name.endswith(("weight", "running_var")) else 0.0
        return around + 0.1 * np.abs(rng.normal(0, 1, leaf.shape))

    named = named_parameters(skeleton)
    return with_parameters(skeleton, {n: np.float32(drawn(n, leaf)) for n, leaf in named.items()})


@pytest.fixture(scope="module")
def config():
    return parse_config(SMALL)[0]


@pytest.fixture(scope="module")
def model(config):
    made = by_chance(jax.eval_shape(lambda: SYSTEM.make_model(config)))
    return jax.tree.map(jnp.asarray, start_noisy_clip(made, config))


@pytest.fixture(scope="module")
def argv(model, tmp_path_factory):
    """The recipe with the model's parts as published weights."""
    folder = tmp_path_factory.mktemp("weights")
    flags = []
    for part in ("diffusion", "clip", "noisy_clip"):
        pretrained.save(getattr(model, part), folder / f"{part}.safetensors")
        flags.append(f"--config.pretrained.{part}={folder / part}.safetensors")
    return (*SMALL, *flags)


@pytest.fixture(scope="module")
def draw(model, config):
    """`draw(**request)`: the results by name."""

    def run(**request):
        asked = Request(**{**DRAW, **request})
        return {result.name: result for result in SYSTEM.generate(model, config, asked)}

    return run


def pictures(results):
    return np.stack([result.value for name, result in results.items() if name[0].isdigit()])


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_the_noisy_clip_starts_as_the_clip(model, config):
    name = "visual.layer1.0.conv1.weight"
    clip = named_parameters(model.clip)[name]
    moved = jax.tree.map(lambda leaf: leaf + 1, model)
    begun = named_parameters(start_noisy_clip(moved, config))
    np.testing.assert_array_equal(begun[f"noisy_clip.{name}"], clip + 1)
    # It is a new model: what it was made from stays.
    kept = named_parameters(moved)[f"noisy_clip.{name}"]
    np.testing.assert_array_equal(kept, named_parameters(model.noisy_clip)[name] + 1)
    assert begun["noisy_clip.emb_layers.1.weight"].max() == 0


def test_the_noisy_clip_learns_from_the_clean_one(model, config):
    """Section 4.3.5: pictures under noise find themselves among clean ones; these stay."""
    loss, batch = noisy_clip_loss(config), {"image": noise(0, 6, 32, 32)}
    key, process = jax.random.key(0), make_process(config)

    @jax.jit
    def run(model):
        return jax.value_and_grad(lambda model: loss(model, batch, key), has_aux=True)(model)

    @jax.jit
    def expected(model):
        """What has learnt nothing yet finds some by chance, in two directions."""
        step_key, noise_key = jax.random.split(key)
        t = jax.random.randint(step_key, (6,), 0, 1000)
        x0 = to_unit(batch["image"])
        x_t = q_sample(process.schedule, x0, t, jax.random.normal(noise_key, x0.shape))
        embeddings = model.clip.encode_image(jnp.concatenate([x_t, x0]))
        scale = clip_scale(model.clip.logit_scale[...])
        return contrastive_loss(*jnp.split(embeddings, 2), scale, directions="sum")

    (value, metrics), gradients = run(model)
    np.testing.assert_allclose(value, expected(model), rtol=1e-3)
    assert -1 < metrics["cosine"] < 1
    named = {name: np.asarray(g) for name, g in named_parameters(gradients).items()}
    assert all((g == 0).all() for name, g in named.items() if not name.startswith("noisy_clip."))
    # The times' network starts at zero, and is what learns of the noise.
    assert np.abs(named["noisy_clip.emb_layers.1.weight"]).max() > 0


@pytest.mark.slow
def test_three_stages_leave_their_parts(tmp_path):
    fields = ("num_steps=2", "batch_size=4", "optimizer.warmup_steps=0")
    stages = ("diffusion", "clip", "noisy_clip")
    short = [f"--config.stages.{stage}.{field}" for stage in stages for field in fields]
    assert train.main((*SMALL, *short, "--workdir", str(tmp_path))) == 0
    saved = {s: pretrained.read_tensors(tmp_path / "weights" / f"{s}.safetensors") for s in stages}
    for stage, tensors in saved.items():
        assert tensors
        assert all(name.startswith(f"{stage}.") for name in tensors)
    clip, noisy = saved["clip"], saved["noisy_clip"]
    # Running statistics stay as they are.
    name = "visual.layer1.0.bn1.running_var"
    np.testing.assert_array_equal(noisy[f"noisy_clip.{name}"], clip[f"clip.{name}"])
    name = "visual.layer1.0.conv1.weight"
    # Two steps from the trained CLIP, not from another random start (weights of about 0.2).
    assert 0 < np.abs(noisy[f"noisy_clip.{name}"] - clip[f"clip.{name}"]).max() < 5e-3
    assert (tmp_path / "pictures" / "noisy_clip" / "guided_0000002.png").exists()


def test_guidance_pulls_pictures_to_the_text(model, config, draw, compilations):
    """From the same noise: at scale 0 the free model's pictures, at others what fits better."""
    free, text, other = draw(), "a red circle", "a blue star at the top"
    none = draw(prompt=text, text_scale=0.0)
    compilations()
    weak, strong = (draw(prompt=text, text_scale=scale) for scale in (1.0, 100.0))
    elsewhere = draw(prompt=other, text_scale=100.0)
    assert compilations() == 0, "another text or scale compiled something"
    np.testing.assert_allclose(pictures(none).astype(int), pictures(free), atol=1)

    @jax.jit
    def fit(model, images, tokens):
        seen = model.noisy_clip.encode_image(to_unit(images), jnp.zeros(len(images), int))
        return cosine(seen, model.clip.encode_text(tokens)).mean()

    tokens = make_tokenizer(config)([text, other], config.model.clip.context_length)
    rows = [
        [float(fit(model, pictures(made), asked[None])) for asked in tokens]
        for made in (none, weak, strong, elsewhere)
    ]
    assert rows[0][0] < rows[1][0] < rows[2][0]
    # Each text's pictures fit it by more than the other's do.
    assert rows[2][0] - rows[2][1] > rows[3][0] - rows[3][1]
    assert strong["samples.png"].label == '"a red circle", text scale 100'


def test_all_aspects_are_one_program(config, draw, compilations):
    photo, flags = noise(0, 50, 40), ("image", "style_image", "structure_image")
    given = dict.fromkeys(flags, photo)
    first = draw(prompt="a red circle", **given)
    assert list(first) == ["0000.png", "0001.png", "0002.png", "samples.png"]
    sheet = first["samples.png"]
    assert sheet.value.shape[0] > 5 * 64  # three references and the pictures
    assert sheet.settings["prompt"] == "a red circle"
    assert sheet.settings["image"] == "given as pixels"
    assert sheet.settings["image_scale"] == str(config.guidance.image)
    assert first["0002.png"].settings["index"] == "2"
    compilations()
    scales = {"text_scale": 50.0, "image_scale": 50.0}
    for change in ({"seed": 3}, {"style_image": noise(1, 64, 64)}, scales):
        other = draw(**{"prompt": "a red circle", **given, **change})
        assert (pictures(other) != pictures(first)).any(), change
    assert compilations() == 0, "another prompt, reference, scale or seed compiled something"
    with pytest.warns(UserWarning, match="of which the first 22 count"):
        draw(prompt="red " * 40, **given)


def test_ilvr_takes_over_the_low_frequencies(draw):
    """Where nothing was cut off at black or white, they are the reference's."""
    photo = np.kron(noise(0, 4, 4) // 2 + 64, np.ones((8, 8, 1))).astype(np.uint8)
    mixed, free = pictures(draw(ilvr_image=photo, ilvr_factor=8)), pictures(draw())
    low = [
        np.asarray(jax.image.resize(x.astype(np.float32), (*x.shape[:-3], 4, 4, 3), "cubic"))
        for x in (mixed, free, photo)
    ]
    assert np.abs(low[0] - low[2]).mean() < 0.2 * np.abs(low[1] - low[2]).mean()
    assert np.abs(mixed.astype(int) - photo).mean() > 5  # but not the reference itself


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_encoder_guides_by_what_it_sees(model, config, encoder):
    """The guidance is the gradient of the cosines of equations 4.6 and 4.7, put together here."""
    process, keys = make_process(config), example_keys(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    t = jnp.array([100, 700])
    photo = noise(0, 1, 32, 32)
    tokens = make_tokenizer(config)(["a red circle"], config.model.clip.context_length)

    def seen(x, t):
        if encoder == "noisy_clip":
            return model.noisy_clip.encode_image(x, t)
        if encoder == "clip_on_x0":
            x = p_mean_variance(process, model.diffusion, x, t, clip=True).x0
        return model.clip.encode_image(x)

    @jax.jit
    def expected(x):
        clean = jnp.repeat(to_unit(photo), 2, 0)
        others = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31)
        fresh = jax.vmap(lambda k, t: step_noise(k[None], t, x.shape[1:])[0])(others, t)
        known = encoder == "clip_on_x0"
        reference = (
            model.clip.encode_image(clean)
            if known
            else seen(q_sample(process.schedule, clean, t, fresh), t)
        )
        text = model.clip.encode_text(tokens)

        def score(x):
            ours = seen(x, t)
            return (3 * cosine(ours, text) + 5 * cosine(ours, reference)).sum()

        return jax.grad(score)(x)

    @jax.jit
    def found(x):
        targets = {"text": (tokens, 3.0), "image": (photo, 5.0)}
        return make_guidance(model, process, keys, targets, encoder=encoder)(x, t)

    gradient = np.asarray(expected(x))
    assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(found(x), gradient, atol=1e-4 * np.abs(gradient).max())


def asked(*flags):
    parser = argparse.ArgumentParser()
    add_flags(parser, Request)
    return from_flags(Request, parser.parse_args(flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt", "a", "--text_scale", "nan"), "--text_scale=nan: give a finite number"),
        (("--style_scale", "3"), "--style_scale=3: scales nothing; give --style_image"),
        (("--image", "missing.png"), r"missing.png cannot be read \(No such file"),
        (("--image", __file__), "give a PNG, JPEG or WebP file"),
        (("--num_images", "0"), "--num_images=0: give 1 or more"),
        (("--ilvr_factor", "4"), "--ilvr_factor=4: no low .*; give --ilvr_image as well"),
        (("--encoder", "clip"), "--encoder=clip: nothing guides; give --prompt or"),
        (("--scale_schedule", "linear"), "--scale_schedule=linear: nothing guides; give --prompt"),
        (("--max_ratio", "0.5", "--ilvr_image", "PHOTO"), "--max_ratio=0.5: nothing guides; give"),
        (("--sampler", "ddpm", "--eta", "0.5"), "eta=0.5: DDIM alone .* the sampler is ddpm; "),
        (("--ilvr_image", "PHOTO", "--ilvr_factor", "5"), "ilvr_factor=5: choose a number"),
    ],
)
def test_mistakes(model, config, tmp_path, flags, message):
    Image.fromarray(noise(0, 50, 40)).save(tmp_path / "photo.png")
    flags = [str(tmp_path / "photo.png") if flag == "PHOTO" else flag for flag in flags]
    with pytest.raises(UserError, match=message):
        list(SYSTEM.generate(model, config, asked(*flags, "--steps", "4")))


def test_guidance_needs_a_clip():
    config, _ = parse_config((*SMALL, "--config.guided=False"))
    with pytest.raises(UserError, match="no CLIP to be guided by"):
        next(SYSTEM.generate(None, config, Request(prompt="a red circle")))


class Eye(nnx.Module):
    """Stands where Inception-v3 does, which takes minutes here."""

    def __init__(self, *, rngs):
        self.fc = Linear(3, 5, rngs=rngs)

    def features(self, images):
        return self.fc(images.mean((1, 2)))


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Published weights of the networks that judge: the flags that name them."""
    folder = tmp_path_factory.mktemp("judges")
    lpips = by_chance(jax.eval_shape(lambda: LPIPS("vgg", rngs=nnx.Rngs(0))))
    layouts = variables(lpips)
    tensors = {
        name: np.abs(pretrained.to_published(np.asarray(value), layouts[name]))
        for name, value in named_parameters(lpips).items()
    }
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith("lin")}
    trunk = {name: tensor for name, tensor in tensors.items() if name not in heads}
    # torchvision's file also holds what tells ImageNet's classes.
    trunk["classifier.0.weight"] = np.zeros((4, 2), np.float32)
    pretrained.write_tensors(heads, folder / "vgg.safetensors")
    pretrained.write_tensors(trunk, folder / "vgg16.safetensors")
    pretrained.save(Eye(rngs=nnx.Rngs(0)), folder / "inception.safetensors")
    return (
        *("--lpips", str(folder / "vgg.safetensors"), str(folder / "vgg16.safetensors")),
        *("--inception", str(folder / "inception.safetensors")),
    )


def test_evaluate_writes_the_papers_tables(argv, judges, tmp_path, monkeypatch):
    monkeypatch.setattr(frechet, "InceptionV3", Eye)
    flags = ("--num_images", "4", "--batch_size", "6", "--steps", "4", "--bits_steps", "2")
    assert evaluate.main((*argv, *flags, *judges, "--out", str(tmp_path))) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    tables, judged_by = results["tables"], results["notes"]["judged by"]
    rows = {row["method"]: row for row in tables[TEXT] if row["source"] == "here"}
    assert list(rows) == [
        "SDG, text (0)",
        "SDG, text (100)",
        "clean CLIP on x_t (100)",
        "clean CLIP on predicted x_0 (100)",
        "classifier guidance (1)",
    ]
    for row in rows.values():
        assert 0 <= row["top1"] <= row["top5"] <= row["top20"] <= 1
        assert row["FID"] > 0
        assert row["diversity"] > 0
        assert {"CLIP score", "R-precision", "both right"} <= set(row)
    published = {(row["data"], row["method"]): row for row in tables[IMAGE]}
    assert published["FFHQ", "SDG"]["FID"] == 14.37
    assert published["FFHQ", "SDG"]["source"] == "paper, table 4.1"
    ours = [row for row in tables[TEXT] + tables[IMAGE] if row["source"] == "here"]
    assert len(ours) == 7
    assert len({row["diversity"] for row in ours}) >= 6  # each of its own pictures
    assert judged_by["FID"] == "Inception-v3"
    assert "guided by the very CLIP that judges them" in judged_by["its own guidance"]
    assert judged_by["diversity"] == "LPIPS (vgg)"
    table = (tmp_path / "results.md").read_text()
    assert "| SDG, text (100) | here | scenes |" in table
    figures = sorted(path.stem for path in tmp_path.glob("figure_*.png"))
    assert [name.split("_")[1] for name in figures] == [
        *("4.3", "4.4", "4.5", "4.6", "4.7", "4.8", "4.8")
    ]


@pytest.mark.parametrize(
    ("file", "data", "steps", "decays"),
    [("sdg_ffhq.py", "/data/ffhq", 14_000, 3_000), ("sdg_lsun.py", "/data/cat", 100_000, 30_000)],
)
def test_the_published_noisy_clip(file, data, steps, decays):
    """Section 4.4.1: the rate falls to a tenth after every so many of so many steps."""
    config, _ = parse_config(("--config", f"{ROOT / 'configs' / file}:{data}"))
    stage = config.stages.noisy_clip
    assert stage.num_steps == steps
    rate = learning_rate(stage.optimizer, steps)
    np.testing.assert_allclose([rate(0), rate(decays - 1), rate(decays)], [1e-4, 1e-4, 1e-5])
    assert stage.time_rate == 1.0


def test_what_follows_the_time_learns_slowly_in_the_small_recipe():
    """At full rate a seed's activations at the noisiest times overflowed."""
    config, _ = parse_config(("--config", str(ROOT / "configs" / "sdg_ffhq.py")))
    stage = next(stage for stage in SYSTEM.stages(config) if stage.name == "noisy_clip")
    slow = ("noisy_clip.time_embed.0.weight", "noisy_clip.emb_layers.1.bias")
    full = ("noisy_clip.visual.conv1.weight", "noisy_clip.visual.bn1.bias")
    fixed = ("noisy_clip.visual.bn1.running_var", "clip.visual.conv1.weight")
    factors = learning_rate_factors((*slow, *full, *fixed), stage.train)
    assert factors == dict.fromkeys(slow, 0.1) | dict.fromkeys(full, 1.0)


def test_the_face_instructions():
    texts = face_instructions()
    assert len(set(texts)) == 400
    assert "A photo of a smiling man with glasses." in texts
    assert sum(" woman " in text for text in texts) == 200


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCES.is_dir(), reason="needs ../shared/data/sdg_reference")
def test_published_reference_pictures_guide(draw):
    """Each of the SDG authors' reference pictures guides."""
    files = sorted(p for p in REFERENCES.rglob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
    assert files
    free = pictures(draw())
    for kind, file in zip(("image", "style_image"), (files[0], files[-1]), strict=True):
        made = draw(**{kind: str(file)})
        assert made["samples.png"].settings[kind] == str(file)
        assert (pictures(made) != free).any()
