"""SeMani-Diff in use, its stages and its tables, on networks of random weights."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from pycocotools import mask as rle_tools

from vljax import generate, pretrained
from vljax.data.manipulations import Manipulation, Wish, scene_manipulations
from vljax.data.pictures.entities import grow
from vljax.data.scenes import Scenes, render
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import make_process
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.metrics.manipulation import TABLE_1, TABLE_2
from vljax.models.clip import CLIP, PUBLISHED, TextTransformer
from vljax.models.parameters import copied, named_parameters
from vljax.pretrained.clips import judging_clip
from vljax.pretrained.concepts import Concept, write_concept
from vljax.request import check
from vljax.systems.semani_diff import SYSTEM, evaluation, get_config, training
from vljax.systems.semani_diff.evaluation import ALIGNED, PLACES, SCENES, Judging
from vljax.systems.semani_diff.method import (
    Alignment,
    blend,
    draw,
    finish,
    make_batch,
    reconstruct,
)
from vljax.systems.semani_diff.model import make_model, make_tokenizer
from vljax.systems.semani_diff.training import loose, manipulated, named_entities, stages
from vljax.systems.semani_diff.use import Request, find_places
from vljax.training import weights

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs" / "semani_diff_coco.py")
TOWER = {"embed_dim": 8, "image_size": 16, "patch_size": 8, "vision_layers": 3, "vision_width": 16}
TOWER |= {"text_width": 16, "text_layers": 1, "context_length": 20, "vocabulary_size": 702}
TOWER |= {"head_channels": 16, "mask_prompts": 3}
TINY = {
    "vae": {"block_out_channels": (8, 8), "norm_groups": 8},
    "unet": {
        "block_out_channels": (8,),
        "attention_levels": (True,),
        "num_heads": (2,),
        "norm_groups": 8,
        "context_features": 16,
    },
    "text_encoder": {"text_width": 16, "text_layers": 1, "head_channels": 16},
    "clip": TOWER,
}


def tiny_config():
    """The recipe on scenes with networks that compile quickly."""
    config = get_config()
    for part, fields in TINY.items():
        config.model[part].update(fields)
    config.samples.steps = "leading2"
    config.compilation_cache = ""
    return config


@pytest.fixture(scope="module")
def opened():
    """A tiny model on scenes, and its config."""
    config = tiny_config()
    return config, make_model(config)


@pytest.fixture(scope="module")
def published(tiny_inpainting, tmp_path_factory):
    """The flags that load a folder and a CLIP in OVSeg's names."""
    torch = pytest.importorskip("torch")
    clip = CLIP(**TOWER, rngs=nnx.Rngs(1))
    layouts = pretrained.checkpoint.variables(clip)
    held = {
        f"clip_adapter.clip_model.{name}": torch.tensor(
            pretrained.to_published(np.asarray(value), layouts[name])
        )
        for name, value in named_parameters(clip).items()
    }
    file = tmp_path_factory.mktemp("ovseg") / "ovseg.pth"
    torch.save({"model": held}, file)
    sizes = [f"--config.model.clip.{name}={value}" for name, value in TOWER.items()]
    return (
        *("--config", f"{RECIPE}:/nowhere", "--config.compilation_cache="),
        *("--config.data.image_size=32", "--config.model.unet.dtype=float32"),
        *(f"--config.pretrained.sd={tiny_inpainting[0]}", f"--config.pretrained.clip={file}"),
        *sizes,
    )


def scene_picture(side=48, index=3):
    return render(Scenes(image_size=side, sizes=("large",), max_objects=2).scene(index), side)


def asked(opened, **wanted):
    """The results of a request by name."""
    config, model = opened
    request = Request(**{"image": scene_picture(), **wanted})
    check(request)
    return {one.name: one for one in SYSTEM.generate(model, config, request)}


# Photographs, by a published folder --------------------------------------------------------------


def test_a_published_folder_edits_a_photograph_at_its_own_size(published, tmp_path):
    """Random weights: plumbing, by entities in a file and by a mask, from the command line."""
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    masks = np.zeros((2, 50, 70), bool)
    masks[0, 5:30, 8:40] = True
    masks[1, 31:, :] = True
    instances = []
    for mask in masks:
        counts = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        instances.append({"segmentation": {**counts, "counts": counts["counts"].decode()}})
    (tmp_path / "entities.json").write_text(json.dumps({"instances": instances}))
    flags = (*published, "--image", str(tmp_path / "photo.png"), "--steps", "leading2+1")
    wish = ("--entity", "circle", "--text", "a red circle", "--feather", "3")
    by_file = ("--entities", str(tmp_path / "entities.json"), "--anyway")
    by_file += ("--entity", "background", "--text", "a dark background!")
    Image.fromarray(masks[0]).save(tmp_path / "mask.png")
    by_mask = ("--mask", str(tmp_path / "mask.png"))
    # A word that the text tower learnt, which the text may hold.
    write_concept(tmp_path / "toy.safetensors", Concept("<toy>", np.ones((1, 16), np.float32)))
    by_mask += ("--concept", str(tmp_path / "toy.safetensors"))
    for name, more in (("file", by_file), ("mask", by_mask)):
        out = tmp_path / name
        assert generate.main((*flags, *wish, *more, "--out", str(out))) == 0
        with Image.open(out / "edited.png") as file:
            edited, told = np.asarray(file), file.text
        drawn = np.asarray(Image.open(out / "mask.png"))[..., 0] == 255
        assert edited.shape == photo.shape
        np.testing.assert_array_equal(edited[~drawn], photo[~drawn])
        assert (edited[drawn] != photo[drawn]).any(-1).mean() > 0.9
        assert told["pasted"] == "True"
        assert "circle: a red circle" in told["wishes"]
        if name == "mask":
            np.testing.assert_array_equal(drawn, masks[0])
        else:
            assert any(np.array_equal(drawn, one) for one in (*masks, masks.any(0)))
        assert (out / "sheet.png").is_file()


def test_drawing_is_diffusers(tiny_inpainting):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    folder, (unet, vae, text_encoder, scheduler) = tiny_inpainting
    config, _ = parse_config(
        (
            *("--config", f"{RECIPE}:/nowhere", f"--config.pretrained.sd={folder}"),
            *("--config.model.unet.dtype=float32", "--config.compilation_cache="),
        )
    )
    model = weights.load_model(jax.eval_shape(lambda: make_model(config)), config, None)
    assert model.clip is None
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 32, 32, 3), np.uint8)
    mask = np.zeros((1, 32, 32), bool)
    mask[0, 6:20, 4:27] = True
    tokenizer = make_tokenizer(config)
    batch = make_batch(tokenizer, 77, image, mask, ["a red circle!"], guidance_scale=6.5, seeds=[3])
    process = make_process(config, "leading4+1", clean_end=config.diffusion.clean_end)
    ours = draw(model.sd, process, batch)

    pipeline = diffusers.StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    seen = torch.tensor(np.moveaxis(image / 127.5 - 1, -1, 1).copy(), dtype=torch.float32)
    inside = torch.tensor(mask[:, None], dtype=torch.float32)
    with torch.no_grad():
        texts = [
            text_encoder(torch.tensor(np.asarray(tokens)).long()).last_hidden_state
            for tokens in (batch.tokens, batch.empty)
        ]
        hidden = vae.encode(seen * (inside < 0.5)).latent_dist.mean * vae.config.scaling_factor
        noise = start_noise(jax.vmap(jax.random.key)(jnp.array([3])), (16, 16, 4))
        theirs = pipeline(
            image=seen,
            mask_image=inside,
            masked_image_latents=hidden,
            height=32,
            width=32,
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            latents=torch.tensor(np.moveaxis(np.asarray(noise), -1, 1).copy()),
            num_inference_steps=4,
            guidance_scale=7.5,
            strength=1.0,
            output_type="np",
        ).images
    worst = np.abs(np.asarray(ours, np.float32) / 255 - theirs).max()
    assert worst < 0.5 / 255 + 1e-4  # half a level of rounding


def test_the_published_text_tower():
    """Of 23 layers that end in the last norm, so that none is left out."""
    tower = {"text_width": 1024, "text_layers": 23, "activation": "gelu"}
    text = jax.eval_shape(lambda: TextTransformer(**tower, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in named_parameters(text).values()) == 340_387_840


# On scenes ---------------------------------------------------------------------------------------


def test_several_entities_and_whatever_changes_compile_nothing(opened, compilations):
    photo = scene_picture()
    first = asked(opened, entity=("triangle",), text=("a red star",), anyway=True)
    assert first.keys() == {"edited.png", "mask.png", "sheet.png"}
    assert first["edited.png"].settings["similarity"].startswith("triangle: ")
    compilations()
    both = asked(
        opened,
        image=scene_picture(index=5),
        entity=("circle", "background"),
        text=("a blue circle", "a dark background"),
        anyway=True,
        seed=7,
        guidance_scale=3.0,
        grow=0.0,
        feather=2.0,
    )
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 5:20] = 255
    masked = asked(opened, mask=mask, text=("a green heart",), no_paste=True)
    pasted = asked(opened, mask=mask, text=("a green heart",), grow=0.0)
    assert compilations() == 0, "another picture, word, mask, text or seed compiled something"
    edited, drawn = both["edited.png"].value, both["mask.png"].value[..., 0] == 255
    np.testing.assert_array_equal(edited[~drawn], scene_picture(index=5)[~drawn])
    outside = mask == 0
    np.testing.assert_array_equal(pasted["edited.png"].value[outside], photo[outside])
    assert (masked["edited.png"].value[outside] != photo[outside]).any()
    deep = grow(mask > 0, -4)
    assert (pasted["edited.png"].value[deep] == masked["edited.png"].value[deep]).mean() > 0.9


def test_examples_of_a_folder(opened, tmp_path):
    (tmp_path / "example_filenames.txt").write_text("a\n")
    (tmp_path / "a.txt").write_bytes(b"circle: a star\r\nbackground: a dark background\r\n")
    Image.fromarray(scene_picture()).save(tmp_path / "a.png")
    made = asked(opened, image=None, examples=str(tmp_path), anyway=True)
    assert {"a_00_edited.png", "a_01_mask.png"} <= made.keys()
    with pytest.raises(UserError, match="leave out --image"):
        asked(opened, examples=str(tmp_path))


BLACK = np.zeros((48, 48), np.uint8)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"image": None}, "--image is missing"),
        ({"text": None}, "--text is missing"),
        ({"entity": None}, "--entity is missing"),
        ({"text": ("a", "b")}, "1 --entity and 2 --text: give one text for each"),
        ({"text": ("red " * 40,)}, "has 40 tokens, but the model takes 23: shorten it"),
        ({"mask": BLACK}, "marks nothing: paint the object white"),
        ({"mask": np.full((30, 48), 255, np.uint8)}, "is 48×30 and the photograph"),
        ({"entity": ("a", "b"), "text": ("a", "b"), "mask": BLACK}, "--mask is of one entity"),
        ({"entities": "a.png", "mask": BLACK}, "--entities: --mask tells what would be found"),
        ({"anyway": True, "mask": BLACK}, "--anyway: --mask tells what would be found"),
        ({"anyway": False}, r"nothing in the picture fits .*add --anyway"),
        ({"entities": "nothing.json"}, "nothing.json does not exist"),
        ({"image": np.zeros((20, 20, 3), np.uint8)}, "smaller than 32×32"),
        ({"grow": -60.0}, "--grow=-60 leaves nothing of the mask"),
        ({"seed": 3_000_000_000}, "--seed=3000000000: give a number from 0"),
        ({"steps": "many"}, "steps='many'"),
        ({"sampler": "euler"}, "--sampler=euler: choose one of ddim"),
        ({"feather": -1.0}, "--feather=-1.0: give"),
    ],
)
def test_mistakes_in_one_line(opened, wanted, words):
    config, model = opened
    strict = config.copy_and_resolve_references()
    strict.alignment.thresholds.crops = 2.0  # nothing fits
    usual = {"entity": ("circle",), "text": ("a star",), "anyway": "mask" not in wanted}
    given = {**usual, **wanted}
    with pytest.raises(UserError, match=words) as error:
        asked((strict, model), **given)
    assert "\n" not in str(error.value)


def test_what_is_changed_though_it_does_not_fit_is_told(opened):
    config, model = opened
    strict = config.copy_and_resolve_references()
    strict.alignment.thresholds.crops = 2.0
    made = asked((strict, model), entity=("circle",), text=("a star",), anyway=True)
    assert "less than 2: it does not fit" in made["edited.png"].settings["similarity"]


def test_a_full_mask_and_a_speck(opened):
    whole = asked(opened, mask=np.full((48, 48), 255, np.uint8), text=("a star!",))
    assert (whole["edited.png"].value != scene_picture()).any(-1).mean() > 0.9
    speck = BLACK.copy()
    speck[5, 5] = 255  # no corner of a latent at the working size
    with pytest.raises(UserError, match=r"covers no latent .*grow it with --grow"):
        asked(opened, mask=speck, text=("a star",), grow=0.0)


def test_without_a_clip_a_mask_is_asked_for(opened):
    config, model = opened
    bare = copied(model)
    bare.clip = None
    with pytest.raises(UserError, match="no CLIP to find entities with: give"):
        asked((config, bare), entity=("circle",), text=("a star",))
    blind = config.copy_and_resolve_references()
    blind.data.name = "coco"
    with pytest.raises(UserError, match="give its entities with --entities=FILE, or"):
        asked((blind, model), entity=("circle",), text=("a star",))


def test_patches_need_no_entities(opened):
    """Neither in use nor where photographs without masks are judged."""
    config, model = opened
    blind = config.copy_and_resolve_references()
    blind.data.name, blind.alignment.by = "coco", "patches"
    request, photo = Request(anyway=True), scene_picture()
    (place,) = find_places(model, blind, request, photo, [Wish("circle", "a star")])
    assert place.mask.any()
    with pytest.raises(
        UserError, match=r"a\.png: config\.alignment\.by='patches' knows no entities"
    ):
        find_places(model, blind, Request(entities="a.png"), photo, [Wish("circle", "a star")])
    trials = object.__new__(evaluation._Trials)
    trials.model, trials.config, trials.judging, trials.oracle = model, blind, Judging(), False
    trials.tokenizer = make_tokenizer(blind)
    found = trials._found(Manipulation(photo, "circle", "a star", "", ""))
    np.testing.assert_array_equal(found, place.mask)


def test_the_sampler_of_the_config_draws_where_pictures_are_judged_and_shown(opened, monkeypatch):
    config, model = opened
    config = config.copy_and_resolve_references()
    config.samples.sampler, config.samples.count = "dpm_solver", 2
    asked = []

    def drawn(sd, process, batch, progress=None, *, sampler="ddim"):
        asked.append(sampler)
        return batch.image

    for module in (evaluation, training):
        monkeypatch.setattr(module, "draw", drawn)
    trials = evaluation._Trials(model, config, Judging(num_images=2, batch_size=2))
    trials.pictures(evaluation.BARE)
    training.manipulations(config)(model)
    assert asked == ["dpm_solver"] * 2


def test_long_texts_with_learnt_words_are_refused(opened):
    """A learnt word's index is above the end's."""
    tokenizer = make_tokenizer(opened[0]).with_word("<toy>", 702)
    image, mask = np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 32, 32), bool)
    with pytest.raises(UserError, match="has 31 tokens, but the model takes 23: shorten it"):
        make_batch(
            *(tokenizer, 25, image, mask, ["<toy> " + "red " * 30]), guidance_scale=1.0, seeds=[0]
        )


def test_a_base_that_does_not_fit_is_refused(tiny_inpainting, tiny_stable_diffusion, tmp_path):
    config, folder = tiny_config(), tiny_inpainting[0]
    with config.unlocked():
        config.pretrained.sd = str(folder)
    config.diffusion.prediction = "epsilon"
    config.pretrained.base = str(folder / "unet")
    with pytest.raises(UserError, match=r"base=.*unet has in_channels=9, but .* 4 is needed"):
        jax.eval_shape(lambda: make_model(config))
    shutil.copytree(tiny_stable_diffusion[0] / "unet", tmp_path / "unet")
    config.pretrained.base = str(tmp_path / "unet")
    assert jax.eval_shape(lambda: make_model(config)).base is not None
    (tmp_path / "scheduler").mkdir()
    scheduler = {"prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match=r"base=.*unet predicts 'v', but .* is 'epsilon': give"):
        jax.eval_shape(lambda: make_model(config))


def test_folders_that_do_not_inpaint_are_refused(tiny_stable_diffusion):
    config = tiny_config()
    config.pretrained.sd = str(tiny_stable_diffusion[0])
    with pytest.raises(UserError, match="takes 4 channels, but one that inpaints takes 9"):
        jax.eval_shape(lambda: make_model(config))


def test_every_way_to_align(opened):
    config, model = opened
    picture = scene_picture()
    masks = np.zeros((2, 48, 48), bool)
    masks[0, :24] = masks[1, 24:] = True
    tokenizer = make_tokenizer(config)
    for by in ("crops", "tokens", "patches"):
        found = Alignment(model, config, tokenizer, by=by)(picture, masks, "circle", anyway=True)
        assert found.mask.any()
        assert found.mask.shape == (48, 48)
        if by != "patches":
            assert any(np.array_equal(found.mask, mask) for mask in masks)
    with pytest.raises(UserError, match=r"alignment.by=words: choose one of crops"):
        Alignment(model, config, tokenizer, by="words")


def test_blending_keeps_the_latents_around(opened):
    """Of an empty mask all comes back, as through the autoencoder; else the rest may change."""
    config, model = opened
    image, mask = scene_picture(32)[None], np.zeros((1, 32, 32), bool)
    process, tokenizer = make_process(config, "leading2"), make_tokenizer(config)
    batch = make_batch(
        tokenizer, model.sd.tokens, image, mask, ["a star"], guidance_scale=2.0, seeds=[0]
    )
    kept = np.asarray(reconstruct(model.sd, image))
    np.testing.assert_array_equal(blend(model.sd, None, process, batch), kept)
    mask = jnp.zeros((1, 32, 32)).at[:, 8:24, 8:24].set(1.0)
    blended = np.asarray(blend(model.sd, None, process, batch._replace(mask=mask)))
    assert (blended != kept).any(-1)[0, 8:24, 8:24].mean() > 0.5


def test_finishing_keeps_the_outside():
    before = scene_picture()
    mask = np.zeros((48, 48), bool)
    mask[10:30, 10:30] = True
    made = finish(before, 255 - before, mask, 2.0)
    np.testing.assert_array_equal(made[~mask], before[~mask])
    np.testing.assert_array_equal(made[20, 20], 255 - before[20, 20])


# Training ----------------------------------------------------------------------------------------


def test_masks_of_training_cover_the_entity_and_hide_its_shape():
    config = tiny_config()
    tokenizer = make_tokenizer(config)
    fields = ("image", "captions", "masks", "class_ids", "background")
    scenes = Scenes(size=40, image_size=32, sizes=("large",), max_objects=2, fields=fields)
    rng = np.random.default_rng(0)
    transform, whole = manipulated(tokenizer, 25, 0.25), []
    for example in scenes:
        made = transform(example, rng)
        whole.append(made["mask"].all())
        text = tokenizer.decode(made["tokens"][None])[0]
        entities = named_entities(example)
        if not whole[-1]:
            named = [mask for names, mask in entities if names[1] in text]
            assert named
            assert all(made["mask"][mask].all() for mask in named)
        mask = entities[0][1]
        assert loose(mask, rng)[mask].all()
    assert 0.1 < np.mean(whole) < 0.5


def test_stages_are_refused_where_they_cannot_be():
    config = tiny_config()
    config.diffusion.text_dropout = 1.5
    with pytest.raises(UserError, match=r"text_dropout=1.5 is no share"):
        stages(config)
    config.data.name = "cub"
    with pytest.raises(UserError, match="is not trained on photographs"):
        stages(config)
    config.pretrained.sd = "somewhere"
    assert stages(config) == []


# Judging -----------------------------------------------------------------------------------------


def test_the_tables(opened):
    config, model = opened
    report = SYSTEM.judge(model, config, Judging(num_images=6, batch_size=4))
    tables = report.tables()
    assert set(tables) == {SCENES, PLACES, ALIGNED, TABLE_1, TABLE_2}
    scenes = {row["method"]: row for row in tables[SCENES]}
    assert scenes["nothing edited"]["as asked"] == 0
    assert scenes["nothing edited"]["PSNR outside"] == 99
    assert scenes["SeMani-Diff"]["kept bit for bit outside"] == 100
    bare = scenes["SeMani-Diff, nothing pasted back (published)"]
    assert bare["kept bit for bit outside"] < 100
    assert len(tables[ALIGNED]) == 4
    ours = next(row for row in tables[TABLE_1] if row["source"] == "here")
    assert ours["L2"] < ours["L2 floor"]
    assert {"CLIP-score", "R@10", "chance"} <= ours.keys()
    assert report.figures["manipulations"].dtype == np.uint8


def test_a_published_clip_judges_where_it_knows_the_tokens(opened, tmp_path, monkeypatch):
    """Here a small one in the place of RN50, which knows other ones than scenes have."""
    file, tokenizer = tmp_path / "rn50.safetensors", make_tokenizer(opened[0])
    with pytest.raises(UserError, match=r"knows 49408 tokens, .* has 702: give a folder of a CLIP"):
        judging_clip(file, tokenizer)
    monkeypatch.setitem(PUBLISHED, "RN50", TOWER)
    pretrained.save(CLIP(**TOWER, rngs=nnx.Rngs(2)), file)
    found, reader = judging_clip(file, tokenizer)
    assert found.visual.image_size == 16
    assert reader is tokenizer


def test_files_that_judge_are_opened_before_anything_is_drawn(opened, monkeypatch):
    config, model = opened
    for name in ("draw", "blend", "reconstruct"):
        monkeypatch.setattr(evaluation, name, None)
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        SYSTEM.judge(model, config, Judging(num_images=2, inception="nowhere.pth"))


@pytest.mark.slow
def test_photographs_are_judged_by_the_masks_they_come_with(published, tmp_path):
    (tmp_path / "annotation_images").mkdir()
    told = {}
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (512, 512, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "annotation_images" / f"{i}.jpg")
        told[str(i)] = {
            "image_path": f"{i}.jpg",
            "original_prompt": "a [cat]",
            "editing_prompt": "a [red dog]",
            "editing_type_id": "1",
            "blended_word": "cat dog",
            "mask": [512 * 200, 512 * 100],
        }
    (tmp_path / "mapping_file.json").write_text(json.dumps(told))
    flags = ("--config.data.name=pie_bench", f"--config.data.path={tmp_path}")
    config, _ = parse_config((*published, *flags, "--config.samples.steps=leading2+1"))
    model = weights.load_model(jax.eval_shape(lambda: make_model(config)), config, None)
    report = SYSTEM.judge(model, config, Judging(num_images=2, batch_size=2))
    assert set(report.tables()) == {TABLE_1, TABLE_2}
    ours = [row for row in report.rows if row.source == "here"]
    assert [row.method for row in ours][-1] == "nothing edited"
    assert all(row.values["chance"] == 100 for row in ours)


def test_a_scene_manipulation_is_judged_by_its_own_words():
    one = next(iter(scene_manipulations(Scenes(size=1, image_size=32), ("colour",))))
    assert one.own_text == f"a {one.truth.before.objects[one.truth.changed[0]].name}"
