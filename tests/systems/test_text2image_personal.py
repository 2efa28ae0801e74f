"""Personalisation: what each stage learns, how it begins, and what comes out of it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.systems.test_text2image import tiny_config, with_random_weights
from vljax import export, pretrained
from vljax.errors import UserError
from vljax.models.parameters import copied, named_parameters
from vljax.pretrained.concepts import Concept, read_concepts, write_concept
from vljax.systems.text2image import (
    PERSONAL,
    SYSTEM,
    get_personal_config,
    use,
    with_personal,
)
from vljax.systems.text2image.families import FAMILIES, Wish, latent, personal
from vljax.systems.text2image.likeness import TABLE
from vljax.systems.text2image.model import make_model
from vljax.training import weights

pytestmark = pytest.mark.usefixtures("quick_to_compile")

KEY = jax.random.key(0)


def recipe(stage):
    """The small recipe with tiny networks."""
    config = with_personal(tiny_config("latent"), stage)
    config.samples.steps = "leading2"
    return config


def opened(config):
    model = with_random_weights(jax.eval_shape(lambda: make_model(config)))
    *_, stage = SYSTEM.stages(config)
    return stage.start(model), stage


def batch_of(stage, count=2):
    rng = np.random.default_rng(0)
    examples = [stage.transform(stage.source[i], rng) for i in range(count)]
    return {n: jnp.asarray(np.stack([e[n] for e in examples])) for n in examples[0]}


@pytest.fixture(scope="module", params=PERSONAL)
def begun(request):
    """A model that has learnt nothing yet, its config and the stage."""
    config = recipe(request.param)
    return config, *opened(config)


def drawn(model, config, text):
    wish = Wish((text,), (3,)).filled(config)
    return np.asarray(latent.draw(model, config, wish))


def test_it_begins_with_what_was_known_and_learns_its_own_part_alone(begun):
    """The word as its noun, the U-Net as it was."""
    config, model, stage = begun
    circle = drawn(model, config, "a photo of a circle")
    told = "a photo of a <mine>" if stage.name == "inversion" else "a photo of a circle"
    plain = copied(model)
    plain.personal = None
    without = config.copy_and_resolve_references()
    without.model.personal = {}
    np.testing.assert_array_equal(drawn(plain, without, "a photo of a circle"), circle)
    np.testing.assert_array_equal(drawn(model, config, told), circle)
    batch = batch_of(stage)
    gradient = jax.jit(jax.grad(lambda m: stage.loss(m, batch, jax.random.key(0))[0]))(model)
    moved = {n for n, g in named_parameters(gradient.personal).items() if np.abs(g).max() > 0}
    parts = {n.partition(".")[0] for n in moved}
    assert parts == ({"vectors"} if stage.name == "inversion" else {"unet"})
    # What is learnt is drawn, and the noun's vectors stay.
    learnt = copied(model)
    learnt.personal = jax.tree.map(lambda leaf: 1.5 * leaf, model.personal)
    said = personal.subject(config)
    assert not np.array_equal(drawn(learnt, config, f"a photo of a {said}"), circle)
    if stage.name == "inversion":
        np.testing.assert_array_equal(drawn(learnt, config, "a photo of a circle"), circle)


def test_both_halves_of_dreambooth_are_weighed():
    """The loss is the thing's plus λ times the noun's: a line in λ, which at 0 is the thing's."""
    config = recipe("dreambooth")
    model, stage = opened(config)
    batch = batch_of(stage)
    assert not np.array_equal(batch["tokens"], batch["prior_tokens"])

    def loss(weight, batch=batch):
        config.personal.prior_weight = weight
        *_, stage = SYSTEM.stages(config)
        return float(jax.jit(stage.loss)(model, batch, jax.random.key(1))[0])

    half, one, two = loss(0.5), loss(1.0), loss(2.0)
    assert two - one == pytest.approx(2 * (one - half), rel=1e-4)
    other = {**batch, "prior_image": 255 - batch["prior_image"]}
    thing = one - (two - one)
    assert 2 * loss(1.0, other) - loss(2.0, other) == pytest.approx(thing, rel=1e-3)
    config.personal.prior_weight = 0.0
    *_, alone = SYSTEM.stages(config)
    assert batch_of(alone).keys() == {"image", "tokens"}


def test_the_table(begun):
    config, model, _ = begun
    report = SYSTEM.judge(model, config, SYSTEM.judging(num_texts=3))
    before, after, thing = report.tables()[TABLE]
    assert [before["method"], after["method"]] == ["circle, before", "circle, after"]
    assert thing["method"] == personal.subject(config)
    for name in ("likeness", "CLIP score", "diversity", "the thing itself"):
        assert before[name] == after[name]  # nothing is learnt yet
    assert -1 <= thing["likeness"] <= 1
    assert list(report.figures) == ["figure_1_one_thing"]


@pytest.mark.parametrize("field", ["each", "real", "inception", "candidates"])
def test_what_no_row_of_the_table_asks_for_is_refused(begun, field):
    config, model, _ = begun
    given = "weights.pth" if field == "inception" else 150
    judging = SYSTEM.judging(num_texts=3, **{field: given})
    with pytest.raises(UserError, match=f"--{field}={given}: of one thing learnt no row asks"):
        SYSTEM.judge(model, config, judging)


def test_diffusers_opens_what_was_learnt(begun, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    config, model, stage = begun
    folder = tmp_path / "personal"
    told = export._write("personal", model.personal, folder, SYSTEM, config, "float32")
    assert "diffusers" in told
    if stage.name == "inversion":
        (one,) = read_concepts(folder / "learned_embeds.safetensors")
        assert one.word == "<mine>"
        np.testing.assert_array_equal(one.vectors, model.personal.vectors[...])
        return
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    ours = model.personal.unet.conv_in.weight[...]
    np.testing.assert_array_equal(
        unet.conv_in.weight.detach().numpy(), np.moveaxis(ours, (3, 2), (0, 1))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_exported_is_read_back(begun, dtype, tmp_path):
    config, model, _ = begun
    told = export._write("personal", model.personal, tmp_path, SYSTEM, config, dtype)
    assert told.endswith("; for `--config.pretrained.personal=FOLDER`")
    for file in tmp_path.rglob("*.safetensors"):
        with safe_open(file, framework="flax") as held:
            assert {str(held.get_tensor(name).dtype) for name in held.keys()} == {dtype}  # noqa: SIM118
    given = config.copy_and_resolve_references()
    given.pretrained.personal = str(tmp_path)
    skeleton = jax.eval_shape(lambda: make_model(given))
    found = weights.pretrained_parameters(skeleton, given)
    learnt = named_parameters(model.personal)
    assert found.keys() == {f"personal.{name}" for name in learnt}
    for name, value in learnt.items():
        rounded = jnp.asarray(value).astype(dtype).astype(jnp.float32)
        np.testing.assert_array_equal(found[f"personal.{name}"], rounded, name)


@pytest.mark.parametrize("count", [1, 2])
def test_words_of_textual_inversion_are_read_from_their_file(count, tmp_path):
    """As anyone's, under whatever word; of several words none is taken."""
    config = recipe("inversion")
    config.model.personal.vectors = count
    skeleton = jax.eval_shape(lambda: make_model(config))
    config.pretrained.personal = str(tmp_path / "toy.safetensors")
    vectors = np.random.default_rng(0).normal(size=skeleton.personal.vectors.shape)
    write_concept(config.pretrained.personal, Concept("<toy>", np.float32(vectors)))
    found = weights.pretrained_parameters(skeleton, config)
    np.testing.assert_array_equal(found["personal.vectors"], np.float32(vectors))
    pretrained.write_tensors({"<a>": vectors, "<b>": vectors}, config.pretrained.personal)
    with pytest.raises(UserError, match="1 missing: vectors; 2 surplus: <a>, <b>"):
        weights.pretrained_parameters(skeleton, config)


def test_photographs_of_ones_own(tiny_stable_diffusion, tmp_path):
    """As published: the pictures in a folder, those of the noun in another."""
    for folder, count in (("mine", 3), ("others", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            picture = np.full((40, 50, 3), 20 * i + 100 * (folder == "others"), np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / f"{i}.png")
    config = get_personal_config("dreambooth", str(tmp_path / "mine"))
    config.data.image_size = 16
    with pytest.raises(UserError, match=r"personal\.noun is missing"):
        SYSTEM.stages(config)
    config.personal.noun = "circle"
    with pytest.raises(UserError, match=r"pretrained\.sd is missing"):
        SYSTEM.stages(config)
    config.pretrained.sd = str(tiny_stable_diffusion[0])
    with pytest.raises(UserError, match=r"prior\.path is missing: .*prior_weight=0"):
        SYSTEM.stages(config)
    config.personal.prior.path = str(tmp_path / "others")
    (stage,) = SYSTEM.stages(config)
    assert len(stage.source) == 6
    example = stage.transform(stage.source[5], np.random.default_rng(0))
    assert (example["image"][0, 0, 0], example["prior_image"][0, 0, 0]) == (40, 120)
    assert example["image"].shape == (16, 16, 3)
    assert example["tokens"].shape == example["prior_tokens"].shape == (77,)
    skeleton = jax.eval_shape(lambda: make_model(config))
    gradient = jax.eval_shape(
        jax.grad(lambda m: stage.loss(m, {n: v[None] for n, v in example.items()}, KEY)[0]),
        skeleton,
    )
    assert gradient.personal.unet is not None


def test_both_stages_follow_each_other():
    """The word is learnt by the U-Net as it was, then the U-Net is fine-tuned on the word."""
    config = with_personal(with_personal(tiny_config("latent"), "inversion"), "dreambooth")
    config.personal.word = "<mine>"
    assert config.model.personal.to_dict() == {"vectors": 1, "unet": True}
    model = with_random_weights(jax.eval_shape(lambda: make_model(config)))
    inversion, dreambooth = SYSTEM.stages(config)[-2:]
    batch = batch_of(inversion)
    gradient = jax.jit(jax.grad(lambda m: inversion.loss(m, batch, KEY)[0]))(model)
    moved = {n for n, g in named_parameters(gradient).items() if np.any(g)}
    assert any(name.startswith("sd.unet.") for name in moved)
    assert not any(name.startswith("personal.unet.") for name in moved)
    begun = dreambooth.start(model)
    np.testing.assert_array_equal(begun.personal.vectors[...], model.personal.vectors[...])
    assert personal.subject(config) == "<mine>"


def test_clip_reads_the_noun_for_the_word():
    config = recipe("inversion")
    assert personal.with_noun(config, "a <mine> at night") == "a circle at night"
    assert personal.with_noun(recipe("dreambooth"), "a sks circle") == "a sks circle"
    with pytest.raises(UserError, match="'<mine>' was learnt already"):
        personal.read_word(config).with_word("<mine>", 800, 2)


@pytest.mark.parametrize("begun", ["inversion"], indirect=True)
def test_clip_reads_nouns_of_concepts_whose_files_are_read_once(begun, tmp_path, monkeypatch):
    config, model, _ = begun
    file = tmp_path / "one.safetensors"
    write_concept(file, Concept("<cat-toy>", np.ones((1, 16), np.float32)))
    request = use.Request(
        prompt=("a <cat-toy> on a <mine>",), concept=(str(file),), count=1, candidates=3
    )
    wish = use.read(model, config, request)
    file.unlink()
    side = config.data.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    known = dataclasses.replace(FAMILIES["latent"], draw=lambda *_: pictures)
    monkeypatch.setitem(FAMILIES, "latent", known)

    def scores(text, wish):
        return use.draw_best(model, config, wish, text, request)[1]

    found = scores(request.prompt[0], wish)
    bare = dataclasses.replace(wish, concept=())
    np.testing.assert_array_equal(found, scores("a cat toy on a circle", bare))
    assert found != scores("a thing on a circle", bare)
    assert Concept("<*>", np.ones((1, 16), np.float32)).noun == "thing"


@pytest.mark.parametrize(
    ("stage", "field", "value", "message"),
    [
        ("inversion", "noun", "", r"personal\.noun is missing"),
        ("dreambooth", "word", " ", r"personal\.word is missing"),
        ("inversion", "word", "circle", "'circle' is a word of the vocabulary"),
        ("dreambooth", "templates", ("a photo",), r"personal\.templates=.*\{\}"),
        ("dreambooth", "prior_weight", -1.0, r"personal\.prior_weight=-1"),
    ],
)
def test_what_cannot_be_is_told(stage, field, value, message):
    config = recipe(stage)
    config.personal[field] = value
    with pytest.raises(UserError, match=message):
        SYSTEM.stages(config)


def test_a_part_without_anything_is_refused():
    config = recipe("inversion")
    config.model.personal.vectors = 0
    with pytest.raises(UserError, match=r"model\.personal\.vectors=0"):
        jax.eval_shape(lambda: make_model(config))


@pytest.mark.parametrize(("part", "value"), [("unet", True), ("vectors", 0)])
def test_what_no_stage_learns_is_told(part, value):
    config = recipe("inversion")
    config.model.personal[part] = value
    with pytest.raises(UserError, match=rf"model\.personal\.{part}={value}: stage"):
        SYSTEM.stages(config)


ROOT = Path(__file__).parents[2]
# A Stable Diffusion of scenes that is trained already.
TRAINED = ROOT / "vljax" / "examples" / "shape_guided" / "weights" / "example.safetensors"


@pytest.mark.slow
def test_dreambooth_learns_the_thing_and_its_prior_keeps_the_rest(learn, tmp_path):
    """Three runs of a minute or two each, from a trained example."""

    def table(stage, name, *flags):
        results = learn(
            ROOT / "configs" / f"text2image_{stage}_folder.py",
            tmp_path / name,
            train_flags=(f"--config.pretrained.sd={TRAINED}", *flags),
        )
        return results["tables"][TABLE]

    inversion = table("inversion", "inversion")
    kept = table("dreambooth", "kept")
    free = table("dreambooth", "free", "--config.personal.prior_weight=0")
    (before, _, learnt), (_, noun, booth), (_, forgotten, _) = inversion, kept, free
    for one in (learnt, booth):
        assert one["the thing itself"] > before["the thing itself"] + 2 * one["standard error"]
    assert booth["the thing itself"] > learnt["the thing itself"]
    assert noun["diversity"] > forgotten["diversity"]
