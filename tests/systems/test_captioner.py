"""The captioner: its doors on scenes, and the form of COCO."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, pretrained
from vljax.data.scenes.truth import named_pairs
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.marks import END, PAD, START
from vljax.models.parameters import named_parameters
from vljax.systems import captioner
from vljax.systems.captioner import method
from vljax.systems.captioner.method import attention_strip, open_examples, words_of
from vljax.systems.captioner.training import caption_transform
from vljax.systems.captioner.words import open_words

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs" / "captioner_coco.py")
SMALL = (
    *("--config.data.image_size=24", "--config.data.scenes.size=64"),
    *("--config.model.trunk.width=16", "--config.model.embedding=8", "--config.model.hidden=8"),
    *("--config.model.attention=8", "--config.log.pictures_every=0", "--config.data.workers=0"),
    "--config.compilation_cache=",
)


def config_of(*flags):
    return parse_config(("--config", RECIPE, *SMALL, *flags))[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Flags of the small recipe with all its parts, as they begin, given as files."""
    folder = tmp_path_factory.mktemp("captioner")
    config = config_of()
    model = jax.jit(lambda: captioner.make_model(config))()
    flags = ["--config", RECIPE, *SMALL]
    for part in config.pretrained:
        pretrained.save(getattr(model, part), folder / f"{part}.safetensors")
        flags.append(f"--config.pretrained.{part}={folder / part}.safetensors")
    return flags


def picture(folder, colour):
    path = folder / f"{colour}.png"
    Image.new("RGB", (31, 40), colour).save(path)
    return str(path)


def test_another_picture_or_another_way_to_draw_compiles_nothing(weights, tmp_path, compilations):
    def ask(colour, *flags):
        out = tmp_path / "out"
        argv = (*weights, "--out", str(out), "--image", picture(tmp_path, colour))
        assert generate.main((*argv, *flags)) == 0
        (told,) = json.loads((out / "captions.json").read_text())
        return told, out

    told, out = ask("red")
    assert told["log_prob"] < 0
    assert all(0 < gate < 1 for _, gate in told["gates"])
    assert [word for word, _ in told["gates"]] == told["caption"].split()
    with Image.open(out / "attention_0.png") as strip:
        assert strip.text["caption"] == told["caption"]
    ask("blue")
    compilations()
    ask("green")
    drawn, _ = ask("blue", "--temperature", "1.5", "--seed", "3")
    assert drawn["caption"] != ask("blue")[0]["caption"]
    one, _ = ask("blue", "--temperature", "1", "--top_k", "1")
    assert one["caption"] == ask("blue", "--temperature", "1", "--top_p", "1e-6")[0]["caption"]
    assert one["caption"] == ask("blue")[0]["caption"]
    assert compilations() == 0


def test_held_out_pictures_are_described_without_attention_too(weights, tmp_path):
    argv = (*weights, "--out", str(tmp_path), "--num_examples", "1")
    assert generate.main((*argv, "--attention", "none")) == 0
    (told,) = json.loads((tmp_path / "captions.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"captions.json", "captions.png"}
    assert len(told["people"]) == 5
    assert told.keys() == {"caption", "log_prob", "people"}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--beams", "2", "--temperature", "1"), "--beams=2 searches and --temperature=1 draws"),
        (("--top_p", "0.9"), "--top_p=0.9 limits what is drawn, and nothing is"),
        (("--top_k", "5", "--beams", "2"), "--top_k=5 limits what is drawn, and nothing is"),
        (("--image", "absent.png"), "absent.png"),
        (("--image", "absent.png", "--num_examples", "2"), "leave one out"),
    ],
)
def test_bad_requests_are_named(weights, tmp_path, flags, problem):
    with pytest.raises(UserError, match=problem):
        generate.main((*weights, "--out", str(tmp_path), *flags))


def test_bad_fields_are_named_before_anything_is_made():
    for flag, problem in (
        ("--config.penalty=-1.0", "penalty=-1.0: give 0 or more"),
        ("--config.data.max_words=0", "data.max_words=0: give 1 or more"),
        ("--config.model.trunk.kind=resnet50", "stages.recognise: .* has nothing to learn there"),
        ("--config.data.features=made", "makes features to keep only with published weights"),
    ):
        with pytest.raises(UserError, match=problem):
            captioner.stages(config_of(flag))
    config = config_of()
    config.unlock()
    config.stages.explain = config.stages.caption
    with pytest.raises(UserError, match="choose one of 'recognise', 'caption', 'caption_without"):
        captioner.stages(config)


def test_only_what_is_trained_or_given_is_there():
    config = config_of()
    config.unlock()
    del config.stages["caption_without_attention"]
    model = jax.eval_shape(lambda: captioner.make_model(config))
    assert {name.partition(".")[0] for name in named_parameters(model)} == {
        *("trunk", "recogniser", "soft")
    }
    with pytest.raises(UserError, match="--attention=none: this run trained no such captioner"):
        list(captioner.generate(model, config, captioner.Request(attention="none")))
    del config.stages["recognise"]
    (stage,) = captioner.stages(config)
    assert [pattern for pattern, _ in stage.train] == [r"soft\.", r"trunk\."]


def test_a_caption_is_read_and_written_one_word_apart():
    config = config_of("--config.data.max_words=6")
    words = open_words(config)
    example = {"image": np.zeros((30, 20, 3), np.uint8), "captions": ["A red star, left of a hat."]}
    arrays = caption_transform(config, words)(example, np.random.default_rng(0))
    assert arrays["image"].shape == (24, 24, 3)
    assert words.tokens(arrays["read"]) == ["<start>", *(["a", "red", "star", ",", "left", "of"])]
    assert words.tokens(arrays["written"]) == [*(["a", "red", "star", ",", "left", "of", "a"])]
    example["captions"] = ["a hat"]
    arrays = caption_transform(config, words)(example, np.random.default_rng(0))
    assert arrays["written"].tolist()[1:] == [3, END, PAD, PAD, PAD, PAD]
    assert arrays["read"].tolist() == [START, arrays["written"][0], 3, PAD, PAD, PAD, PAD]


def test_attention_word_by_word():
    attention = np.zeros((3, 2, 2), np.float32)
    attention[0, 0, 0] = attention[1, 1, 1] = 1
    image = np.full((10, 20, 3), 128, np.uint8)
    strip = attention_strip(image, ["a", "star"], attention, np.array([0.5, 1, 0]), side=32)
    assert strip.shape == (20 + 32 + 4, 3 * 34 + 2, 3)
    tiles = [strip[22:54, 2 + 34 * i : 34 + 34 * i].mean(-1) for i in range(3)]
    assert (tiles[0] == 128).all()
    assert tiles[1][:8, :8].mean() > tiles[1][24:, 24:].mean() + 50
    assert tiles[2][24:, 24:].mean() > tiles[2][:8, :8].mean() + 50


@pytest.fixture(scope="module")
def judged(weights, tmp_path_factory):
    """What `evaluate` leaves: rows by table, method and source, notes, and names of pictures."""
    folder = tmp_path_factory.mktemp("judged")
    flags = ("--num_examples", "6", "--batch_size", "1", "--copied", "12")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: None)  # METEOR would start Java
        assert evaluate.main((*weights, "--out", str(folder), *flags)) == 0
    told = json.loads((folder / "results.json").read_text())
    rows = {
        (table, row["method"], row["source"]): row
        for table in told["tables"]
        for row in told["tables"][table]
    }
    return rows, told["notes"], {path.name for path in folder.glob("*.png")}


def test_the_papers_table_and_what_is_true(judged):
    rows, notes, _ = judged
    assert notes["pictures"] == 6
    assert "Java" in notes["meteor not computed"]
    ours = {
        method: row
        for (table, method, source), row in rows.items()
        if table == "captions" and source == "here"
    }
    assert len(ours) == 7
    for row in ours.values():
        assert {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"} <= row.keys()
        assert row["BLEU-1"] >= row["BLEU-2"] >= row["BLEU-3"] >= row["BLEU-4"]
        if row["pairs a caption"]:  # of no pairs there is no share
            assert 0 <= row["true pairs"] <= 100
        else:
            assert row["true pairs"] is None
    for who in ("soft attention", "without attention"):
        assert ours[f"{who}, beam of 3"]["log p"] >= ours[who]["log p"] - 1e-3
    copied = ours["copied from the nearest training picture"]
    assert copied["pairs a caption"] >= 1  # a person's captions name what is there
    assert copied["CIDEr"] > 20
    paper = rows["captions", "soft attention", "Show, Attend and Tell, table 1"]
    assert (paper["BLEU-4"], paper["METEOR"]) == (24.3, 23.9)


def test_where_was_looked(judged):
    """Of captions that are true: an even map has the mass of the object's area."""
    rows, _, pictures = judged
    assert "figure_3_attention_0.png" in pictures
    assert {
        ("attention on an object", f"while its {kind} is written", "here")
        for kind in ("noun", "colour")
    } <= rows.keys()
    evaluation = captioner.evaluation
    config = config_of()
    words, source = open_words(config), open_examples(config, ("captions",), held_out=True)
    texts = [source[i]["captions"][0] for i in range(4)]
    length = config.data.max_words + 1
    tokens = np.full((4, length), PAD)
    for row, text in zip(tokens, texts, strict=True):
        ids = [*words.encode(text), END]
        row[: len(ids)] = ids
    scenes = [source.scene(i) for i in range(4)]
    arrays = [{"image": source[i]["image"]} for i in range(4)]
    even = np.full((4, length, 6, 6), 1 / 36, np.float32)
    written = evaluation.Written(tokens, np.zeros(4), even, np.ones((4, length)))
    for row in evaluation._looked_at(words, arrays, scenes, written):
        assert row.values["n"] == sum(len(scene.objects) for scene in scenes)
        assert row.values["mass / area"] == pytest.approx(1, rel=1e-6)
    # All of it on the object of the word that is written.
    for i, scene in enumerate(scenes):
        shown = dict(
            zip((it.name for it in scene.objects), evaluation.masks(scene, 24), strict=True)
        )
        for one in named_pairs(words_of(words, tokens[i])):
            mask = shown[f"{one.colour} {one.shape}"].reshape(6, 4, 6, 4).mean((1, 3))
            even[i, one.place] = mask == mask.max()
    noun, colour = evaluation._looked_at(words, arrays, scenes, written)
    assert noun.values["mass / area"] > 2
    assert colour.values["mass / area"] == pytest.approx(1, rel=1e-6)


# The form of COCO ------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path):
    """Karpathy's file of splits, and features of four pictures that are not there."""
    images = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "split": split,
            "sentences": [{"raw": f"A cat and\n {n} dogs."} for n in ("two", "three")],
        }
        for i, split in enumerate(("train", "train", "val", "test"))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    (tmp_path / "features").mkdir()
    for i, image in enumerate(images):
        features = np.random.default_rng(i).standard_normal((6, 3, 3))
        np.savez(tmp_path / "features" / f"{image['filename']}.npz", x=features.astype(np.float32))
    return tmp_path


def test_the_form_of_coco_from_captions_to_scores(coco, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    own = [flag for flag in SMALL if "scenes" not in flag and "trunk" not in flag]
    flags = (
        *("--config", f"{RECIPE}:{coco}", *own, "--config.data.split=train"),
        *("--config.data.eval_split=test", "--config.model.trunk.channels=6"),
        *("--config.data.max_words=8", "--config.model.dtype=float32"),
    )
    config, _ = parse_config(flags)
    (stage,) = captioner.stages(config)
    assert len(stage.source) == 2
    arrays = stage.transform(stage.source[1], np.random.default_rng(0))
    assert arrays["features"].shape == (3, 3, 6)
    words = open_words(config)
    assert words.decode(arrays["written"]) in ("a cat and two dogs .", "a cat and three dogs .")

    model = jax.jit(lambda: captioner.make_model(config))()
    assert model.none is None
    judging = captioner.evaluation.Judging(num_examples=2, batch_size=1, beams=1)
    report = captioner.SYSTEM.judge(model, config, judging)
    assert report.notes["pictures"] == 1
    assert report.rows[0].method == "soft attention"
    assert "CIDEr" in report.rows[0].values
    assert "true pairs" not in report.rows[0].values
    (told,) = captioner.generate(model, config, captioner.Request(num_examples=1))
    (caption,) = json.loads(told.value)
    assert caption["people"] == ["A cat and two dogs.", "A cat and three dogs."]
    known = ("a", "cat", "and", "two", "three", "dogs", ".")
    assert {*caption["caption"].split()} <= {*known}
    with pytest.raises(UserError, match="this model reads features that were made once"):
        list(captioner.generate(model, config, captioner.Request(image="red.png")))
    (coco / "features" / "COCO_val2014_000000000003.jpg.npz").unlink()
    with pytest.raises(UserError, match=r"1 of 1 photographs have no features in .*features"):
        open_examples(config, held_out=True)


def test_a_published_trunk_makes_the_features_of_the_photographs_that_lack_them(coco, monkeypatch):
    """Who makes them is tested with PJ-X's; here, of which photographs, and that they are read."""
    config, _ = parse_config(
        (
            *("--config", f"{RECIPE}:{coco}", "--config.data.split=train+val"),
            *("--config.model.trunk.kind=resnet152", "--config.pretrained.trunk=resnet.pth"),
            f"--config.data.features={coco / 'made'}",
        )
    )
    (coco / "val2014").mkdir()
    for i in range(3):
        picture(coco / "val2014", "red")
        (coco / "val2014" / "red.png").rename(coco / f"val2014/COCO_val2014_{i:012d}.jpg")
    asked = []

    def keep(folder, find, trunk, weights, size):
        asked.append((trunk.kind, weights, size))
        Path(folder).mkdir()
        for name, file in find().items():
            assert file.is_file()
            np.savez(Path(folder) / f"{name}.npz", x=np.ones((5, 2, 3), np.float32))

    monkeypatch.setattr(method, "keep_features", keep)
    source = open_examples(config, ("captions",))
    assert asked == [("resnet152", "resnet.pth", 448)]
    assert len(source) == 3
    assert source[2]["features"].shape == (5, 2, 3)
    assert method.read_example(config, source[2])["features"].shape == (2, 3, 5)
