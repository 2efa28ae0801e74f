"""Every recipe's programs can be lowered for CUDA and for TPUs, the published ones included.

By default the gradient of every stage of each system: on scenes, and of VOI as published, whose
attention is masked and in bfloat16, with one layer of its six (25 seconds of one core in all). With
the slow ones the whole step of every stage of every recipe, and requests at the published sizes.
"""

import importlib
import io
import json
import pickle
from pathlib import Path

import jax
import lmdb
import numpy as np
import pytest
from PIL import Image

from tests.lowering import PLATFORMS, lower, lower_gradient, lower_instead, lower_step
from vljax.data.dialogues import CANVAS, SceneDialogues
from vljax.data.pictures import geneva
from vljax.data.scenes import Scenes
from vljax.data.text.tokenizers import train_tokenizer
from vljax.data.text.vocabulary import learn_words
from vljax.diffusion.process import make_process
from vljax.doors import parse_config
from vljax.systems import load_system, semani_diff, semani_trans, shape_guided
from vljax.systems.captioner import method as captioner
from vljax.systems.cdd_icm import method as cdd_icm
from vljax.systems.pjx import method as pjx
from vljax.systems.pjx.words import open_words
from vljax.systems.sdg import method as sdg
from vljax.systems.shape_guided.batch import Wish, make_batch
from vljax.systems.shape_guided.method import generate, invert
from vljax.systems.shape_guided.model import make_tokenizer
from vljax.systems.text2image import families as text2image
from vljax.systems.voi import use as voi
from vljax.training.weights import stages_to_train

ROOT = Path(__file__).parents[2]
SMALL = (
    *("sdg_ffhq", "shape_guided_coco", "voi_coco", "voi_order_recovery", "cdd_icm_iclevr"),
    *("pjx_vqax", "pjx_certified", "pjx_actx", "semani_diff_coco", "semani_trans_cub"),
    *("captioner_coco", "text2image_coco", "text2image_pixels_coco", "text2image_tokens_coco"),
    *("text2image_vqvae_coco", "text2image_pixelcnn_coco"),
    *("text2image_variational_coco", "text2image_adversarial_coco", "text2image_unclip_coco"),
    *("text2image_upsampled_coco", "text2image_stacked_coco"),
    *("text2image_inversion_folder", "text2image_dreambooth_folder"),
)
# The published recipes of Shape-Guided and SeMani-Diff train nothing.
PUBLISHED = (
    *("sdg_ffhq", "sdg_lsun", "voi_coco", "voi_django", "voi_gigaword", "voi_wmt16"),
    *("cdd_icm_iclevr", "pjx_vqax", "semani_trans_cub", "captioner_coco"),
)


def pictures(folder):
    folder.mkdir()
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(folder / "picture.png")


def lsun(folder):
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as write:
        encoded = io.BytesIO()
        Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(encoded, "WEBP")
        write.put(b"0" * 40, encoded.getvalue())


def pairs(folder):
    """As in Django's files and in those that a distilled data set leaves."""
    folder.mkdir()
    for side in ("src", "tgt"):
        for split in ("train", "dev"):
            (folder / f"{side}_raw_{split}.txt").write_text("a line of words\n", "utf-8")
    learn_words(["a line of words"]).save(folder / "vocabulary.json")


def captions(folder):
    """One picture of five regions, 512 numbers each as of the published detector."""
    (folder / "captions").mkdir(parents=True)
    (folder / "captions" / "picture.txt").write_text("a line of words\n" * 5, "utf-8")
    (folder / "features").mkdir()
    regions = {"features": np.zeros((5, 512), np.float32), "boxes": np.ones((5, 4), np.float32)}
    np.savez(folder / "features" / "picture.npz", **regions)


def dialogues(folder):
    """Two dialogues of scenes as i-CLEVR's files, and a tokenizer beside them."""
    pytest.importorskip("h5py")
    scenes = SceneDialogues(Scenes(size=2, image_size=128), CANVAS)
    for split in ("train", "val", "test"):
        geneva.write(folder / f"clevr_{split}.h5", scenes)
    train_tokenizer(["a line of words"], 520).save(folder / "tokenizer.json")


def questions(folder):
    """A question of VQA v2, explained, and the features of its picture as published."""
    (folder / "Features").mkdir(parents=True)
    names = ("v2_OpenEnded_mscoco_{}_questions", "v2_mscoco_{}_annotations")
    answers = [{"answer": "yes"}] * 10
    for split, subset in (("train", "train2014"), ("test", "val2014")):
        one = {"question_id": 1000, "image_id": 1, "question": "is it?", "answers": answers}
        for name, key in zip(names, ("questions", "annotations"), strict=True):
            (folder / f"{name.format(subset)}.json").write_text(json.dumps({key: [one]}))
        (folder / f"{split}_exp_anno.json").write_text('{"1000": ["because it is"]}')
        features = folder / "Features" / f"COCO_{subset}_000000000001.jpg.npz"
        np.savez(features, x=np.zeros((2048, 14, 14), np.float32))


def birds(folder):
    """A bird of CUB with its captions, in both splits, and a tokenizer beside."""
    for name in ("images", "text", "train", "test"):
        (folder / name / ("001.Gull" if name in ("images", "text") else "")).mkdir(parents=True)
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(folder / "images/001.Gull/one.jpg")
    (folder / "text/001.Gull/one.txt").write_text("a line of words\n" * 10)
    for split in ("train", "test"):
        names = pickle.dumps(["001.Gull/one"], protocol=0)
        (folder / split / "filenames.pickle").write_bytes(names)
    train_tokenizer(["a line of words"], 520).save(folder / "tokenizer.json")


def photographs(folder):
    """A photograph's captions and features, as many as of the published ResNet."""
    (folder / "features").mkdir(parents=True)
    one = {"image_id": 1, "caption": "a line of words"}
    told = {"images": [{"id": 1, "file_name": "picture.jpg"}], "annotations": [one]}
    (folder / "annotations").mkdir()
    for split in ("train2014", "val2014"):
        (folder / "annotations" / f"captions_{split}.json").write_text(json.dumps(told))
    features = np.zeros((2048, 14, 14), np.float32)
    np.savez(folder / "features" / "picture.jpg.npz", x=features)


DATA = {
    "semani_trans_cub": birds,
    "captioner_coco": photographs,
    "pjx_vqax": questions,
    "sdg_ffhq": pictures,
    "sdg_lsun": lsun,
    "voi_coco": captions,
    "cdd_icm_iclevr": dialogues,
}


@pytest.fixture
def opened(request, tmp_path, monkeypatch):
    """A recipe's config, system, and model in shapes: small, published, or that of few layers."""
    kind, name = request.param
    flags = ["--config", str(ROOT / "configs" / f"{name}.py")]
    if kind != "small":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        DATA.get(name, pairs)(tmp_path / "cat")
        flags[1] += f":{tmp_path / 'cat'}"
        if name.startswith("sdg"):
            flags.append("--config.pretrained.clip=clip.pt")
        if name.startswith(("cdd_icm", "semani_trans")):
            flags.append(f"--config.tokenizer={tmp_path / 'cat' / 'tokenizer.json'}")
    if kind == "shallow":
        flags.append("--config.model.layers=1")
    config, _ = parse_config(flags)
    system = load_system(config.system)
    return config, system, jax.eval_shape(lambda: system.make_model(config))


def cases(kind, *recipes, slow):
    marks = [pytest.mark.slow] if slow else []
    return [pytest.param((kind, name), marks=marks, id=f"{kind} {name}") for name in recipes]


def is_fused(lowered):
    """Whether CUDA gets cuDNN's attention."""
    assert lowered.keys() == set(PLATFORMS)
    return "@__cudnn$fmha" in lowered["cuda"].as_text()


@pytest.mark.parametrize(
    "opened",
    cases("small", "sdg_ffhq", "shape_guided_coco", "pjx_vqax", "semani_diff_coco", slow=False)
    + cases("small", "captioner_coco", "text2image_adversarial_coco", slow=False)
    + cases("small", "semani_trans_cub", slow=False)
    + cases("shallow", "voi_django", slow=False),
    indirect=True,
)
def test_gradients_of_every_stage(opened):
    """Of stages that differ in a term of the loss only, the last."""
    config, system, skeleton = opened
    alike = {"semani_trans": ("autoencoder", "pretrain", "plain", "language")}
    covered = alike.get(config.system, ())
    stages = [stage for stage in system.stages(config) if stage.name not in covered]
    assert stages
    for stage in stages:
        fused = is_fused(lower_gradient(stage, skeleton, config))
        assert fused == (config.model.get("dtype") == "bfloat16"), stage.name


@pytest.mark.parametrize(
    "opened",
    cases("small", *SMALL, slow=True) + cases("published", *PUBLISHED, slow=True),
    indirect=True,
)
def test_steps_of_every_stage(opened, request):
    config, system, skeleton = opened
    stages = stages_to_train(system.stages(config), skeleton, config)
    assert stages
    for stage in stages:
        fused = is_fused(lower_step(stage, skeleton, config))
        published = "published" in request.node.callspec.id
        assert fused == (published and config.system not in ("pjx", "captioner")), stage.name


@pytest.mark.parametrize(
    "opened",
    cases("small", "sdg_ffhq", slow=False) + cases("published", "sdg_ffhq", slow=True),
    indirect=True,
)
def test_pictures_under_every_guidance_of_sdg(opened, monkeypatch):
    config, _, skeleton = opened
    lowered = lower_instead(monkeypatch, sdg, "_draw")
    size = config.data.image_size
    picture = np.zeros((1, size, size, 3), np.uint8)
    tokens = np.zeros((1, config.model.clip.context_length), np.int32)
    request = dict.fromkeys(sdg.ASPECTS, (picture, 1.0)) | {"text": (tokens, 1.0)}
    keys = jax.random.split(jax.random.key(0), 4)
    made = sdg.Drawing(config, "ddpm", "4")(skeleton, keys, request, (picture, 8))
    assert made.shape == (4, size, size, 3)
    (program,) = lowered
    assert is_fused(program) == (config.model.diffusion.dtype == "bfloat16")


@pytest.mark.parametrize(
    "opened",
    cases("small", "cdd_icm_iclevr", slow=False) + cases("published", "cdd_icm_iclevr", slow=True),
    indirect=True,
)
def test_turns_of_cdd_icm(opened, monkeypatch):
    """Under both guidances, of two candidates."""
    config, _, skeleton = opened
    lowered = lower_instead(monkeypatch, cdd_icm, "_draw")
    size, length = config.data.image_size, config.model.clip.context_length
    reference, tokens = np.zeros((2, size, size, 3), np.uint8), np.zeros((2, length), np.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    made = cdd_icm.Drawing(config, steps="4", candidates=2).turn(
        skeleton, keys, 1, reference, tokens
    )
    assert made.pictures.shape == reference.shape
    (program,) = lowered
    assert is_fused(program) == (config.model.diffusion.dtype == "bfloat16")


@pytest.mark.parametrize(
    "opened",
    cases("small", "voi_coco", slow=False) + cases("published", "voi_django", slow=True),
    indirect=True,
)
def test_requests_of_voi(opened, monkeypatch):
    config, _, skeleton = opened
    one = {"num_examples": 1, "batch_size": 1}
    for name, asked in (
        ("search", {"beams": 4}),
        ("_sample", {"sample": True}),
        ("_search_order", {"target": "a line of words", "beams": 4}),
    ):
        lowered = lower_instead(monkeypatch, voi, name)
        written, _ = voi.generate(skeleton, config, voi.Request(**one, **asked))
        assert written.name == "written.json"
        (program,) = lowered
        assert is_fused(program) == (config.model.dtype == "bfloat16"), name


@pytest.mark.parametrize(
    "opened",
    cases("small", "shape_guided_coco", slow=False)
    + cases("published", "shape_guided_coco", slow=True),
    indirect=True,
)
def test_edits_of_shape_guided(opened):
    config, _, skeleton = opened
    sd, side = skeleton.sd, config.data.image_size
    image, shape = np.zeros((1, side, side, 3), np.uint8), np.ones((1, side, side), bool)
    tokenizer = make_tokenizer(shape_guided.get_config())
    batch = make_batch(tokenizer, sd.tokens, image, shape, [Wish("a circle", "a star")])
    process = make_process(config, "leading4")
    latents = jax.eval_shape(lambda sd: sd.encode(np.zeros(image.shape, np.float32)), sd)
    inverted = jax.ShapeDtypeStruct((5, *latents.shape), np.float32)
    for program, given in ((invert, ()), (generate, (inverted,))):
        fused = is_fused(lower(program, sd, process, batch, *given))
        assert fused == (config.model.unet.dtype == "bfloat16")


@pytest.mark.parametrize(
    "opened",
    cases("small", "semani_diff_coco", slow=False)
    + cases("published", "semani_diff_coco", slow=True),
    indirect=True,
)
def test_manipulations_of_semani_diff(opened):
    config, _, skeleton = opened
    sd, side = skeleton.sd, config.data.image_size
    image, mask = np.zeros((1, side, side, 3), np.uint8), np.ones((1, side, side), bool)
    tokenizer = semani_diff.model.make_tokenizer(semani_diff.get_config())
    batch = semani_diff.method.make_batch(
        tokenizer, sd.tokens, image, mask, ["a star"], guidance_scale=2.0, seeds=[0]
    )
    process = make_process(config, "leading4")
    for program, given in (
        (semani_diff.method.draw, (sd,)),
        (semani_diff.method.blend, (sd, None)),
    ):
        fused = is_fused(lower(program, *given, process, batch))
        assert fused == (config.model.unet.dtype == "bfloat16")


@pytest.mark.parametrize(
    "opened",
    cases("small", "pjx_vqax", slow=False) + cases("published", "pjx_vqax", slow=True),
    indirect=True,
)
def test_explanations_of_pjx(opened):
    config, _, skeleton = opened
    words = open_words(config)
    source = pjx.open_examples(config, held_out=True)
    arrays = [pjx.read_example(config, words, source[0])]
    for how in ({}, {"beams": 3}, {"temperature": 0.7, "top_p": 0.9}):
        with pytest.MonkeyPatch.context() as patch:
            lowered = lower_instead(patch, pjx, "explain")
            found = pjx.explain_batch(skeleton, config, words, arrays, [-1], **how)
        assert found.tokens.shape == (1, config.data.max_words)
        (program,) = lowered
        assert not is_fused(program)


@pytest.mark.parametrize(
    "opened",
    cases("small", "semani_trans_cub", slow=False)
    + cases("published", "semani_trans_cub", slow=True),
    indirect=True,
)
def test_manipulations_of_semani_trans(opened):
    """Both ways of drawing codes, what reads a picture and what shows one."""
    config, _, skeleton = opened
    method, side = semani_trans.method, config.data.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    known = jax.eval_shape(method.read, skeleton, image)
    assert not is_fused(lower(method.read, skeleton, image))
    assert not is_fused(lower(method.show, skeleton, known.codes))
    text = jax.ShapeDtypeStruct((1, config.model.transformer.text_length), np.int32)
    edited = jax.ShapeDtypeStruct(known.codes.shape, bool)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    keeps = jax.ShapeDtypeStruct((1,), bool)
    how = method.How(np.float32(1), np.int32(8), np.float32(1))
    for network, passes in (("transformer", 0), ("parallel", 4)):
        given = (skeleton, known, text, edited, keys, keeps, how, network, passes)
        # A mask that differs by row is none that cuDNN's kernel takes.
        lower(method.draw, *given)


@pytest.mark.parametrize(
    "opened",
    cases("small", "captioner_coco", slow=False) + cases("published", "captioner_coco", slow=True),
    indirect=True,
)
def test_captions_of_captioner(opened):
    config, _, skeleton = opened
    source = captioner.open_examples(config, held_out=True)
    arrays = [captioner.read_example(config, source[0])]
    for how in ({}, {"beams": 3}):
        with pytest.MonkeyPatch.context() as patch:
            lowered = lower_instead(patch, captioner, "write")
            found = captioner.write_batch(skeleton, config, arrays, **how)
        assert found.tokens.shape == (1, config.data.max_words + 1)
        (program,) = lowered
        assert not is_fused(program)


@pytest.mark.parametrize(
    "opened",
    cases("small", "text2image_pixels_coco", slow=False)
    + cases(
        *("small", "text2image_coco", "text2image_tokens_coco"),
        *("text2image_vqvae_coco", "text2image_pixelcnn_coco"),
        *("text2image_variational_coco", "text2image_adversarial_coco"),
        "text2image_unclip_coco",
        slow=True,
    ),
    indirect=True,
)
def test_pictures_of_text2image(opened, monkeypatch):
    config, _, skeleton = opened
    module = importlib.import_module(f"vljax.systems.text2image.families.{config.family}")
    lowered = lower_instead(monkeypatch, module, "draw_batch")
    if config.family == "unclip":
        lower_instead(monkeypatch, module, "predict")
    wish = text2image.Wish(("a red star",) * 2, (0, 1), steps="leading4").filled(config)
    side = config.data.image_size
    made = text2image.FAMILIES[config.family].draw(skeleton, config, wish, None)
    assert made.shape == (2, side, side, 3)
    (program,) = lowered
    assert not is_fused(program)
