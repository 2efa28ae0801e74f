"""SeMani-Trans: its losses, its manipulations, and itself through its doors. Small networks."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, pretrained, train
from vljax.data.pictures.entities import grow
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.metrics.manipulation import TABLE_1
from vljax.models.alignment import mask_to_grid
from vljax.models.parameters import named_parameters
from vljax.models.token_transformer import Logits
from vljax.ops.pixels import to_unit
from vljax.ops.quantization import gumbel_one_hot
from vljax.ops.similarity import cosine
from vljax.request import check
from vljax.systems import semani_trans
from vljax.systems.semani_trans import evaluation, training, use
from vljax.systems.semani_trans.evaluation import (
    ALIGNED,
    COLOURS,
    PLACES,
    SCENES,
    SHAPES,
    Judging,
)
from vljax.systems.semani_trans.method import Read, edited_codes, make_drawing, read, to_gray
from vljax.systems.semani_trans.use import Request
from vljax.training.optimizer import learning_rate_factors

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
STAGES = ("clip", "autoencoder", "vqgan", "pretrain", "plain", "language", "vision", "parallel")
SMALL = (
    *("--config", str(ROOT / "configs" / "semani_trans_cub.py"), "--config.compilation_cache="),
    "--config.data.scenes.size=60",
    "--config.model.vqgan.block_out_channels=(8, 8, 8)",
    "--config.model.vqgan.num_codes=24",
    "--config.model.vqgan.latent_channels=8",
    "--config.model.vqgan.code_channels=4",
    "--config.model.transformer.features=16",
    "--config.model.transformer.layers=1",
    "--config.model.transformer.heads=2",
    "--config.model.transformer.head_channels=8",
    "--config.model.clip.embed_dim=8",
    "--config.model.clip.vision_width=8",
    "--config.model.clip.vision_layers=1",
    "--config.model.clip.text_width=8",
    "--config.model.clip.text_layers=1",
    "--config.model.clip.head_channels=8",
    "--config.loss.semantic_rows=2",
    *(
        f"--config.stages.{stage}.{field}"
        for stage in STAGES
        for field in ("num_steps=2", "batch_size=4", "optimizer.warmup_steps=0")
    ),
    "--config.samples.count=2",
    "--config.samples.passes=3",
    "--config.alignment.threshold=2.0",
)


@pytest.fixture(scope="module")
def config():
    return parse_config(SMALL)[0]


@pytest.fixture(scope="module")
def model(config):
    """Random weights; no layer is zero, codes are about as far as encodings."""
    shapes, structure = jax.tree.flatten(jax.eval_shape(lambda: semani_trans.make_model(config)))
    rng = np.random.default_rng(3)
    leaves = [rng.normal(0, 0.3, shape.shape).astype(np.float32) for shape in shapes]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])


@pytest.fixture(scope="module")
def batch(config):
    stage = next(s for s in semani_trans.stages(config) if s.name == "vision")
    rng = np.random.default_rng(0)
    examples = [stage.transform(stage.source[i], rng) for i in range(4)]
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}


@pytest.fixture(scope="module")
def scene(config):
    """A picture, and the mask of its first object."""
    source = semani_trans.stages(config)[0].source
    example = type(source)(
        image_size=32, max_objects=2, sizes=("large",), fields=("image", "masks")
    )
    one = example[1]
    return one["image"], one["masks"][0]


def generated(model, config, **fields):
    request = Request(**fields)
    check(request)
    return {result.name: result for result in semani_trans.SYSTEM.generate(model, config, request)}


# Losses ------------------------------------------------------------------------------------------


def test_the_losses_of_tokens(model, batch):
    """Equations 5, 6 and 8 by hand; of the gray picture only rows that use it count."""
    rng = np.random.default_rng(1)
    network = model.transformer
    text = batch["text"]
    codes, gray = rng.integers(0, 24, (2, 4, 64))
    sizes = ((20, 722), (64, 24), (64, 24))
    logits = Logits(*(rng.normal(size=(4, *size)).astype(np.float32) for size in sizes))
    used = training.use_gray(4)
    np.testing.assert_array_equal(used, [True, True, False, False])
    assert training.use_gray(1).all()
    found = training.token_losses(network, logits, text, codes, gray, used)

    def mean(logits, labels):
        log_p = np.asarray(jax.nn.log_softmax(logits))
        return -np.take_along_axis(log_p, np.asarray(labels)[..., None], -1).mean()

    padded = np.where(text == 0, 702 + np.arange(20), text)
    assert (text == 0).any()
    np.testing.assert_allclose(found["text"], mean(logits.text, padded), rtol=1e-5)
    np.testing.assert_allclose(found["image"], mean(logits.image, codes), rtol=1e-5)
    np.testing.assert_allclose(found["gray"], mean(logits.gray[:2], gray[:2]), rtol=1e-5)
    assert "gray" not in training.token_losses(
        network, logits._replace(gray=None), text, codes, None, used
    )


def test_the_losses_are_weighted_as_in_the_code(model, config, batch):
    """7, 1 and 1 over the sum of those at hand; the semantic loss, times 5, outside of it."""
    key = jax.random.key(0)
    for semantic, vision in ((False, False), (True, True)):
        loss = training.drawing_loss(config, "transformer", semantic=semantic, vision=vision)
        total, parts = jax.jit(loss)(model, batch, key)
        expected = 7 * parts["image"] + parts["text"]
        expected = (expected + parts["gray"]) / 9 if vision else expected / 8
        if semantic:
            expected += 5 * parts["semantic"]
        assert ("semantic" in parts) == semantic
        np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_the_semantic_loss_reaches_the_logits_through_codes_decoder_and_clip(model, batch):
    """Its value is that of hard codes, its gradient that of the soft choice (equation 7)."""
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(4, 64, 24)).astype(np.float32))
    key, tokens = jax.random.key(4), batch["tokens"]
    value, gradient = jax.jit(
        jax.value_and_grad(lambda logits: training.semantic_loss(model, logits, tokens, key))
    )(logits)
    noisy = logits + jax.random.gumbel(key, logits.shape)

    def fit(chosen):
        vectors = chosen @ model.vqgan.quantize.embedding.weight[...]
        drawn = jnp.clip(model.vqgan.decode(vectors.reshape(4, 8, 8, -1)), -1, 1)
        seen, told = model.clip.encode_image(drawn), model.clip.encode_text(tokens)
        return (1 - cosine(seen, told)).mean()

    hard, slope = jax.jit(jax.value_and_grad(fit))(jax.nn.one_hot(noisy.argmax(-1), 24))
    np.testing.assert_allclose(value, hard, rtol=1e-5)
    _, back = jax.vjp(lambda logits: jax.nn.softmax(logits + (noisy - logits)), logits)
    _, back = jax.vjp(jax.nn.softmax, noisy)
    np.testing.assert_allclose(gradient, back(slope)[0], atol=1e-6)
    assert np.abs(gradient).max() > 1e-6
    assert gumbel_one_hot(logits, key).sum() == 4 * 64


def test_regions_are_pictures_and_rectangles():
    found = np.asarray(training.regions(jax.random.key(0), 200, 8)).reshape(-1, 8, 8)
    whole = found.all((1, 2))
    assert 0.4 < whole.mean() < 0.65
    for region in found[~whole]:
        rows, columns = region.any(1), region.any(0)
        np.testing.assert_array_equal(region, rows[:, None] & columns)
        assert rows.any()


def test_the_filling_loss_is_of_masked_codes(model, batch):
    learn = jax.jit(jax.value_and_grad(training.filling_loss, has_aux=True))
    (loss, parts), slopes = learn(model, batch, jax.random.key(0))
    assert 0 < parts["masked"] < 1
    assert 0 < loss == parts["image"]
    slopes = named_parameters(slopes.parallel)
    assert np.abs(slopes["mask_emb"]).max() > 0


def test_other_transformers_begin_as_the_first(model):
    begun = training.begun_as_transformer(model, "parallel")
    known, theirs = named_parameters(model.transformer), named_parameters(begun.parallel)
    assert theirs.keys() - known.keys() == {"mask_emb"}
    assert known.keys() - theirs.keys() == {n for n in known if n.startswith("to_text_logits")}
    for name in theirs.keys() & known.keys():
        np.testing.assert_array_equal(theirs[name], known[name])
    before = named_parameters(model.parallel)
    assert (before["mask_emb"] == theirs["mask_emb"]).all()
    assert (before["image_emb.weight"] != theirs["image_emb.weight"]).any()


def test_the_codebook_begins_with_what_the_encoder_gives(model, config):
    source = semani_trans.stages(config)[1].source
    begun = jax.jit(training.codes_from(config, source))(model)
    images = np.stack([source[i]["image"] for i in range(8)])
    codes = jax.jit(lambda model: model.vqgan.codes(to_unit(images)))
    used = [len(np.unique(codes(one))) for one in (model, begun)]
    assert used[1] > max(used[0], 12)


def test_gray_is_luminance():
    image = np.float32([[[[1.0, -1.0, -1.0]]]])
    np.testing.assert_allclose(to_gray(image), np.full((1, 1, 1, 3), 0.299 - 0.587 - 0.114))


# Manipulations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["transformer", "parallel", "plain"])
def test_kept_codes_stay_and_nothing_compiles_anew(model, config, batch, compilations, network):
    """Another picture, text, mask, seed, temperature, and whether shapes are kept."""
    drawing = make_drawing(config, network)
    known = read(model, batch["image"])
    edited = np.zeros((4, 64), bool)
    edited[:, 20:30] = True
    none = np.zeros(4, bool)
    first = drawing(model, known, batch["text"], edited, range(4), none)
    np.testing.assert_array_equal(np.asarray(first)[~edited], np.asarray(known.codes)[~edited])
    assert (np.asarray(first) != np.asarray(known.codes)).any()
    compilations()
    other = make_drawing(config, network, temperature=0.7, top_k=3)
    again = Read(known.codes[::-1], known.gray[::-1])
    changed = np.roll(edited, 7, axis=1)
    changed[0] = True
    drawn = other(model, again, batch["text"][::-1], changed, range(4, 8), ~none)
    assert compilations() <= 2  # of turning arrays around, here in the test
    np.testing.assert_array_equal(np.asarray(drawn)[~changed], np.asarray(again.codes)[~changed])
    alone = drawing(model, known, batch["text"], edited, [9, 1, 9, 9], none)
    np.testing.assert_array_equal(alone[1], first[1])


def test_a_mask_comes_to_the_codes(config):
    mask = np.zeros((32, 32), bool)
    mask[8:17, 8:16] = True
    found = edited_codes(config, mask[None], 8, 0.0)[0].reshape(8, 8)
    np.testing.assert_array_equal(found, mask_to_grid(mask, (8, 8), "bilinear"))
    assert found.sum() == 4
    assert edited_codes(config, mask[None], 8, 0.0, "max")[0].sum() == 6
    grown = edited_codes(config, mask[None], 8, 3.0)[0]
    np.testing.assert_array_equal(
        grown.reshape(8, 8), mask_to_grid(grow(mask, 3.0), (8, 8), "bilinear")
    )


def test_a_request_with_a_word(model, config, scene, compilations):
    image, _ = scene
    fields = {"anyway": True, "entity": ("circle",)}
    made = generated(model, config, image=image, text=("a red star",), **fields)
    assert list(made) == ["mask.png", "edited.png", "sheet.png"]
    assert made["edited.png"].value.shape == (32, 32, 3)
    assert "similarity" in made["sheet.png"].label
    assert set(np.unique(made["mask.png"].value)) == {0, 255}
    compilations()
    fields = {"anyway": True, "entity": ("star",), "seed": 4, "keep_shape": True}
    other = generated(model, config, image=image[::-1], text=("a blue heart",), **fields)
    assert compilations() == 0
    assert (other["edited.png"].value != made["edited.png"].value).any()


def test_a_mask_found_can_be_given_back(model, config, scene, monkeypatch):
    """And what lies outside is, pasted, bit for bit what it was; so many are drawn at a time."""
    monkeypatch.setattr(use, "_TOGETHER", 2)
    image, mask = scene
    levels = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
    fields = {"image": image, "mask": levels, "text": ("a red star",), "paste": True, "grow": 0.0}
    made = generated(model, config, **fields, samples=3)
    assert list(made) == ["mask.png", *(f"edited_{i}.png" for i in range(3)), "sheet.png"]
    np.testing.assert_array_equal(made["mask.png"].value[..., 0] > 0, mask)
    one, two, three = (made[f"edited_{i}.png"].value for i in range(3))
    np.testing.assert_array_equal(one[~mask], image[~mask])
    assert (one != two).any()
    for seed, drawn in ((1, two), (2, three)):
        alone = generated(model, config, **fields, seed=seed)["edited.png"].value
        np.testing.assert_array_equal(alone, drawn)


def test_entities_one_after_the_other(model, config, tmp_path):
    """From a file; the second goes on from the codes of the first."""
    image = np.full((64, 64, 3), 200, np.uint8)
    folder = tmp_path / "entities"
    folder.mkdir()
    for i, rows in enumerate((slice(0, 32), slice(32, 64))):
        mask = np.zeros((64, 64), np.uint8)
        mask[rows] = 255
        Image.fromarray(mask).save(folder / f"{i}.png")
    fields = {"image": image, "entities": str(folder), "grow": 0.0, "anyway": True}
    words, texts = ("circle", "star"), ("a red circle", "a blue star")
    both = generated(model, config, **fields, entity=words, text=texts)
    assert (both["mask.png"].value == 255).all()  # each word took one of the two
    assert ";" in both["sheet.png"].label
    first = generated(model, config, **fields, entity=words[:1], text=texts[:1])
    region = first["mask.png"].value[..., 0] > 0
    assert region.sum() == 512
    # The codes of the first stay, so where it lies little changes but at the seam.
    inner = region & ~grow(~region, 8)
    changed = np.abs(first["edited.png"].value.astype(int) - both["edited.png"].value)
    assert changed[~region].mean() > changed[inner].mean()


def two_halves(monkeypatch, config, scores, **fields):
    """What is told of each word where a picture has two entities of these similarities."""
    halves = np.zeros((2, 32, 32), bool)
    halves[0, :16] = halves[1, 16:] = True
    monkeypatch.setattr(use, "find_entities", lambda config: lambda picture: halves)
    monkeypatch.setattr(use, "similarities", lambda *given: np.array(scores[given[-1]]))
    request = Request(entity=tuple(scores), text=("a star",) * len(scores), grow=0.0, **fields)
    image = np.zeros((32, 32, 3), np.uint8)
    transformer = SimpleNamespace(transformer=SimpleNamespace(grid=8))
    return [wish.told for wish in use._wishes(transformer, config, request, image, image)]


def test_what_is_told_of_a_word_is_of_the_entity_that_it_chose(config, monkeypatch):
    scores = {"circle": (0.9, 0.1), "star": (0.8, 0.6)}
    told = two_halves(monkeypatch, config, scores, threshold=0.5)
    assert told == ["circle (similarity 0.900)", "star (similarity 0.600)"]


@pytest.mark.parametrize(
    ("scores", "least", "words"),
    [
        ({"circle": (0.9, 0.1), "star": (0.8, 0.2)}, 1, r"\(0.800\) is an earlier --entity's"),
        ({"circle": (0.9, 0.1)}, 33, r"\(0.900\) has 32 codes, .*least=33: lower that"),
        ({"circle": (0.4, 0.1)}, 33, "none of the 2 entities fits .* has 0.400"),
        ({"circle": (-np.inf, -np.inf)}, 1, "is large enough for CLIP: give --mask"),
    ],
)
def test_why_a_word_chose_nothing(config, monkeypatch, scores, least, words):
    config = config.copy_and_resolve_references()
    config.alignment.least = least
    with pytest.raises(UserError, match=words):
        two_halves(monkeypatch, config, scores, threshold=0.5)


@pytest.mark.parametrize("anyway", [True, False])
def test_patches_of_a_word_that_fits_none(config, monkeypatch, anyway):
    similarity = np.zeros((8, 8))
    similarity[2, 3] = 0.4
    monkeypatch.setattr(use, "aligning_clip", lambda model: None)
    monkeypatch.setattr(use, "similarity_map", lambda *given: similarity)
    fields = {"alignment": "patches", "threshold": 0.5, "anyway": anyway}
    if anyway:
        told = two_halves(monkeypatch, config, {"star": ()}, **fields)
        assert told == ["star (similarity 0.400, does not fit)"]
        return
    with pytest.raises(UserError, match=r"no patch fits \(.* 0.400, .*give --anyway"):
        two_halves(monkeypatch, config, {"star": ()}, **fields)


def test_patches_of_a_word(model, config, scene):
    made = generated(
        model,
        config,
        image=scene[0],
        entity=("circle",),
        text=("a red star",),
        alignment="patches",
        threshold=-2.0,
    )
    assert (made["mask.png"].value == 255).all()  # the threshold lets all pass


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "--image is missing"),
        ({"image": 1}, "--text is missing"),
        ({"image": 1, "text": ("a star",)}, "--entity is missing"),
        ({"image": 1, "text": ("a star",), "entity": (" ",)}, "--entity is missing"),
        ({"image": 1, "text": ("a", "b"), "entity": ("star",)}, "1 --entity and 2 --text"),
        ({"image": 1, "text": ("a", "b"), "mask": 1}, "--mask is of one entity"),
        ({"image": 1, "text": ("a",), "mask": 0}, "marks nothing"),
        ({"image": 1, "text": ("a",), "mask": 2}, "marks none of the 8×8 codes"),
        ({"image": 1, "text": ("a",), "mask": "wide"}, "give a mask of the same proportions"),
        ({"image": 1, "text": ("a",), "mask": 1, "entities": "a"}, "--entities: --mask tells"),
        ({"image": 1, "text": ("a",), "mask": 1, "threshold": 0.2}, "--threshold: --mask tells"),
        (
            {"image": 1, "text": ("a",), "mask": 1, "alignment": "patches"},
            "--alignment=patches: --mask tells what would be found; leave one",
        ),
        (
            {"image": 1, "text": ("a",), "entities": "a.png", "alignment": "patches"},
            "--entities=a.png: --alignment=patches knows no entities",
        ),
        (
            {"image": 1, "text": ("a",), "entity": ("star",)},
            "none of the .* entities fits .*or --anyway",
        ),
        (
            {
                "image": 1,
                "text": ("a",),
                "entity": ("star",),
                "alignment": "patches",
            },
            "no patch fits",
        ),
    ],
)
def test_what_cannot_be_asked(model, config, scene, fields, words):
    masks = {0: np.zeros((32, 32, 3), np.uint8), 1: np.full((32, 32, 3), 255, np.uint8)}
    masks[2] = masks[0].copy()
    masks[2][0, 0] = 255
    masks["wide"] = np.full((32, 64, 3), 255, np.uint8)
    if "image" in fields:
        fields = {**fields, "image": scene[0]}
    if "mask" in fields:
        fields = {**fields, "mask": masks[fields["mask"]], "grow": 0.0}
    with pytest.raises(UserError, match=words):
        generated(model, config, **fields)


def test_what_does_not_fit_is_edited_if_asked_to(model, config, scene):
    fields = {"image": scene[0], "entity": ("star",), "text": ("a red star",)}
    made = generated(model, config, **fields, anyway=True)
    assert "does not fit" in made["sheet.png"].label


def test_photographs_need_entities(model, config, scene):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.name = "folder"
    with pytest.raises(UserError, match="nothing divides this picture"):
        generated(model, config, image=scene[0], entity=("star",), text=("a star",))


def test_long_texts_lose_their_end(model, config, scene):
    image, mask = scene
    levels = np.repeat(np.uint8(255) * mask[..., None], 3, axis=-1)
    with pytest.warns(UserWarning, match="of which the first 20 count"):
        generated(model, config, image=image, mask=levels, text=("a red star " * 12,))


# Doors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    ["data.entity_texts=2", "data.least_crop=0", "data.least_crop=0.75", "data.flip=True"],
)
def test_impossible_fields_are_refused(change):
    config = parse_config((*SMALL, f"--config.{change}"))[0]
    with pytest.raises(UserError, match=change.split("=")[0]):
        semani_trans.stages(config)


def test_codes_are_learnt_from_pictures_without_texts(tmp_path):
    for name in ("one.png", "two.png"):
        Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / name)
    flags = ("--config.data.name=folder", f"--config.data.path={tmp_path}")
    config = parse_config((*SMALL, *flags, "--config.data.least_crop=0.75"))[0]
    with config.unlocked():
        config.stages = {"vqgan": config.stages.vqgan}
        config.data.held_out = 1
    (stage,) = semani_trans.stages(config)
    example = stage.transform(stage.source[0], np.random.default_rng(0))
    assert example["image"].shape == (32, 32, 3)
    assert stage.start is None


def test_unknown_stages_are_refused(config):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.stages.colour = config.stages.clip
    with pytest.raises(UserError, match=r"stages\.colour: choose one of"):
        semani_trans.stages(config)


def test_the_adversarial_stage_trains_codes_and_discriminator(config, batch):
    """With LPIPS where it is published; nothing is computed here."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.stages.adversarial = config.stages.vqgan
        config.pretrained.lpips = "lpips.safetensors"
    stages = {stage.name: stage for stage in semani_trans.stages(config)}
    assert list(stages).index("adversarial") == list(stages).index("vqgan") + 1
    model = jax.eval_shape(lambda: semani_trans.make_model(config))
    loss, metrics = jax.eval_shape(
        stages["adversarial"].loss, model, batch, jax.eval_shape(lambda: jax.random.key(0))
    )
    assert loss.shape == ()
    assert {"error", "codebook", "deception", "factor", "discriminator"} <= metrics.keys()
    factors = learning_rate_factors(named_parameters(model), stages["adversarial"].train)
    assert {name.partition(".")[0] for name in factors} == {"vqgan", "discriminator"}
    assert factors["vqgan.encoder.conv_in.weight"] == training.ENCODER_RATE
    assert factors["vqgan.decoder.conv_in.weight"] == 1.0


def use_and_judge(flags, tmp_path, images):
    """Edits from the command line and the tables of a model."""
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((40, 48, 3), 120, np.uint8)).save(picture)
    Image.fromarray(np.full((40, 48, 3), 255, np.uint8)).save(tmp_path / "mask.png")
    asked = ("--image", str(picture), "--text", "a red star", "--decoding", "parallel")
    asked = (*flags, *asked, "--mask", str(tmp_path / "mask.png"))
    assert generate.main((*asked, "--out", str(tmp_path / "edits"))) == 0
    with Image.open(tmp_path / "edits" / "edited.png") as edited:
        assert edited.size == (32, 32)
        assert edited.text["text"] == "a red star"
    judged = ("--num_images", str(images), "--batch_size", "4", "--out", str(tmp_path / "judged"))
    assert evaluate.main((*flags, *judged)) == 0
    assert (tmp_path / "judged" / "edits.png").is_file()
    return json.loads((tmp_path / "judged" / "results.json").read_text())["tables"]


def check_tables(tables, methods):
    assert {TABLE_1, SCENES, ALIGNED, SHAPES} <= tables.keys()
    here = [row for row in tables[TABLE_1] if row["source"] == "here"]
    assert methods <= {row["method"] for row in here}
    assert all(row["CLIP-score"] is not None for row in here)
    assert {"all", "colour", "two colours"} <= {row["kind"] for row in tables[SCENES]}
    floor = next(row for row in here if row["method"] == "nothing edited")
    assert floor["L2"] > 0


def test_it_edits_and_is_judged_from_the_command_line(model, tmp_path):
    """By weights that are given, without the ablation."""
    files = []
    for part in ("vqgan", "transformer", "parallel", "clip"):
        pretrained.save(getattr(model, part), tmp_path / f"{part}.safetensors")
        files.append(f"--config.pretrained.{part}={tmp_path / part}.safetensors")
    flags = (*SMALL, "--config.ablations=False", *files)
    check_tables(use_and_judge(flags, tmp_path, 4), {"SeMani-Trans", "masked-parallel"})


def test_files_that_judge_are_opened_before_anything_is_drawn(model, config, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_trial", None)
    for given, words in (({"inception": "nowhere.pth"}, r"nowhere\.pth"), ({"clip": "a"}, "49408")):
        with pytest.raises(UserError, match=words):
            evaluation.judge(model, config, Judging(num_images=1, **given))


@pytest.mark.slow
def test_through_its_doors(tmp_path):
    """Trained for two steps a stage, it edits from the command line and is judged."""
    workdir = tmp_path / "run"
    assert train.main((*SMALL, "--workdir", str(workdir))) == 0
    ended = json.loads((workdir / "weights" / "stages.json").read_text())
    assert [stage["name"] for stage in ended] == list(STAGES)
    tables = use_and_judge(("--workdir", str(workdir)), tmp_path, 16)
    check_tables(tables, {"SeMani-Trans", "masked-parallel", "without semantic loss"})
    assert {PLACES, COLOURS} <= tables.keys()
