"""The system PJ-X: the published networks in PyTorch, its doors on scenes, the real samples."""

import csv
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.pretrained.test_caffemodel import layer
from vljax import evaluate, generate, pretrained, train
from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.features import compute_features
from vljax.data.text.published import pjx_words
from vljax.data.text.vqa import open_asked, read_nlx
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.metrics.text import text_scores
from vljax.models.parameters import variables
from vljax.models.trunk import Convolutions
from vljax.systems import pjx
from vljax.systems.pjx import evaluation
from vljax.systems.pjx.method import open_examples, read_example
from vljax.systems.pjx.model import answer, features_of
from vljax.systems.pjx.probing import open_judged
from vljax.systems.pjx.words import open_words
from vljax.training.weights import stages_to_train

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "pjx"
RECIPE = ("--config", str(ROOT / "configs" / "pjx_vqax.py"))
SMALL = (
    "--config.data.image_size=24",
    "--config.data.scenes.size=64",
    "--config.model.trunk.width=16",
    "--config.model.question.embedding=8",
    "--config.model.question.hidden=8",
    "--config.model.answerer.attention.features=16",
    "--config.model.answerer.attention.hidden=8",
    "--config.model.explainer.features=16",
    "--config.model.explainer.hidden=8",
    "--config.model.explainer.embedding=8",
    "--config.model.explainer.decoder_features=(16,16)",
    "--config.log.pictures_every=0",
    "--config.compilation_cache=",
)


def steps(*stages):
    """Flags of two steps in each stage."""
    return [
        flag
        for stage in stages
        for flag in (
            f"--config.stages.{stage}.num_steps=2",
            f"--config.stages.{stage}.batch_size=4",
            f"--config.stages.{stage}.optimizer.warmup_steps=0",
        )
    ]


def config_of(*flags):
    return parse_config((*RECIPE, *SMALL, *flags))[0]


# The published networks ------------------------------------------------------------------------


def published(task):
    """The published options at a small size; the explainer reads features of 12 channels."""
    config = config_of("--config.ablations=False")
    config.model.trunk.update({"kind": "none", "channels": 12})
    config.model.question.update({"embedding": 6, "hidden": 8})
    config.model.answerer.attention.update({"over": "map", "rate": 0.3})
    config.model.explainer.update(
        {
            **{"attended": "raw", "decoder": "double", "decoder_norm": "batch", "over": "map"},
            **{"decoder_features": (16, 10), "dropout_rate": 0.3},
        }
    )
    if task == "activity":
        config.task = "activity"
        config.model.answerer.attention.fusion = "picture"
        config.model.explainer.decoder_root = False
        config.stages = {"joint": config.stages.explain}
    return config


def random_blobs(model, rng):
    """Random weights for all layers of the published caffemodel, by layer, in Caffe's shapes."""
    blobs = {}
    for part in filter(None, (model.question, model.answerer, model.explainer)):
        arrays = {name: v.get_value() for name, v in variables(part).items()}
        for theirs, ours in part.caffe_layers.items():
            own = [f"{ours}.{field}" for field in ("weight_ih", "weight", "bias", "weight_hh")]
            shapes = [arrays[name].shape for name in own if name in arrays]
            if not shapes:
                continue
            # All but an embedding's table are the other way round in Caffe.
            table = "embed_ba" in theirs or theirs == "exp_emb_ans"
            shapes = [s if table else s[::-1] for s in shapes]
            if "conv" in theirs or theirs in ("i_emb", "eltwise_emb", "img_embed"):
                shapes[0] = (*shapes[0], 1, 1)
            # Over a whole map of norm 1 numbers are small: then so would be what maps tell apart.
            scale = 5.0 if "att_conv" in theirs else 0.5
            blobs[theirs] = [rng.normal(0, scale, s).astype(np.float32) for s in shapes]
    return blobs


class Transcription:
    """Facts of the published Caffe networks (VQA and ACT) in PyTorch, nothing of ours in it."""

    def __init__(self, torch, blobs):
        self.torch = torch
        self.blobs = {n: [torch.from_numpy(b) for b in all_] for n, all_ in blobs.items()}

    def linear(self, name, x):
        weight, bias = self.blobs[name]
        return x @ weight.reshape(weight.shape[0], -1).T + bias

    def embed(self, name, ids):
        table, bias = self.blobs[name]
        return self.torch.tanh(table[ids] + bias)

    def root(self, x):
        return self.torch.sign(x) * self.torch.sqrt(self.torch.abs(x))

    def l2(self, x):
        """Caffe's: over all axes but the first."""
        return x / self.torch.sqrt((x**2).flatten(1).sum(1) + 1e-7).reshape(-1, *[1] * (x.ndim - 1))

    def lstm(self, name, x, goes):
        """Of x [t b i]; gates i, f, o, g; where `goes` [t b] is 0 a sequence begins anew."""
        weight, bias, recurrent = self.blobs[name]
        size = recurrent.shape[1]
        h = c = self.torch.zeros(x.shape[1], size)
        outputs = []
        for t in range(len(x)):
            on = goes[t][:, None]
            gates = x[t] @ weight.T + bias + (h * on) @ recurrent.T
            i, f, o = (self.torch.sigmoid(gates[:, k * size : (k + 1) * size]) for k in range(3))
            c = on * f * c + i * self.torch.tanh(gates[:, 3 * size :])
            h = o * self.torch.tanh(c)
            outputs.append(h)
        return self.torch.stack(outputs)

    def attend(self, name, x, f):
        scores = self.linear(
            f"{name}att_conv2", self.torch.relu(self.linear(f"{name}att_conv1", x))
        )
        points = self.torch.softmax(scores.flatten(1), 1).reshape(scores.shape[:3])
        return points, self.torch.einsum("bhw,bhwc->bc", points, f)

    def answers(self, f, words, goes):
        """Facts 1a, rows 1 to 12: logits, α, q and the raw product."""
        first = self.lstm("lstm1", self.embed("embed_ba", words), goes)
        second = self.lstm("lstm2", first, goes)
        q = self.torch.cat([first[-1], second[-1]], -1)
        joint = self.linear("i_emb", f) * q[:, None, None]
        points, seen = self.attend("", self.l2(self.root(joint)), f)
        fused = self.l2(self.root(self.linear("i_emb2", seen) * q))
        return self.linear("prediction", fused), points, q, joint

    def activities(self, f):
        """Facts 1c."""
        points, seen = self.attend("", f, f)
        return self.linear("prediction", seen), points

    def explains(self, f, joint, q, answers, words):
        """Facts 1b, equations 2.1 to 2.10: log p of the words after `words` [t b], and α."""
        a = self.linear("exp_emb_ans2", self.embed("exp_emb_ans", answers))
        layer = "img_embed" if q is None else "eltwise_emb"
        fused = self.l2(self.root(self.linear(layer, joint) * a[:, None, None]))
        points, seen = self.attend("exp_", fused, f)
        cause = self.linear("exp_att_feature_embed", seen) * a
        if q is not None:
            cause = cause * self.linear("exp_lstm12_embed", q)
        goes = self.torch.ones(words.shape)
        goes[0] = 0
        h = self.lstm("exp_lstm1", self.embed("exp_embed_ba", words), goes) * cause
        h = self.lstm("exp_lstm2", self.l2(h if q is None else self.root(h)), goes)
        return self.torch.log_softmax(self.linear("exp_prediction", h), -1), points


@pytest.mark.parametrize("task", ["question", "activity"])
def test_the_published_networks_from_a_caffemodel(task, tmp_path):
    """A caffemodel's layers load by name; all that comes out is a PyTorch transcription's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    config = published(task)
    model = pjx.make_model(config)
    blobs = random_blobs(model, rng)
    file = tmp_path / "vqa.caffemodel"
    file.write_bytes(b"".join(layer(name, arrays) for name, arrays in blobs.items()))
    for part in ("question", "answerer", "explainer"):
        if getattr(model, part) is not None:
            setattr(model, part, pretrained.load(getattr(model, part), file))

    peer = Transcription(torch, blobs)
    features = rng.standard_normal((3, 4, 5, 12)).astype(np.float32)
    lengths, end = np.array([15, 6, 1]), 15
    mask = np.arange(end) >= end - lengths[:, None]
    question = np.where(mask, rng.integers(2, 40, (3, end)), 0)
    answers, words = rng.integers(0, 20, 3), rng.integers(0, 40, (3, 7))
    batch = {"features": features, "question": question, "question_mask": mask}

    @jax.jit
    def run(model):
        said, encoded = answer(model, features_of(model, batch), batch)
        cause, points = model.explainer.explain(encoded, answers)
        return said.logits, said.attention, model.explainer(cause, words), points

    ours = run(model)
    f = peer.l2(torch.from_numpy(features))
    given = torch.from_numpy(answers), torch.from_numpy(words.T)
    # Padding is no word: a sequence begins with its first word.
    goes = torch.from_numpy((np.arange(end) > end - lengths[:, None]).T.astype(np.float32))
    if task == "question":
        logits, looked, q, joint = peer.answers(f, torch.from_numpy(question.T), goes)
        log_p, points = peer.explains(f, joint, q, *given)
    else:
        logits, looked = peer.activities(f)
        log_p, points = peer.explains(f, f, None, *given)
    theirs = (logits, looked, log_p.swapaxes(0, 1), points)
    for one, other in zip(ours, theirs, strict=True):
        assert np.ptp(other.numpy()) > 1e-3
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


# The doors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two steps a stage on scenes, the ablations too."""
    folder = tmp_path_factory.mktemp("pjx") / "run"
    flags = steps("recognise", "answer", "explain", "explain_without_attention", "describe")
    assert train.main((*RECIPE, *SMALL, *flags, "--workdir", str(folder))) == 0
    return folder


def picture(folder, colour):
    path = folder / f"{colour}.png"
    Image.new("RGB", (31, 40), colour).save(path)
    return str(path)


def test_another_picture_question_or_answer_compiles_nothing(workdir, tmp_path, compilations):
    def ask(colour, question, *flags):
        out = tmp_path / "out"
        shown = ("--image", picture(tmp_path, colour), "--question", question)
        argv = ("--workdir", str(workdir), "--out", str(out), *shown, *flags)
        assert generate.main(argv) == 0
        with Image.open(out / "map_0.png") as image:
            assert image.size == (31, 40)
            if "--answer" in flags:
                assert image.text["answer"] == flags[flags.index("--answer") + 1]
        (told,) = json.loads((out / "explanation.json").read_text())
        return told

    first = ask("red", "is there a red star?")
    assert 0 < first["probability"] <= 1
    assert first["probability"] == max(first["most probable answers"].values())
    ask("blue", "what color is the heart?")
    compilations()
    ask("green", "How many objects are there?")
    told = ask("blue", "what is the blue thing?", "--answer", "blue")
    assert told["answer"] == "blue"
    drawn = ask("blue", "is there a red star?", "--temperature", "0.9", "--seed", "3")
    assert drawn["justification"] != ask("blue", "is there a red star?")["justification"]
    assert compilations() == 0


def test_held_out_examples_are_explained_by_search_too(workdir, tmp_path):
    argv = ("--workdir", str(workdir), "--out", str(tmp_path), "--num_examples", "2")
    assert generate.main(argv) == 0
    greedy = json.loads((tmp_path / "explanation.json").read_text())
    assert generate.main((*argv, "--beams", "3")) == 0
    found = json.loads((tmp_path / "explanation.json").read_text())
    assert {p.name for p in tmp_path.glob("*.png")} == {"explanation.png", "map_0.png", "map_1.png"}
    for one, other in zip(greedy, found, strict=True):
        assert one["question"] == other["question"]
        assert other["log_prob"] >= one["log_prob"] - 1e-3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--question", "qual cor é esta?"), "the model knows none of these words; it knows "),
        (("--question", "is it red?", "--answer", "redd"), "did you mean 'red'"),
        (("--question", "is it red?", "--answer", ""), "--answer='' is none of the "),
        ((), "--question is missing"),
        (("--question", "is it red?", "--beams", "2", "--temperature", "1"), "give one of them"),
        (("--top_p", "0.1"), "--top_p=0.1 limits what is drawn, and nothing is"),
        (("--question", "is it red?", "--image", "{folder}/text.png"), "text.png"),
        (("--question", "is it red?", "--image", "{folder}/absent.png"), "absent.png"),
        (("--question", "is it red?", "--num_examples", "2"), "leave one out"),
    ],
)
def test_bad_requests_are_named(workdir, tmp_path, flags, problem):
    (tmp_path / "text.png").write_text("no picture")
    shown = ("--image", picture(tmp_path, "red"))
    flags = [flag.format(folder=tmp_path) for flag in flags]
    with pytest.raises(UserError, match=problem):
        generate.main(("--workdir", str(workdir), "--out", str(tmp_path), *shown, *flags))


def test_a_vocabulary_that_does_not_fit_the_weights_is_named(workdir, tmp_path):
    words = tmp_path / "adict.json"
    words.write_text(json.dumps({"yes": 0, "no": 1, "": 2}))
    pretrained.save(pjx.make_model(config_of()).explainer, tmp_path / "explainer.safetensors")
    flags = (
        f"--config.data.vocabularies.answers={words}",
        f"--config.pretrained.explainer={tmp_path / 'explainer.safetensors'}",
        *("--workdir", str(tmp_path / "run")),
    )
    with pytest.raises(UserError, match="misshapen: exp_emb_ans"):
        train.main((*RECIPE, *SMALL, *flags))


def test_a_trunk_that_recognises_stays_as_it_is_and_may_be_given(tmp_path):
    def learns(config):
        names = variables(jax.eval_shape(lambda: pjx.make_model(config)))
        trunk = next(name for name in names if name.startswith("trunk."))
        return {
            stage.name
            for stage in pjx.stages(config)
            if any(re.match(pattern, trunk) for pattern, _ in stage.train)
        }

    config = config_of()
    assert learns(config) == {"recognise"}
    skeleton = jax.eval_shape(lambda: pjx.make_model(config))
    config.pretrained.update({"trunk": "trunk.safetensors", "recogniser": "file.safetensors"})
    left = stages_to_train(pjx.stages(config), skeleton, config)
    assert {stage.name for stage in left} == {*config.stages} - {"recognise"}
    config.stages = {"answer": config.stages.answer}
    assert learns(config) == {"answer"}


@pytest.fixture(scope="module")
def judged(workdir):
    """What `evaluate` leaves of the small run."""
    flags = ("--num_examples", "16", "--batch_size", "8", "--probed", "4", "--copied", "40")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: None)  # METEOR would start Java
        assert evaluate.main(("--workdir", str(workdir), *flags)) == 0
    return workdir / "evaluation"


def rows_of(folder):
    """What was found here, by table and method, and the notes."""
    told = json.loads((folder / "results.json").read_text())
    rows = {
        (table, row["method"]): row
        for table, all_rows in told["tables"].items()
        for row in all_rows
        if row["source"] == "here"
    }
    return rows, told["notes"]


def test_all_tables_of_the_chapter(judged):
    rows, notes = rows_of(judged)
    assert notes["examples"] == 16
    explained = ["ours", "w/o attention", "on descriptions"]
    hows = [f"{name}, {how} answer" for name in explained for how in ("true", "own")]
    for name in (*hows, "copied by answer", "copied by question and answer"):
        row = rows["table 2.2", name]
        assert {"BLEU-4", "CIDEr", "ROUGE-L", "understood", "true"} <= row.keys()
        assert 0 <= row["true"] <= row["understood"] <= 100
    # Copies of sentences about other scenes are understood, where there is one to copy.
    assert rows["table 2.2", "copied by answer"]["understood"] > 50
    best = rows["table 2.3", "the evidence itself"]
    assert best["EMD"] == pytest.approx(0, abs=1e-6)
    assert best["rank correlation, mean ranks"] == pytest.approx(1)
    # The fullest cell of a thin outline may have its centre beside it.
    assert best["pointing game"] > 80
    assert rows["table 2.3", "uniform"]["mass / area"] == pytest.approx(1, abs=1e-6)
    for name in ("random point", "uniform", "centre", "answering model", "ours"):
        assert rows["table 2.3", name]["EMD"] > 0.1
    assert ("pointing, background", "ours") in rows
    assert 0 <= rows["answers", "all questions"]["accuracy"] <= 100
    assert rows["answers", "all questions"]["n"] == 16
    for name in ("another answer is explained", "a complementary picture is explained"):
        row = rows["faithfulness", name]
        assert row["n"] == 4
        assert row["map moves, EMD"] > 0
    assert ("answers told from the explanation alone", "ours") in rows
    for name in ("ours", "random", "answering model", "the evidence itself"):
        assert 0 <= rows["deletion and insertion", name]["area under deletion"] <= 1
    assert {p.name for p in judged.glob("*.png")} >= {"figure_2.6_wrong_answers.png"}


def test_an_empty_evidence_mask_is_left_out_and_counted(judged, workdir, tmp_path, monkeypatch):
    opened = evaluation.open_judged

    def hidden(*arguments):
        found, out = opened(*arguments)
        found.examples[0]["evidence"] = np.zeros_like(found.examples[0]["evidence"])
        return found, out

    monkeypatch.setattr(evaluation, "open_judged", hidden)
    monkeypatch.setattr("shutil.which", lambda name: None)
    flags = ("--num_examples", "8", "--batch_size", "8", "--probed", "0", "--copied", "4")
    assert evaluate.main(("--workdir", str(workdir), "--out", str(tmp_path), *flags)) == 0
    rows, notes = rows_of(tmp_path)
    assert notes["examples with an empty evidence mask, left out of pointing"] == 1
    assert sum(row["n"] for (t, m), row in rows.items() if m == "ours" and "pointing," in t) == 7


def test_questions_without_an_answer_of_the_models_are_left_out_and_counted(tmp_path):
    def opened(*answers):
        (tmp_path / "adict.json").write_text(json.dumps({a: i for i, a in enumerate(answers)}))
        config = config_of(f"--config.data.vocabularies.answers={tmp_path / 'adict.json'}")
        return open_judged(config, open_words(config), open_benchmark(config.data), 8)

    judged, out = opened("yes", "no")
    assert {example["answer"] for example in judged.examples} == {"yes", "no"}
    assert len(judged.truth) == 8
    assert out > 0
    judged, out = opened("yes", "no", "")  # where there is an entry for all others, they are that
    assert out == 0
    assert 2 in judged.truth
    with pytest.raises(UserError, match="none of the 64 held-out examples has an answer"):
        opened("perhaps")


# Features made once ----------------------------------------------------------------------------


def test_a_folder_of_features_is_filled_from_photographs(tmp_path):
    """By the published trunk that is given, once; they are what the model makes of the pictures."""
    names = ["COCO_val2014_000000000007.jpg", "COCO_val2014_000000000011.jpg"]
    for i, name in enumerate(names):
        pixels = np.random.default_rng(i).integers(256, size=(40, 70, 3))
        Image.fromarray(np.uint8(pixels)).save(tmp_path / name)
    one = {"question": "is it red?", "explanation": ["it is"], "answers": [{"answer": "yes"}]}
    asked = {str(i): {**one, "image_name": names[i % 2]} for i in range(3)}
    for split in ("train", "test"):
        (tmp_path / f"vqaX_{split}.json").write_text(json.dumps(asked))
    weights = tmp_path / "resnet"
    weights.mkdir()
    sizes = {"depths": [1] * 4, "embedding_size": 4, "hidden_sizes": [16, 32, 64, 128]}
    (weights / "config.json").write_text(json.dumps({"model_type": "resnet", **sizes}))
    config = config_of(
        *("--config.data.name=nlx", f"--config.data.path={tmp_path}", "--config.ablations=False"),
        *("--config.model.trunk.kind=resnet50", f"--config.pretrained.trunk={weights}"),
        *(f"--config.data.features={tmp_path / 'made'}", "--config.data.image_size=64"),
    )
    config.stages = {"answer": config.stages.answer}
    model = pjx.make_model(config)
    pretrained.save(model.trunk, weights / "model.safetensors")

    source = open_examples(config)
    assert len(source) == 3
    made = sorted((tmp_path / "made").glob("*.npz"))
    assert [path.name for path in made] == [f"{name}.npz" for name in names]
    words = open_words(config)
    batch = {"features": read_example(config, words, source[1])["features"][None]}
    config.data.features = ""
    shown = {"image": read_example(config, words, open_examples(config)[1])["image"][None]}
    ours, theirs = jax.jit(lambda: (features_of(model, batch), features_of(model, shown)))()
    assert ours.shape == (1, 2, 2, 128)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    # What is there is left as it is.
    config.data.features = str(tmp_path / "made")
    np.savez(made[0], x=np.ones((128, 2, 2), np.float32))
    assert (open_examples(config, held_out=True)[0]["features"] == 1).all()


# Real samples ----------------------------------------------------------------------------------

samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the real samples of PJ-X are not here")


@pytest.fixture
def vqa_x(tmp_path):
    """150 real questions of VQA-X under their published names, with features by a random trunk."""
    root = tmp_path / "vqa_x"
    root.mkdir()
    for file in (SAMPLES / "vqa_x").glob("*val*.json"):
        (root / file.name.replace(".part_val", "")).write_bytes(file.read_bytes())
    names = [one.image for one in open_asked("vqa_x", root, "val")]
    trunk = Convolutions(16, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    compute_features(
        root / "Features",
        names,
        lambda name: rng.random((16, 16, 3), np.float32),
        jax.jit(lambda images: trunk(images)),
    )
    return root


def look(root, asked):
    """People's maps of some photographs, and VQA-HAT's with VQA v1's questions; their folders."""
    rng = np.random.default_rng(0)
    maps, hat = root / "visual" / "test", root / "hat"
    for folder in (maps, hat):
        folder.mkdir(parents=True)
    for one in asked[:5]:
        np.savez(maps / f"{one.image}.npz", maps=rng.random((3, 30, 40)))
    questions, annotations = [], []
    for i, one in enumerate(asked[:3]):
        told = {"question_id": i, "image_id": int(one.image[-16:-4])}
        questions.append(told | {"question": one.question})
        answers = [{"answer": answer} for answer in one.answers]
        annotations.append(told | {"answers": answers})
        if i:  # of the first question there is no map
            for person in range(1, 3):
                shown = np.uint8(rng.integers(256, size=(30, 40)))
                Image.fromarray(shown).save(hat / f"{i}_{person}.png")
    for name, rows in (
        ("OpenEnded_", {"questions": questions}),
        ("", {"annotations": annotations}),
    ):
        kind = next(iter(rows))
        (root / f"{name}mscoco_val2014_{kind}.json").write_text(json.dumps(rows))
    return maps.parent, hat


@samples
def test_the_form_of_vqa_x_from_end_to_end(vqa_x, tmp_path, monkeypatch):
    """Only plumbing: features are a random trunk's of random pictures, and two steps teach nothing.

    Training and test questions are the same 150, the ones there are.
    """
    monkeypatch.setattr("shutil.which", lambda name: None)  # METEOR and SPICE would start Java
    run = tmp_path / "run"
    flags = (
        *("--config", f"{ROOT / 'configs' / 'pjx_vqax.py'}:{vqa_x}"),
        *(flag for flag in SMALL if "scenes" not in flag and "trunk" not in flag),
        *("--config.data.split=val", "--config.data.eval_split=val"),
        *("--config.data.workers=0", "--config.model.trunk.channels=18"),
        *(*steps("answer", "explain"), "--workdir", str(run)),
    )
    assert train.main(flags) == 0
    asked = open_asked("vqa_x", vqa_x, "val")
    maps, hat = look(vqa_x, asked)
    judging = ("--num_examples", "20", "--probed", "2", "--maps", str(maps), "--hat", str(hat))
    assert evaluate.main(("--workdir", str(run), *judging)) == 0
    rows, notes = rows_of(run / "evaluation")
    assert notes["examples"] == 20
    marked = sum(one.image in {other.image for other in asked[:5]} for one in asked[:20])
    told = f"{marked} of 20 examples; the first holds 3 of 30×40 from 'maps' float64"
    assert told in notes["people's maps"]
    tables = json.loads((run / "evaluation" / "results.json").read_text())["tables"]
    pointed = {
        row["data"]: row["n"]
        for row in tables["table 2.3"]
        if row["source"] == "here" and row["method"] == "ours"
    }
    assert pointed == {notes["data"]: marked, "VQA-HAT": 2}
    assert "Java" in notes["meteor not computed"]
    assert {"yes/no", "other"} <= {method for table, method in rows if table == "answers"}
    # A copy of the justification of the same question and answer is one of these very examples'.
    assert rows["table 2.2", "copied by question and answer"]["CIDEr"] > 200
    assert 0 <= rows["table 2.2", "ours, true answer"]["CIDEr"] < 100
    argv = ("--workdir", str(run), "--num_examples", "2")
    assert generate.main(argv) == 0
    assert len(json.loads((run / "generated" / "explanation.json").read_text())) == 2
    with pytest.raises(UserError, match="this model reads features that were made once"):
        generate.main((*argv, "--image", picture(tmp_path, "red"), "--question", "is it red?"))


@samples
def test_golden_scores_of_real_outputs():
    """OFA-X's 300 explanations against VQA-X's three references, as measured with COCO's tools."""
    references = {
        one.id: one.justifications for one in read_nlx(SAMPLES / "vqa_x" / "nlx_form_test.json")
    }
    with open(SAMPLES / "vqa_x_pairs" / "ofa_x_300.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300

    def split(text):
        return " ".join(pjx_words(text))

    said = [split(row["predicted_explanation"]) for row in rows]
    known = [[split(text) for text in references[row["question_id"]]] for row in rows]
    scores, missing = text_scores(said, known, ("coco_bleu", "coco_rougeL", "cider"))
    assert not missing
    golden = {"coco_bleu": 29.7, "coco_rougeL": 52.6, "cider": 122.9}
    assert scores == pytest.approx(golden, abs=0.06)
