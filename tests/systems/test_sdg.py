"""SDG through its doors: three stages, guided pictures, tables. Small networks."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, train
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.metrics.guided import attribute_accuracy
from vljax.models.parameters import named_parameters
from vljax.pretrained import read_tensors
from vljax.systems import sdg
from vljax.systems.sdg.evaluation import IMAGE, TEXT
from vljax.systems.sdg.face_instructions import face_instructions
from vljax.systems.sdg.training import stages, start_noisy_clip
from vljax.training.optimizer import learning_rate, learning_rate_factors

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
REFERENCES = ROOT / "../shared/data/sdg_reference"
SMALL = (
    *("--config", str(ROOT / "configs" / "sdg_ffhq.py")),
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
    *(
        f"--config.stages.{stage}.{field}"
        for stage in ("diffusion", "clip", "noisy_clip")
        for field in ("num_steps=2", "batch_size=4", "optimizer.warmup_steps=0")
    ),
    "--config.samples.count=4",
    "--config.samples.steps=2",
    "--config.evaluation.guidances=3",
    "--config.evaluation.images_each=2",
    "--config.evaluation.text_scales=(0.0,5.0)",
    "--config.evaluation.image_scales=(5.0,)",
    "--config.evaluation.ilvr_factors=(4,)",
    "--config.evaluation.real=120",
)
DRAW = ("--num_images", "3", "--batch_size", "4", "--steps", "2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_to_compile):
    """A run of all three stages."""
    folder = tmp_path_factory.mktemp("sdg")
    assert train.main((*SMALL, "--workdir", str(folder))) == 0
    return folder


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_three_stages_leave_their_parts(workdir):
    stages = {"diffusion": "diffusion.", "clip": "clip.", "noisy_clip": "noisy_clip."}
    for stage, prefix in stages.items():
        tensors = read_tensors(workdir / "weights" / f"{stage}.safetensors")
        assert tensors
        assert all(name.startswith(prefix) for name in tensors)
    clip = read_tensors(workdir / "weights" / "clip.safetensors")
    noisy = read_tensors(workdir / "weights" / "noisy_clip.safetensors")
    # Running statistics stay as they are.
    name = "visual.layer1.0.bn1.running_var"
    np.testing.assert_array_equal(noisy[f"noisy_clip.{name}"], clip[f"clip.{name}"])
    name = "visual.layer1.0.conv1.weight"
    # Two steps from the trained CLIP, not from another random start (weights of about 0.2).
    assert np.abs(noisy[f"noisy_clip.{name}"] - clip[f"clip.{name}"]).max() < 5e-3
    assert (workdir / "pictures" / "noisy_clip" / "guided_0000002.png").exists()


def test_the_noisy_clip_starts_as_the_clip():
    config, _ = parse_config(SMALL)
    model = jax.jit(lambda: sdg.make_model(config))()
    name = "visual.layer1.0.conv1.weight"
    clip = named_parameters(model.clip)[name]
    moved = jax.tree.map(lambda leaf: leaf + 1, model)
    begun = named_parameters(start_noisy_clip(moved, config))
    np.testing.assert_array_equal(begun[f"noisy_clip.{name}"], clip + 1)
    # It is a new model: what it was made from stays.
    np.testing.assert_array_equal(named_parameters(moved)[f"noisy_clip.{name}"], clip + 1)
    assert begun["noisy_clip.emb_layers.1.weight"].max() == 0


def test_generate_by_all_aspects_compiles_once(workdir, photo, tmp_path, compilations):

    def run(name, *flags):
        compilations()
        argv = ("--workdir", str(workdir), "--out", str(tmp_path / name), *DRAW, *flags)
        assert generate.main(argv) == 0
        return [np.asarray(Image.open(tmp_path / name / f"{i:04d}.png")) for i in range(3)]

    pictures = ("--image", photo, "--style_image", photo, "--structure_image", photo)
    first = run("a", "--prompt", "a red circle", *pictures)
    assert compilations() > 0
    with Image.open(tmp_path / "a" / "samples.png") as sheet:
        assert sheet.text["prompt"] == "a red circle"
        assert sheet.text["image_scale"] == str(parse_config(SMALL)[0].guidance.image)
        assert sheet.height > 5 * 64  # three references and the pictures

    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(photo)
    scales = ("--text_scale", "50", "--image_scale", "50", "--seed", "3")
    other = run("b", "--prompt", "a blue star at the top", *pictures, *scales)
    assert compilations() == 0, "another prompt, reference, scale or seed compiled something"
    assert any((a != b).any() for a, b in zip(first, other, strict=True))

    with pytest.warns(UserWarning, match="of which the first 22 count"):
        run("c", "--prompt", "red " * 40, *pictures)


def test_ilvr_and_clean_encoders_through_the_door(workdir, photo, tmp_path):
    for name, flags in {
        "ilvr": ("--ilvr_image", photo, "--ilvr_factor", "4"),
        "on_x0": ("--prompt", "a red circle", "--encoder", "clip_on_x0", "--image", photo),
    }.items():
        argv = ("--workdir", str(workdir), "--out", str(tmp_path / name), *DRAW, *flags)
        assert generate.main(argv) == 0
        assert (tmp_path / name / "0002.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompt", "a", "--text_scale", "nan"), "--text_scale=nan: give a finite number"),
        (("--style_scale", "3"), "--style_scale=3: scales nothing; give --style_image"),
        (("--image", "missing.png"), r"missing.png cannot be read \(No such file"),
        (("--image", __file__), "give a PNG, JPEG or WebP file"),
        (("--num_images", "0"), "--num_images=0: give 1 or more"),
        (("--ilvr_image", "PHOTO", "--ilvr_factor", "5"), "ilvr_factor=5: choose a number"),
    ],
)
def test_mistakes(workdir, photo, tmp_path, flags, message):
    flags = [photo if flag == "PHOTO" else flag for flag in flags]
    with pytest.raises(UserError, match=message):
        generate.main(("--workdir", str(workdir), "--out", str(tmp_path / "out"), *DRAW, *flags))


def test_guidance_needs_a_clip(workdir, tmp_path):
    weights = workdir / "weights" / "diffusion.safetensors"
    argv = (*SMALL, "--config.guided=False", f"--config.pretrained.diffusion={weights}")
    with pytest.raises(UserError, match="no CLIP to be guided by"):
        generate.main((*argv, "--out", str(tmp_path), *DRAW, "--prompt", "a red circle"))


def test_evaluate_writes_the_papers_tables(workdir, tmp_path):
    flags = ("--num_images", "4", "--batch_size", "6", "--steps", "2", "--bits_steps", "2")
    assert evaluate.main(("--workdir", str(workdir), "--out", str(tmp_path), *flags)) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in results["tables"][TEXT] if row["source"] == "here"}
    assert list(rows) == [
        "SDG, text (0)",
        "SDG, text (5)",
        "clean CLIP on x_t (5)",
        "clean CLIP on predicted x_0 (5)",
        "classifier guidance (1)",
    ]
    for row in rows.values():
        assert 0 <= row["top1"] <= row["top5"] <= row["top20"] <= 1
        assert row["FID"] > 0
        assert {"diversity", "CLIP score", "R-precision", "both right"} <= set(row)
    published = {(row["data"], row["method"]): row for row in results["tables"][IMAGE]}
    assert published["FFHQ", "SDG"]["FID"] == 14.37
    assert published["scenes", "ILVR (N=4)"]["diversity"] >= 0
    assert results["notes"]["judged by"]["FID"].startswith("stand-in")
    table = (tmp_path / "results.md").read_text()
    assert "| SDG, text (5) | here | scenes |" in table
    figures = sorted(path.stem for path in tmp_path.glob("figure_*.png"))
    assert [name.split("_")[1] for name in figures] == [
        *("4.3", "4.4", "4.5", "4.6", "4.7", "4.8", "4.8")
    ]


def test_attribute_accuracy_sees_what_is_there():
    config, _ = parse_config(SMALL)
    from vljax.systems.sdg.evaluation import read_guides

    config.evaluation.guidances = 12
    guides = read_guides(config)
    truth = attribute_accuracy(guides.pictures, guides.classes)
    assert truth["both right"] > 0.9
    wrong = attribute_accuracy(guides.pictures, guides.classes[1:] + guides.classes[:1])
    assert wrong["both right"] < 0.3


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
    stage = next(stage for stage in stages(config) if stage.name == "noisy_clip")
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
def test_published_reference_pictures_guide(workdir, tmp_path):
    """Each of the SDG authors' reference pictures goes through the door."""
    files = sorted(p for p in REFERENCES.rglob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
    assert files
    for kind, file in zip(("image", "style_image"), (files[0], files[-1]), strict=True):
        out = tmp_path / kind
        argv = ("--workdir", str(workdir), "--out", str(out), *DRAW, f"--{kind}", str(file))
        assert generate.main(argv) == 0
        with Image.open(out / "samples.png") as sheet:
            assert sheet.text[kind] == str(file)
        shutil.rmtree(out)
