"""The system VOI: one call of the decoder for all orders, exact gradients, stages, doors."""

import argparse
import functools
import itertools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vljax import evaluate, generate, train
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.insertion_decoder import InsertionDecoder
from vljax.models.insertion_search import search_order
from vljax.models.parameters import named_parameters
from vljax.ops.permutations import GumbelMatching
from vljax.systems import voi
from vljax.systems.voi import model as models
from vljax.systems.voi import training
from vljax.systems.voi.use import Line, order_picture

# Programs here run once or twice: compiling them well would take longer than running them.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

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
        return GumbelMatching(logits, mask).log_prob(orders, exact=True)

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
                return -training.policy_loss(now, now, advantage, estimator)

            np.testing.assert_allclose(
                jax.grad(estimate)(logits), jax.grad(expected)(logits), atol=1e-5
            )


def test_ppo_stops_where_the_ratio_has_gone_far_enough():
    then, gained = jnp.zeros((4, 1)), jnp.asarray([[0.05], [0.2], [-0.2], [0.2]])
    advantage = jnp.asarray([[1.0], [1.0], [-1.0], [-1.0]])
    grad = jax.grad(lambda now: training.policy_loss(now, then, advantage, "ppo"))(gained)
    np.testing.assert_array_equal(grad[:, 0] != 0, [True, False, False, True])


def test_beta_is_log_linear():
    found = [float(training.entropy_coefficient((0.5, 0.002), share)) for share in (0, 0.5, 1)]
    np.testing.assert_allclose(found, [0.5, (0.5 * 0.002) ** 0.5, 0.002], rtol=1e-5)
    assert float(training.entropy_coefficient((0.0, 0.0), 0.3)) == 0


def test_fixed_orders():
    tokens = np.array([[1, 7, 5, 9, 7, 2, 0], [1, 8, 2, 0, 0, 0, 0]], np.int32)
    mask = tokens > 0
    frequencies = np.array([0, 0, 0, 0, 0, 3, 0, 8, 1, 5])

    def order(name, seed=0):
        found = models.fixed_orders(name, tokens, mask, frequencies, jax.random.key(seed))
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
    gradient = fast_jit(jax.grad(lambda m: loss(m, batch, jax.random.key(0), memory)[0]))
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
    step = fast_jit(jax.value_and_grad(chex.assert_max_traces(loss, n=1), has_aux=True))
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

    @fast_jit
    def both(model):
        found = search_order(model.decoder, batch, config.search_beams).log_prob[:, 0]
        return found, loss(model, batch, jax.random.key(0), memory)[1][0]["nats_per_word"]

    found, nats = both(voi.make_model(config))
    words = batch["target_mask"].sum(-1) - 1
    np.testing.assert_allclose(nats, -(found / words).mean(), rtol=1e-4)


def test_words_are_aligned_with_those_of_the_decoder():
    model = small_model()
    np.testing.assert_allclose(training.alignment_loss(model), 0, atol=1e-5)
    config = small()
    config.seed = 5
    for stage in config.stages.values():
        stage.shared = False
    other = voi.make_model(config)
    grads = named_parameters(jax.grad(training.alignment_loss)(other))
    assert 0.5 < training.alignment_loss(other) < 1.5
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
    with pytest.raises(UserError, match=r"model\.permutation\.scheme='absolute'"):
        voi.make_model(small("--config.model.permutation.scheme=absolute"))


@pytest.fixture
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def run_doors(recipe, tmp_path, capsys, *flags):
    """Train, write and judge; returns the records of training and the results."""
    workdir = ("--workdir", str(tmp_path / "run"))
    argv = ["--config", str(ROOT / "configs" / recipe), *SMALL[2:], *flags]
    assert train.main((*argv, *workdir)) == 0
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in metrics.splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert list((tmp_path / "run" / "pictures").rglob("*.png"))
    capsys.readouterr()
    few = ("--num_examples", "3", "--batch_size", "2", "--beams", "2")
    assert generate.main((*workdir, *few)) == 0
    written = json.loads((tmp_path / "run" / "generated" / "written.json").read_text())
    assert len(written) == 3
    assert all(sorted(line["order"]) == list(range(len(line["words"]))) for line in written)
    assert written[0]["text"] in capsys.readouterr().out
    with Image.open(tmp_path / "run" / "generated" / "orders.png") as picture:
        assert picture.width > 8
    assert evaluate.main((*workdir, *few, "--perturbed", "1")) == 0
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert results["examples"] == 3
    return records, results


@pytest.mark.usefixtures("quick_to_compile")
def test_writing_and_judging_with_a_fresh_model(tmp_path, capsys):
    def parsed(door, *flags):
        parser = argparse.ArgumentParser()
        getattr(voi, f"add_{door}_flags")(parser)
        return parser.parse_args(["--num_examples=3", "--batch_size=2", "--beams=2", *flags])

    config, model = small(), small_model()
    voi.generate(model, config, parsed("generate"), tmp_path)
    written = json.loads((tmp_path / "written.json").read_text())
    assert len(written) == 3
    assert all(sorted(line["order"]) == list(range(len(line["words"]))) for line in written)
    assert written[0]["text"] in capsys.readouterr().out
    with Image.open(tmp_path / "orders.png") as picture:
        assert picture.width > 8
    results = voi.evaluate(model, config, parsed("evaluate", "--perturbed=0"), tmp_path)
    assert results["examples"] == 3
    assert set(results["table_3_1"]) == {"ours_voi"}
    assert 0 <= results["permutation_network_to_common"] <= 1
    with pytest.raises(UserError, match="--beams=0"):
        voi.generate(model, config, parsed("generate", "--beams=0"), tmp_path)
    with pytest.raises(UserError, match="writes of pictures"):
        voi.generate(model, config, parsed("generate", "--text=a star"), tmp_path)


@pytest.mark.slow
def test_the_doors_recover_an_order(tmp_path, capsys):
    """Both stages of `voi_order_recovery.py`; a cell of table 3.2 with the paper's beside it."""
    flags = [f"--config.stages.{stage}.num_steps=2" for stage in ("decoder", "permutation")]
    flags += [f"--config.stages.{stage}.batch_size=4" for stage in ("decoder", "permutation")]
    flags += ["--config.stages.decoder.optimizer.warmup_steps=0"]
    records, results = run_doors("voi_order_recovery.py", tmp_path, capsys, *flags)
    assert [("kl" in record, record["stage"]) for record in records[-1:]] == [(True, "permutation")]
    assert set(results["table_3_1"]) == {"ours_voi"}
    assert results["table_3_2"]["paper"]["gumbel_matching"]["xl"] == 0.25
    ours = results["table_3_2"]["ours"]["gumbel_matching, xl, K = 2"]
    assert ours == results["permutation_network_to_common"]
    assert 0 <= ours <= 1


@pytest.mark.slow
@pytest.mark.parametrize("order", ["voi", "common", "sao"])
def test_the_doors_run_all_published_stages(order, tmp_path, capsys):
    flags = [f"--config.order={order}", "--config.stages.joint.estimator=ppo"]
    for stage in ("joint", "separate", "tune"):
        flags += [f"--config.stages.{stage}.num_steps=2", f"--config.stages.{stage}.batch_size=4"]
    flags += ["--config.stages.joint.optimizer.warmup_steps=0"]
    records, results = run_doors("voi_coco.py", tmp_path, capsys, *flags)
    assert {record["stage"] for record in records} == {"joint", "separate", "tune"}
    assert ("kl" in records[0]) == (order == "voi")
    assert set(results["table_3_1"]) == {f"ours_{order}"}


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
    source = models.open_source(config)
    assert len(source.corpus) == len((out / "tgt_raw_train.txt").read_text().splitlines())
    written = generate.main((*workdir, "--text", "call the function", "--target", "return x"))
    assert written == 0
    assert "return" in capsys.readouterr().out
