"""The system VOI: one call of the decoder for all orders, exact gradients, stages, doors."""

import functools
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, pretrained, train
from vljax.data.source import CorruptExampleError, Span
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.insertion_decoder import InsertionDecoder
from vljax.models.insertion_search import search_order
from vljax.models.parameters import named_parameters
from vljax.ops.permanent import log_permanent
from vljax.ops.permutations import GumbelMatching
from vljax.systems import voi
from vljax.systems.voi import evaluation, method
from vljax.systems.voi import model as models
from vljax.systems.voi.writing import Line, first_example, order_picture, write_all

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
DJANGO = ROOT.parent / "shared" / "data" / "django"
SMALL = (
    *("--config", str(ROOT / "configs" / "voi_coco.py")),
    "--config.data.scenes.size=64",
    "--config.data.scenes.max_objects=1",
    "--config.data.max_source=2",
    "--config.data.max_target=11",
    "--config.model.layers=1",
    "--config.model.features=16",
    "--config.model.hidden=16",
    "--config.model.heads=2",
    "--config.num_orders=2",
    "--config.search_beams=2",
    "--config.log.pictures_every=0",
    "--config.samples.count=2",
    "--config.samples.beams=2",
    "--config.compilation_cache=",
)


def small(*flags):
    config, _ = parse_config((*SMALL, *flags))
    return config


@functools.lru_cache
def example_batch(rows=3):
    stage = voi.stages(small())[0]
    generator = np.random.default_rng(0)
    made = [stage.transform(stage.source[i], generator) for i in range(rows)]
    return {name: np.stack([example[name] for example in made]) for name in made[0]}


@functools.lru_cache
def small_model():
    return voi.make_model(small())


def loss_of(config, name):
    stage = next(stage for stage in voi.stages(config) if stage.name == name)
    return stage.loss, stage.memory()


def test_one_call_of_the_decoder_serves_all_orders(monkeypatch):
    """Traced once for K = 4, on K × B rows that share B sources; and the step is traced once."""
    calls = []
    whole = InsertionDecoder.scores

    def counted(self, batch, order, **options):
        calls.append(order.shape)
        return whole(self, batch, order, **options)

    monkeypatch.setattr(InsertionDecoder, "scores", counted)
    config = small(
        "--config.num_orders=4",
        "--config.stages.separate.estimator=ppo",
        "--config.stages.separate.batch_size=3",
    )
    loss, memory = loss_of(config, "separate")
    batch = example_batch(3)
    gradient = jax.grad(lambda model: loss(model, batch, jax.random.key(0), memory)[0])
    jax.eval_shape(gradient, small_model())
    assert calls == [(3, 4, 13)]


def framed_orders(n):
    orders = [[0, *(p + 1 for p in order), n + 1] for order in itertools.permutations(range(n))]
    return np.array(orders, np.int32)


def test_the_policy_gradient_is_that_of_the_expected_reward():
    """Over all orders of three words, weighted by q, the estimator is ∇ Σ q(z) r(z) exactly."""
    generator = np.random.default_rng(0)
    logits = jnp.asarray(generator.standard_normal((1, 5, 5)), jnp.float32)
    mask = jnp.asarray([[False, True, True, True, False]])
    orders = jnp.asarray(framed_orders(3))[:, None]
    reward = jnp.asarray(generator.standard_normal((6, 1)), jnp.float32)

    def log_q(logits):
        return GumbelMatching(logits, mask).log_potential(orders) - log_permanent(logits, mask)

    def expected(logits):
        return (jnp.exp(log_q(logits)) * reward).sum()

    q = jnp.exp(log_q(logits))
    np.testing.assert_allclose(q.sum(), 1, atol=1e-5)
    for baseline in (0.0, (q * reward).sum()):
        for estimator in ("reinforce", "ppo"):

            def estimate(logits, baseline=baseline, estimator=estimator):
                # Each order as often as q has it: the mean over samples becomes a sum over orders.
                advantage = 6 * q * (reward - baseline)
                now = log_q(logits)
                return -method.policy_loss(now, now, advantage, estimator)

            np.testing.assert_allclose(
                jax.grad(estimate)(logits), jax.grad(expected)(logits), atol=1e-5
            )


def test_ppo_stops_where_the_ratio_has_gone_far_enough():
    then, gained = jnp.zeros((4, 1)), jnp.asarray([[0.05], [0.2], [-0.2], [0.2]])
    advantage = jnp.asarray([[1.0], [1.0], [-1.0], [-1.0]])
    grad = jax.grad(lambda now: method.policy_loss(now, then, advantage, "ppo"))(gained)
    np.testing.assert_array_equal(grad[:, 0] != 0, [True, False, False, True])


def test_beta_is_log_linear():
    found = [float(method.entropy_coefficient((0.5, 0.002), share)) for share in (0, 0.5, 1)]
    np.testing.assert_allclose(found, [0.5, (0.5 * 0.002) ** 0.5, 0.002], rtol=1e-5)
    assert float(method.entropy_coefficient((0.0, 0.0), 0.3)) == 0


def test_fixed_orders():
    tokens = np.array([[1, 7, 5, 9, 7, 2, 0], [1, 8, 2, 0, 0, 0, 0]], np.int32)
    mask = tokens > 0
    frequencies = np.array([0, 0, 0, 0, 0, 3, 0, 8, 1, 5])

    def order(name, seed=0):
        found = method.fixed_orders(name, tokens, mask, frequencies, jax.random.key(seed))
        np.testing.assert_array_equal(found[1], range(7))
        return np.asarray(found[0]).tolist()

    assert order("l2r") == [0, 1, 2, 3, 4, 5, 6]
    assert order("r2l") == [0, 4, 3, 2, 1, 5, 6]
    assert order("common") == [0, 1, 4, 3, 2, 5, 6]  # 7 7 9 5, equals from left to right
    assert order("rare") == [0, 2, 3, 1, 4, 5, 6]
    assert len({tuple(order("random", seed)) for seed in range(8)}) > 3


def test_shared_copies_start_equal_and_get_equal_gradients():
    config = small("--config.stages.joint.batch_size=3")
    loss, memory = loss_of(config, "joint")
    names = named_parameters(small_model())
    pairs = list(models.shared_names(names))
    assert len(pairs) > 5
    for own, other in pairs:
        np.testing.assert_array_equal(names[own], names[other])
    batch = example_batch(3)
    gradient = jax.jit(jax.grad(lambda m: loss(m, batch, jax.random.key(0), memory)[0]))
    grads = named_parameters(gradient(small_model()))
    for own, other in pairs:
        np.testing.assert_array_equal(grads[own], grads[other])
    assert np.abs(grads["decoder.source.embedding.weight"]).max() > 0
    assert np.abs(grads["permutation.query.weight"]).max() > 0


def test_ppo_remembers_batches_and_alternation_gives_steps_to_one_network():
    config = small(
        "--config.stages.separate.estimator=ppo",
        "--config.stages.separate.alternate=(2, 3)",
        "--config.stages.separate.batch_size=3",
    )
    loss, memory = loss_of(config, "separate")
    step = jax.jit(jax.value_and_grad(chex.assert_max_traces(loss, n=1), has_aux=True))
    batch, turns = example_batch(3), []
    for index in range(4):
        (value, (metrics, memory)), grads = step(
            small_model(), batch, jax.random.key(index), memory
        )
        assert np.isfinite(value)
        size = {"decoder": 0.0, "permutation": 0.0}
        for name, grad in named_parameters(grads).items():
            part = name.partition(".")[0]
            size[part] = max(size[part], float(np.abs(grad).max()))
        turns.append((size["decoder"] > 0, size["permutation"] > 0))
    assert turns == [(True, False), (True, False), (False, True), (False, True)]
    assert int(memory.step) == 4
    assert metrics["reward_spread"] > 0
    orders = np.asarray(memory.past["orders"])
    np.testing.assert_array_equal(np.sort(orders, -1), np.broadcast_to(np.arange(13), orders.shape))
    np.testing.assert_array_equal(memory.past["batch"]["target"][1], batch["target"])
    np.testing.assert_allclose(memory.past["advantage"].mean(1), 0, atol=1e-5)


def test_searched_orders_train_on_what_the_search_finds():
    config = small("--config.order=sao", "--config.stages.tune.batch_size=3")
    loss, memory = loss_of(config, "tune")
    batch = example_batch(3)

    @jax.jit
    def both(model):
        found = search_order(model.decoder, batch, config.search_beams).log_prob[:, 0]
        return found, loss(model, batch, jax.random.key(0), memory)[1][0]["nats_per_word"]

    found, nats = both(voi.make_model(config))
    words = batch["target_mask"].sum(-1) - 1
    np.testing.assert_allclose(nats, -(found / words).mean(), rtol=1e-4)


def test_words_are_aligned_with_those_of_the_decoder():
    model = small_model()
    np.testing.assert_allclose(method.alignment_loss(model), 0, atol=1e-5)
    config = small()
    config.seed = 5
    for stage in config.stages.values():
        stage.shared = False
    other = voi.make_model(config)
    grads = named_parameters(jax.grad(method.alignment_loss)(other))
    assert 0.5 < method.alignment_loss(other) < 1.5
    assert np.abs(grads["permutation.source.embedding.weight"]).max() > 0
    assert np.abs(grads["decoder.source.embedding.weight"]).max() == 0


def test_a_picture_of_an_order():
    told = [Line("a b c", ["a", "b", "c"], [2, 0, 1], -1.0), Line("", [], [], -1.0)]
    picture = order_picture(told)
    assert picture.ndim == 3
    assert picture.dtype == np.uint8
    # A row of pixels through the boxes, above the words: the first box written is the darkest.
    shades = picture[10].astype(int).sum(-1)
    boxes = [
        shades[a:b]
        for a, b in itertools.pairwise(
            [0, *np.flatnonzero((shades[1:] == 765) != (shades[:-1] == 765)) + 1, len(shades)]
        )
        if shades[a] < 765
    ]
    a, b, c = (int(np.median(box)) for box in boxes)
    assert c < a < b
    assert order_picture([]).size > 0


def test_mistakes_name_their_field():
    def fails(match, *flags):
        with pytest.raises(UserError, match=match):
            voi.stages(small(*flags))

    fails("order='backwards'", "--config.order=backwards")
    fails("num_orders=1", "--config.num_orders=1")
    fails(r"stages\.joint\.trains='none'", "--config.stages.joint.trains=none")
    fails(r"stages\.tune\.estimator='dice'", "--config.stages.tune.estimator=dice")
    fails(r"stages\.joint\.entropy=\(0\.5, 0\.0\)", "--config.stages.joint.entropy=(0.5, 0.0)")
    for value in ("", "''", "[]", "(0.5,)", "('a', 'b')"):
        told = r"stages\.joint\.entropy=\(.*(give two positive|like those of the recipe)"
        fails(told, f"--config.stages.joint.entropy={value}")
    fails(r"stages\.joint\.alternate=\(1, -2\)", "--config.stages.joint.alternate=(1, -2)")
    with pytest.raises(UserError, match=r"model\.permutation\.scheme='absolute'"):
        voi.make_model(small("--config.model.permutation.scheme=absolute"))


# Requests ------------------------------------------------------------------------------------


def asked(**fields):
    """What the fresh model answers: records of `written.json`, and the results by name."""
    request = voi.Request(**({"num_examples": 3, "batch_size": 2, "beams": 2} | fields))
    results = {one.name: one for one in voi.SYSTEM.generate(small_model(), small(), request)}
    return json.loads(results["written.json"].value), results


def test_an_answer_tells_words_in_both_orders():
    records, results = asked()
    assert list(results) == ["written.json", "orders.png"]
    assert len(records) == 3
    for index, record in enumerate(records):
        assert record["source"] == f"example {index}"
        assert sorted(record["order"]) == list(range(len(record["words"])))
        by_step = " ".join(record["words"][place] for place in record["order"])
        assert f"{record['text']}\n  written: {by_step}" in results["written.json"].label
    told = [Line(*(record[field] for field in Line._fields)) for record in records]
    np.testing.assert_array_equal(results["orders.png"].value, order_picture(told))


class Damaged:
    """Examples of which some cannot be read."""

    def __init__(self, source, lost):
        self.source, self.lost = source, lost

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index in self.lost:
            raise CorruptExampleError(f"example {index} cannot be read")
        return self.source[index]


def test_examples_that_cannot_be_read_are_left_out_where_they_are_skipped():
    model, source = small_model(), models.texts(small(), held_out=True)
    damaged, skip = Damaged(source, {0, 3}), small("--config.data.on_corrupt=skip")

    def written(config, source):
        found, batches = zip(*write_all(model, config, source, 6, 4, 2), strict=True)
        tokens, places = [one.tokens for one in found], [one.places for one in batches]
        return np.concatenate(tokens), np.concatenate(places)

    whole, _ = written(small(), source)
    tokens, places = written(skip, damaged)
    assert places.tolist() == [1, 2, 4, 5]
    np.testing.assert_array_equal(tokens, whole[places])
    target = first_example(skip, damaged)["target"]
    np.testing.assert_array_equal(target, first_example(small(), Span(source, 1, 2))["target"])
    for read in (written, first_example):
        with pytest.raises(CorruptExampleError, match="example 0 "):
            read(small(), damaged)


def test_the_order_of_a_given_text_is_the_most_probable_one():
    """Among all six orders of three words, by teacher forcing."""
    config, model, text = small(), small_model(), "a red star"
    (record,), _ = asked(target=text, num_examples=1, beams=6)
    assert record["text"] == text
    held_out = models.texts(config, held_out=True)
    example = dict(held_out[0]) | {"target": held_out.vocabulary.encode(text)}
    batch = {
        name: value[None] for name, value in voi.stages(config)[0].transform(example, None).items()
    }
    orders = [[*one, *range(5, 13)] for one in framed_orders(3)]
    log_prob = jax.jit(lambda model: model.decoder.scores(batch, jnp.asarray([orders])).log_prob())
    every = np.asarray(log_prob(model))[0]
    best = orders[every.argmax()]
    assert record["order"] == [place - 1 for place in best[1:4]]
    assert record["log_prob"] == pytest.approx(every.max(), abs=1e-4)


def test_a_request_that_cannot_be():
    with pytest.raises(UserError, match="writes of pictures"):
        asked(text=("a star",), num_examples=8)
    with pytest.raises(UserError, match=r"--num_examples: .* leave one out"):
        asked(text=("a star",))
    with pytest.raises(UserError, match=r"--target: 12 words, over data\.max_target=11"):
        asked(target="a " * 12)
    with pytest.raises(UserError, match="--runtime needs the permutation network"):
        voi.SYSTEM.judge(SimpleNamespace(permutation=None), small(), voi.Judging(runtime=True))
    with pytest.raises(UserError, match="not texts"):
        next(voi.SYSTEM.generate(small_model(), small(), voi.Request(distill=True)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 0.5}, "--temperature does nothing without --sample: give both"),
        ({"top_k": 5}, "--top_k does nothing without --sample"),
        ({"top_p": 0.9}, "--top_p does nothing without --sample"),
        ({"sample": True, "beams": 4}, "--beams does nothing with --sample: leave one of them out"),
        ({"sample": True, "length_penalty": 1.0}, "--length_penalty does nothing with --sample"),
        ({"sample": True, "temperature": 0.0, "top_k": 5}, "--top_k=5 limits what is drawn"),
        ({"target": "a star", "sample": True}, "--sample does nothing with --target"),
        ({"target": "a star", "length_penalty": 1.0}, "--length_penalty does nothing with --targe"),
        ({"distill": True, "text": ("a",)}, "--text does nothing with --distill"),
        ({"distill": True, "target": "a star"}, "--target does nothing with --distill"),
        ({"distill": True, "sample": True}, "--sample does nothing with --distill"),
        ({"distill": True, "num_examples": 3}, "--num_examples does nothing with --distill"),
    ],
)
def test_what_would_do_nothing_is_refused(fields, told):
    with pytest.raises(UserError, match=f"^{told}"):
        next(voi.SYSTEM.generate(None, small(), voi.Request(**fields)))


# Doors ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Flags of the small recipe whose parts are given, as a door takes them."""
    folder, flags = tmp_path_factory.mktemp("weights"), []
    for part in ("decoder", "permutation"):
        file = folder / f"{part}.safetensors"
        pretrained.save(getattr(small_model(), part), file)
        flags.append(f"--config.pretrained.{part}={file}")
    return (*SMALL, *flags)


def test_drawing_through_the_door(weights, tmp_path, capsys, compilations):
    def drawn(*flags):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        argv = (*weights, "--num_examples", "3", "--batch_size", "2", "--sample", *flags)
        assert generate.main((*argv, "--out", str(out))) == 0
        assert (out / "orders.png").is_file()
        return [line["text"] for line in json.loads((out / "written.json").read_text())]

    first = drawn("--seed", "1")
    assert all(text in capsys.readouterr().out for text in first[:1])
    assert compilations() > 0
    assert drawn("--seed", "1") == first
    assert drawn("--seed", "2") != first
    greedy = drawn("--temperature", "0")
    assert drawn("--temperature", "0", "--seed", "3") == greedy
    assert drawn("--top_k", "1") == greedy
    assert drawn("--top_p", "0") == greedy
    assert greedy != first
    assert compilations() == 0, "another seed or another knob compiled something"
    with pytest.raises(UserError, match=r"--top_p=2\.0"):
        drawn("--top_p", "2")


def test_judging_through_the_door(weights, tmp_path, monkeypatch):
    """All that a fresh install tells, without pycocoevalcap: no cell of ours is empty."""
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setattr(evaluation, "LENGTHS", (3, 5))
    seconds = itertools.count(1)

    def traced(function, repeats, model, batch):
        """A measurement compiles its program, eight in all; what is slow does it in earnest."""
        jax.eval_shape(function, model, batch, jax.random.key(0))
        return next(seconds)

    monkeypatch.setattr(evaluation, "_fastest", traced)
    few = ("--num_examples", "3", "--batch_size", "2", "--beams", "2", "--perturbed", "1")
    assert evaluate.main((*weights, *few, "--runtime", "--out", str(tmp_path))) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    notes, tables = results["notes"], results["tables"]
    assert notes["examples"] == 3
    (row,) = tables["table 3.1"]
    assert (row["method"], row["source"]) == ("voi", "here")
    assert set(row) == {"method", "source", "bleu", "rougeL"}
    assert all(0 <= row[name] <= 100 for name in ("bleu", "rougeL"))
    assert notes["scored by"] == {"bleu": "sacrebleu", "rougeL": "rouge-score"}
    assert set(notes["not installed"]) == {"coco_bleu", "meteor", "coco_rougeL", "cider"}
    for table in tables.values():
        told = [value for row in table for name, value in row.items() if name != "standard error"]
        assert None not in told  # one word alone has no standard error

    assert [row["method"] for row in tables["figure 3.6"]] == list(evaluation.COMPARED)
    # A fresh model does not end its texts, and writes them in no order that could be named.
    assert all(0.3 < row["normalised_levenshtein"] <= 1 for row in tables["figure 3.6"])
    assert all(abs(row["order_rank_correlation"]) < 0.7 for row in tables["figure 3.6"])
    assert [list(row.values()) for row in tables["figure 3.5, seconds"]] == [
        ["3 words", "here", 1, 2, 3, 4],
        ["5 words", "here", 5, 6, 7, 8],
    ]
    assert notes["figure 3.5"]["search_speed_up"] == 8 / 7
    assert notes["figure 3.5"]["step_speed_up_slope"] == pytest.approx((6 / 5 - 2) / 2)
    for name in ("orders", "figure_3_5", "figure_3_6", "figure_3_7"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 2
    with pytest.raises(UserError, match="--beams=0"):
        evaluate.main((*weights, "--beams", "0", "--out", str(tmp_path)))


def test_texts_are_written_anew_as_data(tmp_path, capsys):
    """`--distill`: the sources of both splits, the decoder's texts, and a vocabulary to match."""
    sources = ["call the function", "return the value of x", "call the function twice"]
    targets = ["call ( )", "return x", "call ( ) call ( )"]
    data, out, file = (tmp_path / name for name in ("few", "out", "decoder.safetensors"))
    data.mkdir()
    for split, count in (("train", 3), ("dev", 2)):
        for side, told in (("src", sources), ("tgt", targets)):
            lines = "".join(f"{line}\n" for line in told[:count])
            (data / f"{side}_raw_{split}.txt").write_text(lines, "utf-8")
    recipe = ("--config", f"{ROOT / 'configs' / 'voi_django.py'}:small:{data}", *SMALL[4:])
    recipe += ("--config.order=l2r", "--config.data.min_count=1", "--config.data.max_source=5")
    config, _ = parse_config(recipe)
    pretrained.save(voi.make_model(config).decoder, file)
    argv = (*recipe, f"--config.pretrained.decoder={file}", "--distill", "--out", str(out))
    assert generate.main((*argv, "--beams", "2", "--batch_size", "2")) == 0
    assert "3 texts written anew" in capsys.readouterr().out

    def told(name):
        return (out / name).read_text("utf-8").splitlines()

    assert told("src_raw_train.txt") == sources
    assert (told("src_raw_dev.txt"), told("tgt_raw_dev.txt")) == (sources[:2], targets[:2])
    config.data.update({"path": str(out), "vocabulary": str(out / "vocabulary.json")})
    again = models.texts(config)
    assert [again.vocabulary.decode(again[i]["source"]) for i in range(3)] == sources
    source, model = models.texts(parse_config(recipe)[0]), voi.make_model(config)
    best = [
        line.text
        for written, _ in evaluation.write_all(model, config, source, 3, 2, 2)
        for line in evaluation.lines(written, source.vocabulary)
    ]
    assert told("tgt_raw_train.txt") == best != targets


def run_doors(recipe, tmp_path, capsys, *flags, judged=()):
    """Train, write and judge; returns the records of training and the results."""
    workdir = ("--workdir", str(tmp_path / "run"))
    argv = ["--config", str(ROOT / "configs" / recipe), *SMALL[2:], *flags]
    assert train.main((*argv, *workdir)) == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in metrics.splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert list((tmp_path / "run" / "pictures").rglob("*.png"))
    few = ("--num_examples", "3", "--batch_size", "2", "--beams", "2")
    assert generate.main((*workdir, *few)) == 0
    written = json.loads((tmp_path / "run" / "generated" / "written.json").read_text())
    assert len(written) == 3
    assert written[0]["text"] in capsys.readouterr().out
    assert evaluate.main((*workdir, *few, "--perturbed", "1", *judged)) == 0
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert results["notes"]["examples"] == 3
    return records, results


@pytest.mark.slow
def test_the_doors_recover_an_order(tmp_path, capsys):
    """Both stages of `voi_order_recovery.py`; a cell of table 3.2 with the paper's beside it."""
    flags = [f"--config.stages.{stage}.num_steps=2" for stage in ("decoder", "permutation")]
    flags += [f"--config.stages.{stage}.batch_size=4" for stage in ("decoder", "permutation")]
    flags += ["--config.stages.decoder.optimizer.warmup_steps=0"]
    records, results = run_doors("voi_order_recovery.py", tmp_path, capsys, *flags)
    assert [("kl" in record, record["stage"]) for record in records[-1:]] == [(True, "permutation")]
    cells = {(r["method"], r["source"]): r for r in results["tables"]["table 3.2"]}
    paper = cells["gumbel_matching, xl, K = 4", "paper, table 3.2"]
    assert paper["normalised_levenshtein"] == 0.25
    ours = cells["gumbel_matching, xl, K = 2", "here"]["normalised_levenshtein"]
    assert ours == results["notes"]["permutation_network_to_common"]
    assert 0 <= ours <= 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ["voi", "common", "sao"])
def test_the_doors_run_all_published_stages(order, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "LENGTHS", (3, 5))
    flags = [f"--config.order={order}", "--config.stages.joint.estimator=ppo"]
    for stage in ("joint", "separate", "tune"):
        flags += [f"--config.stages.{stage}.num_steps=2", f"--config.stages.{stage}.batch_size=4"]
    flags += ["--config.stages.joint.optimizer.warmup_steps=0"]
    judged = ("--runtime",) if order == "voi" else ()
    records, results = run_doors("voi_coco.py", tmp_path, capsys, *flags, judged=judged)
    assert {record["stage"] for record in records} == {"joint", "separate", "tune"}
    assert ("kl" in records[0]) == (order == "voi")
    assert [row["method"] for row in results["tables"]["table 3.1"]] == [order]
    if judged:
        for row in results["tables"]["figure 3.5, seconds"]:
            assert min(value for value in row.values() if not isinstance(value, str)) > 0


@pytest.mark.slow
def test_django_is_distilled_and_read_again(tmp_path, capsys):
    """A left-to-right model writes the training targets anew; the folder is data for a recipe."""
    if not DJANGO.is_dir():
        pytest.skip(f"{DJANGO} is not there")
    data = tmp_path / "few"
    data.mkdir()
    for name in ("src", "tgt"):
        for split in ("train", "dev"):
            lines = (DJANGO / f"{name}_raw_{split}.txt").read_text("utf-8").split("\n")[:40]
            (data / f"{name}_raw_{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    recipe = ("--config", f"{ROOT / 'configs' / 'voi_django.py'}:small:{data}", *SMALL[6:])
    flags = [f"--config.stages.{s}.num_steps=2" for s in ("joint", "separate", "tune")]
    flags += [
        "--config.stages.joint.optimizer.warmup_steps=0",
        "--config.order=l2r",
        "--config.data.max_source=40",
        "--config.data.max_target=25",
    ]
    workdir = ("--workdir", str(tmp_path / "run"))
    assert train.main((*recipe, *flags, *workdir)) == 0
    out = tmp_path / "distilled"
    assert generate.main((*workdir, "--distill", "--beams", "2", "--out", str(out))) == 0
    config, _ = parse_config(("--config", f"{ROOT / 'configs' / 'voi_wmt16.py'}:{out}"))
    source = models.texts(config)
    assert len(source.corpus) == len((out / "tgt_raw_train.txt").read_text().splitlines())
    written = generate.main((*workdir, "--text", "call the function", "--target", "return x"))
    assert written == 0
    assert "return" in capsys.readouterr().out
