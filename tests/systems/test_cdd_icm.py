"""CDD-ICM: its equations, its dialogues, and itself through its doors. Small networks."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.data.pictures.test_geneva import Long
from vljax import evaluate, generate, train
from vljax.data.pictures import geneva
from vljax.data.text.tokenizers import train_tokenizer
from vljax.diffusion.noise import example_keys
from vljax.diffusion.process import Process, make_process, q_sample
from vljax.diffusion.progress import report_to
from vljax.doors import parse_config
from vljax.errors import UserError
from vljax.models.localizer import ObjectLocalizer
from vljax.models.parameters import copied, named_parameters
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import contrastive_loss, cosine
from vljax.systems import cdd_icm
from vljax.systems.cdd_icm import detection, evaluation, method, training
from vljax.systems.cdd_icm.evaluation import BY_TURN, LAST, RETRIEVAL, SAID, SETTINGS
from vljax.systems.cdd_icm.method import Drawing, Drawn, read_dialogues
from vljax.systems.cdd_icm.model import (
    Composer,
    Denoiser,
    NoisyEncoder,
    encode_image,
    encode_text,
    icm_scale,
    read,
    without,
)
from vljax.systems.cdd_icm.paper import PAPER, TABLE_1, TABLE_2
from vljax.training.optimizer import learning_rate_factors

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--config", str(ROOT / "configs" / "cdd_icm_iclevr.py")),
    "--config.data.scenes.min_objects=2",
    "--config.data.scenes.max_objects=3",
    "--config.data.scenes.size=60",
    "--config.model.features=16",
    "--config.model.diffusion.model_channels=8",
    "--config.model.diffusion.norm_groups=4",
    "--config.model.diffusion.num_head_channels=8",
    "--config.model.diffusion.channel_mult=(1.0,)",
    "--config.model.diffusion.attention_resolutions=()",
    "--config.model.clip.embed_dim=16",
    "--config.model.clip.vision_width=16",
    "--config.model.clip.vision_layers=1",
    "--config.model.clip.patch_size=8",
    "--config.model.clip.text_width=16",
    "--config.model.clip.text_layers=1",
    "--config.model.clip.head_channels=8",
    *(
        f"--config.stages.{stage}.{field}"
        for stage in ("clip", "icm", "cdd", "noisy_icm")
        for field in ("num_steps=2", "batch_size=4", "optimizer.warmup_steps=0")
    ),
    "--config.samples.count=2",
    "--config.samples.steps=2",
)


def configured(*changes):
    return parse_config((*SMALL, *changes))[0]


def tensor(array):
    torch = pytest.importorskip("torch")
    return torch.tensor(np.asarray(array))


@pytest.fixture(scope="module")
def config():
    return configured()


def filled(config):
    """A model whose zero layers are not: an untrained network predicts nothing."""
    shapes, structure = jax.tree.flatten(jax.eval_shape(lambda: cdd_icm.make_model(config)))
    rng = np.random.default_rng(3)
    leaves = [rng.normal(0, 0.3, shape.shape).astype(np.float32) for shape in shapes]
    return jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in leaves])


@pytest.fixture(scope="module")
def model(config):
    return filled(config)


@pytest.fixture(scope="module")
def batch(config, model):
    (_, icm, *_) = cdd_icm.stages(config)
    rng = np.random.default_rng(0)
    examples = [icm.transform(icm.source[i], rng) for i in range(4)]
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}


@jax.jit
def composed(model, reference, tokens):
    return read(model.clip, model.composer, to_unit(reference), tokens)


@jax.jit
def seen(model, images):
    return encode_image(model.clip, model.composer, to_unit(images))


icm_loss = jax.jit(training.icm_loss)


# Equations ---------------------------------------------------------------------------------------


def test_icm_is_equation_12(config, model, batch):
    loss, metrics = icm_loss(model, batch, jax.random.key(0))
    vector = composed(model, batch["reference"], batch["tokens"]).vector
    target = seen(model, batch["target"]).summary
    f, z = (one / one.norm(dim=1, keepdim=True) for one in (tensor(vector), tensor(target)))
    scaled = f @ z.T * float(icm_scale(model.composer))  # 1/τ
    n = len(f)
    theirs = -(scaled.log_softmax(1).trace() + scaled.T.log_softmax(1).trace()) / n
    np.testing.assert_allclose(loss, float(theirs), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["recall"], float((scaled.argmax(1) == tensor(range(n))).float().mean())
    )
    # τ of the published setting begins at e⁻¹.
    published = configured("--config.icm_logit_scale=1.0")
    start = Composer(published, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(1 / icm_scale(start), np.exp(-1), rtol=1e-6)


def test_cdd_is_equations_6_to_11():
    """In float64, from the equations with eq. 7's misprint mended: γ counts nats a step."""
    config = configured("--config.diffusion.prediction=epsilon")
    process, gamma = make_process(config), 1.5
    rng = np.random.default_rng(1)
    x0, noise = rng.uniform(-1, 1, (2, 3, 4, 4, 3)).astype(np.float32)
    step = np.array([1, 200, 999])
    output = rng.normal(size=(3, 4, 4, 6)).astype(np.float32)
    loss, terms = training._per_example(config)(process, lambda x, t: output, x0, step, noise)

    t = np.arange(1001) / 1000
    s = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha = np.concatenate([[1.0], np.maximum(s[1:] / s[:-1], 1 - 0.999)])
    bar = np.cumprod(alpha)
    for i in range(3):
        n = step[i] + 1
        beta, a, b, before = 1 - alpha[n], alpha[n], bar[n], bar[n - 1]
        x_t = np.sqrt(b) * x0[i] + np.sqrt(1 - b) * noise[i]
        eps, rho = output[i, ..., :3].astype(float), (output[i, ..., 3:].astype(float) + 1) / 2
        tilde = (1 - before) / (1 - b) * beta
        mean = np.sqrt(before) * beta / (1 - b) * x0[i] + np.sqrt(a) * (1 - before) / (1 - b) * x_t
        mu = (x_t - beta / np.sqrt(1 - b) * eps) / np.sqrt(a)
        log_sigma = np.log(beta / tilde) * rho + np.log(tilde)
        kl = (
            0.5
            * (
                log_sigma - np.log(tilde) + (tilde + (mean - mu) ** 2) / np.exp(log_sigma) - 1
            ).mean()
        )
        mse = np.mean((noise[i] - eps) ** 2)
        np.testing.assert_allclose(terms["mse"][i], mse, rtol=1e-5)
        np.testing.assert_allclose(loss[i], mse + gamma * kl, rtol=1e-3)


def test_stage_2_is_equation_13_and_drops_c_alone(model, batch):
    """Its loss is that of denoising plus δ times ICM; all conditions dropped, c does not matter."""
    key, model = jax.random.key(5), copied(model)
    model.matcher = None  # as published
    joint = jax.jit(training.cdd_loss(configured("--config.dropped.share=0.0")))
    all_dropped = ("--config.dropped.share=1.0", "--config.dropped.what=('condition',)")
    dropped = jax.jit(training.cdd_loss(configured("--config.with_icm=False", *all_dropped)))
    total, metrics = joint(model, batch, key)
    icm, _ = icm_loss(model, batch, key)
    np.testing.assert_allclose(metrics["icm"], icm, rtol=1e-5)
    nats = np.log(2) * metrics["vlb"] / 1000
    np.testing.assert_allclose(total, metrics["mse"] + 1.5 * nats + 0.1 * icm, rtol=1e-5)

    other = copied(model)
    other.composer.compose.change.bias[...] += 1.0  # moves c and nothing else
    assert joint(other, batch, key)[1]["mse"] != metrics["mse"]
    bare = dropped(model, batch, key)[0]
    assert dropped(other, batch, key)[0] == bare
    # The text's tokens and the reference still count.
    for name in ("tokens", "reference"):
        changed = {**batch, name: np.roll(batch[name], 1, axis=0)}
        assert dropped(model, changed, key)[0] != bare


def test_icm_of_its_own_follows_and_does_not_lead(model, batch):
    """What pictures are drawn under then learns by denoising alone; the matcher by ICM alone."""
    loss = training.cdd_loss(configured("--config.dropped.share=0.0"))

    @jax.jit
    def gradients(model):
        def icm(model):
            return loss(model, batch, jax.random.key(5))[1]["icm"]

        return named_parameters(jax.grad(icm, allow_int=True)(model))

    moved = {name for name, value in gradients(model).items() if np.any(value)}
    assert moved
    assert all(name.startswith("matcher.") for name in moved)
    begun = training.start_matcher(model)
    np.testing.assert_array_equal(begun.matcher.image.weight, model.composer.image.weight)
    assert begun.matcher.image is not begun.composer.image


def test_without_drops_what_it_is_told(model, batch):
    condition = composed(model, batch["reference"], batch["tokens"])
    keep = np.array([1.0, 0.0, 1.0, 0.0], np.float32)
    both = without(condition, ("condition", "tokens"), keep)
    for name in ("vector", "tokens"):
        made, was = getattr(both, name), getattr(condition, name)
        np.testing.assert_array_equal(made[::2], was[::2])
        assert not np.any(made[1::2])
    assert both.patches is condition.patches


def test_classifier_free_guidance_is_equation_15():
    """Of ε alone: the variance is that under c; φ = 1 is no guidance."""
    output = np.random.default_rng(0).normal(size=(4, 2, 2, 6)).astype(np.float32)
    process = Process(make_process(configured()).schedule, "epsilon", "learned_range")
    x, t = np.zeros((2, 2, 2, 3), np.float32), np.zeros(2, np.int32)

    def both(x, t):
        assert len(x) == len(t) == 4
        return output

    found = method.classifier_free(process, both, 3.0)(x, t)
    under, free = output[:2], output[2:]
    np.testing.assert_allclose(
        found[..., :3], 3 * under[..., :3] + (1 - 3) * free[..., :3], rtol=1e-5
    )
    np.testing.assert_array_equal(found[..., 3:], under[..., 3:])
    np.testing.assert_array_equal(method.classifier_free(process, both, 1.0)(x, t), under)


def test_icm_guidance_climbs_the_own_term(config, model, batch):
    """Equation 14's gradient of one picture's loss is nothing; that of its cosine is right."""
    process, psi = make_process(config), 2.0
    x = q_sample(
        process.schedule,
        batch["target"] / 127.5 - 1.0,
        np.full(4, 300),
        jax.random.normal(jax.random.key(1), (4, 32, 32, 3)),
    )
    t = np.full(4, 300)
    vector = composed(model, batch["reference"], batch["tokens"]).vector

    @jax.jit
    def fit(x):
        return cosine(model.noisy(x, t), vector) * icm_scale(model.noisy)

    @jax.jit
    def guided(x, vector, longest):
        return method.icm_guidance(model, process, vector, psi, longest)(x, t)

    gradient = guided(x, vector, 1e9)
    step = 1e-2 * gradient / jnp.linalg.norm(gradient.reshape(4, -1), axis=1)[:, None, None, None]
    slope = (fit(x + step) - fit(x - step)) / 2e-2
    norm = jnp.linalg.norm(gradient.reshape(4, -1), axis=1)
    np.testing.assert_allclose(psi * slope, norm, rtol=2e-2)  # climbs, by ψ times the slope

    def loss(x):
        return contrastive_loss(vector[:1], model.noisy(x, t[:1]), icm_scale(model.noisy))

    assert not np.any(jax.jit(jax.grad(loss))(x[:1]))
    # Neighbours do not count, and a limit shortens.
    mixed = jnp.concatenate([x[:1], x[:3]])
    mixed_vector = jnp.concatenate([vector[:1], vector[:3]])
    limited = guided(mixed, mixed_vector, 1e-4)
    rms = np.sqrt(np.square(limited).mean((1, 2, 3)))
    np.testing.assert_allclose(rms, 1e-4 / process.schedule.noise[300], rtol=1e-4)
    # Where almost nothing of x_0 is left in x_t, x_0 moves by no more than the limit.
    last = np.full(4, 999)
    bent = jax.jit(lambda x: method.icm_guidance(model, process, mixed_vector, 1e6, 0.1)(x, last))(
        mixed
    )
    schedule = process.schedule
    moved = bent * schedule.noise[999] ** 2 / schedule.signal[999]
    np.testing.assert_allclose(np.sqrt(np.square(moved).mean((1, 2, 3))), 0.1, rtol=1e-3)
    one = guided(mixed, mixed_vector, 1e9)
    np.testing.assert_allclose(one[0], gradient[0], rtol=1e-3, atol=1e-6)


def test_unmoved_pixels_are_the_references():
    rng = np.random.default_rng(0)
    reference = rng.integers(100, 150, (1, 12, 12, 3)).astype(np.uint8)
    picture = reference + rng.integers(0, 4, reference.shape).astype(np.uint8)
    picture[0, 5, 5] = 255
    kept = np.array(method.keep_unchanged(reference, picture, 3.0))
    np.testing.assert_array_equal(kept[0, 4:7, 4:7], picture[0, 4:7, 4:7])
    kept[0, 4:7, 4:7] = reference[0, 4:7, 4:7]
    np.testing.assert_array_equal(kept, reference)
    np.testing.assert_array_equal(method.keep_unchanged(reference, picture, 0.0), picture)


# Beginnings and rates ----------------------------------------------------------------------------


def test_projections_begin_as_clips_own(config, model, batch):
    begun = training.start_projections(model, config)
    tokens = batch["tokens"]
    image, text = jax.jit(
        lambda clip, images, tokens: (clip.encode_image(images), clip.encode_text(tokens))
    )(model.clip, to_unit(batch["target"]), tokens)
    np.testing.assert_allclose(seen(begun, batch["target"]).summary, image, rtol=1e-3, atol=1e-4)
    ours = jax.jit(encode_text)(begun.clip, begun.composer, tokens).summary
    np.testing.assert_allclose(ours, text, rtol=1e-3, atol=1e-4)
    assert begun.clip.visual.proj is not begun.composer.image.weight
    same = training.start_projections(model, configured("--config.model.projections=random"))
    np.testing.assert_array_equal(same.composer.image.weight, model.composer.image.weight)


@pytest.mark.parametrize("timed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_noisy_encoder_begins_as_the_image_encoder(model, batch, timed):
    changed = configured(f"--config.model.noisy.timed={timed}")
    held = copied(model)
    held.noisy = NoisyEncoder(changed, rngs=nnx.Rngs(0))
    begun = training.start_noisy(held, changed)
    ours = jax.jit(lambda noisy, x: noisy(x, jnp.arange(4)))(begun.noisy, to_unit(batch["target"]))
    matched = jax.jit(encode_image)(model.clip, model.matcher, to_unit(batch["target"]))
    np.testing.assert_allclose(ours, matched.summary, rtol=1e-3, atol=1e-4)
    assert float(begun.noisy.logit_scale[...]) == 3.0  # a temperature of its own


def test_backbones_learn_at_their_own_rate():
    model = None
    for rate in (0.001, 0.0):
        config = configured(f"--config.backbone_rate={rate}")
        model = model or jax.eval_shape(lambda config=config: cdd_icm.make_model(config))
        names = named_parameters(model)
        for stage in cdd_icm.stages(config)[1:]:
            factors = learning_rate_factors(names, stage.train)
            backbone = {n: f for n, f in factors.items() if n.startswith(("clip", "noisy.visual"))}
            assert set(backbone.values()) == ({rate} if rate else set())
            assert {f for n, f in factors.items() if n not in backbone} == {1.0}
            assert any(n.startswith("noisy") for n in factors) == (stage.name == "noisy_icm")
            assert any(n.startswith("diffusion") for n in factors) == (stage.name == "cdd")


def test_rows_of_table_2_are_fields():
    def names(*changes):
        return [stage.name for stage in cdd_icm.stages(configured(*changes))]

    assert names() == ["clip", "icm", "cdd", "noisy_icm"]
    assert names("--config.with_icm=False") == ["clip", "cdd"]
    assert names("--config.with_icm_guidance=False") == ["clip", "icm", "cdd"]
    for change, reason in (
        ("model.condition=add", "model.condition='add': choose one of linear"),
        ("model.condition=plain", "4 · model_channels = 32"),
        ("model.context=('patches','words')", "'words' is none of patches, tokens"),
        ("model.composition=sum", "composition='sum'"),
    ):
        with pytest.raises(UserError, match=reason):
            jax.eval_shape(lambda c=change: cdd_icm.make_model(configured(f"--config.{c}")))
    with pytest.raises(UserError, match=r"dropped\.share=2"):
        names("--config.dropped.share=2.0")
    with pytest.raises(UserError, match=r"dropped.what=\('text',\): 'text' is none of condition"):
        names("--config.dropped.what=('text',)")
    with pytest.raises(UserError, match=r"model\.projections='own'"):
        names("--config.model.projections=own")


@pytest.mark.parametrize(
    "changes",
    [
        ("model.composition=text", "model.context=('tokens',)", "model.reference_channels=False"),
        pytest.param(
            ("model.composition=picture", "model.context=('patches',)"), marks=pytest.mark.slow
        ),
        pytest.param(("model.condition=off", "model.context=()"), marks=pytest.mark.slow),
    ],
    ids=["text only", "picture only", "channels only"],
)
def test_what_a_row_does_not_see_does_not_count(batch, changes):
    config = configured(*(f"--config.{change}" for change in changes))
    model = filled(config)

    @jax.jit
    def predict(model, reference, tokens):
        condition = read(model.clip, model.composer, reference / 127.5 - 1.0, tokens)
        context = model.diffusion.attend_to(condition)
        x = jax.random.normal(jax.random.key(0), reference.shape)
        return model.diffusion(x, jnp.full(len(x), 500), condition, context)

    usual = predict(model, batch["reference"], batch["tokens"])
    text = predict(model, batch["reference"], np.roll(batch["tokens"], 1, 0))
    picture = predict(model, 255 - batch["reference"], batch["tokens"])
    sees_text = "tokens" in config.model.context or config.model.composition == "text"
    assert np.array_equal(usual, text) != sees_text
    assert np.array_equal(usual, picture) != config.model.reference_channels


def test_the_published_model_has_the_chosen_size():
    """111.9 million parameters: ADM with 128 channels, whose embedding has d = 512 features."""
    config = cdd_icm.get_published_config("iclevr", "/nowhere")
    denoiser = jax.eval_shape(lambda: Denoiser(config, rngs=nnx.Rngs(0)))
    count = sum(np.prod(v.shape) for v in named_parameters(denoiser).values())
    assert round(count / 1e6, 1) == 111.9
    composer = jax.eval_shape(lambda: Composer(config, rngs=nnx.Rngs(0)))
    assert composer.image.weight.shape == (768, 512)
    assert composer.compose.gate.weight.shape == (2048, 512)
    assert config.diffusion.prediction == "epsilon"
    assert config.backbone_rate == 0.001


# Dialogues ---------------------------------------------------------------------------------------


def test_a_dialogue_carries_its_picture(config, model, compilations):
    """Turn by turn, on the model's own pictures or true ones; nothing else compiles anything."""
    drawing = Drawing(config)
    given = read_dialogues(config, 3)
    drawn = drawing.dialogues(model, 0, given, 3)
    assert drawn.shape == given.pictures.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(3))
    compilations()
    supplied = drawing.dialogues(model, 0, given, 3, true_references=True)
    other = Drawing(config, phi=1.7, icm=0.5, eta=0.3, keep=9.0)
    other.dialogues(model, 7, given._replace(tokens=given.tokens[::-1]), 3)
    assert compilations() == 0
    np.testing.assert_array_equal(supplied[:, 0], drawn[:, 0])
    for made, before in ((drawn, drawn), (supplied, given.pictures)):
        with report_to(lambda done, total: None) as told:
            second = drawing.turn(model, keys, 2, before[:, 0], given.tokens[:, 1], told)
        np.testing.assert_array_equal(second.pictures, made[:, 1])


def test_the_best_candidate_stays(config, model):
    """The first candidate is what is drawn where there is but one, alone or in a batch."""
    given = read_dialogues(config, 3)
    keys = jax.vmap(jax.random.key)(np.arange(3))
    canvas, tokens = given.canvas, given.tokens[:, 0]
    with report_to(lambda done, total: None) as told:
        one = Drawing(config).turn(model, keys, 1, canvas, tokens, told)
    with report_to(lambda done, total: None) as told:
        drawing = Drawing(config, candidates=2)
        best = drawing.turn(model, keys[1:2], 1, canvas[1:2], tokens[1:2], told)
    assert best.scores.shape == (1, 2)
    np.testing.assert_allclose(best.scores[0, 0], one.scores[1, 0], atol=2e-2)
    by = copied(model)
    by.composer = model.matcher  # ICM's own composer chooses
    vector = composed(by, canvas, tokens).vector[1:2]
    score = cosine(seen(by, np.repeat(best.pictures, 4, axis=0)).summary[:1], vector)
    np.testing.assert_allclose(score, best.scores.max(1), atol=1e-3)


def test_candidates_are_drawn_few_at_a_time(config, monkeypatch):
    """In parts of one size; the best of all stays, and each is scored once."""
    fits, sizes = np.array([[0.1, 0.5, 0.2, 0.9, 0.3], [0.8, 0.1, 0.2, 0.3, 0.4]]), []

    def drawn(model, process, trained, keys, number, which, reference, *others, **scales):
        sizes.append(len(which))
        best = which[fits[:, which].argmax(axis=1)]
        return Drawn(np.full_like(reference, best[:, None, None, None]), fits[:, which])

    monkeypatch.setattr(method, "_TOGETHER", 4)
    monkeypatch.setattr(method, "_draw", drawn)
    made = Drawing(config, candidates=5).turn(None, None, 1, np.zeros((2, 1, 1, 3), np.uint8), None)
    assert sizes == [2, 2, 2]
    np.testing.assert_array_equal(made.pictures[:, 0, 0, 0], [3, 0])
    np.testing.assert_array_equal(made.scores, fits)


@pytest.mark.parametrize("batch_size", [2, 4, 5])
def test_a_dialogue_is_drawn_from_its_own_noise(config, monkeypatch, batch_size):
    """Also the last one, where examples are missing to a whole batch."""
    given = read_dialogues(config, 5)

    def turn(self, model, keys, number, reference, tokens, progress=None):
        noise = np.asarray(jax.vmap(jax.random.bits)(keys) % 256, np.uint8)
        return Drawn(np.broadcast_to(noise[:, None, None, None], reference.shape), noise[:, None])

    monkeypatch.setattr(Drawing, "turn", turn)
    own = jax.vmap(jax.random.bits)(example_keys(jax.random.key(7), 5)) % 256
    made = Drawing(config).dialogues(None, 7, given, batch_size)
    np.testing.assert_array_equal(made[:, -1, 0, 0, 0], own)


def test_drawings_that_cannot_be(config):
    with pytest.raises(UserError, match="sampler='euler': choose one of ddpm"):
        Drawing(config, "euler")
    with pytest.raises(UserError, match=r"eta=0.5: DDIM alone heeds it, and the sampler is ddpm"):
        Drawing(config, "ddpm", eta=0.5)
    unguided = configured("--config.with_icm_guidance=False")
    assert Drawing(unguided).psi == 0
    with pytest.raises(UserError, match="learnt no ICM guidance"):
        Drawing(unguided, icm=2.0)
    request = cdd_icm.Request(say=("add a circle",), num_dialogues=2)
    with pytest.raises(UserError, match=r"--num_dialogues: .* leave one out"):
        next(cdd_icm.SYSTEM.generate(None, config, request))


# Doors -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, quick_to_compile):
    """A run of all four stages."""
    folder = tmp_path_factory.mktemp("cdd_icm")
    assert train.main((*SMALL, "--workdir", str(folder))) == 0
    return folder


def test_a_run_leaves_its_parts(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"clip", "icm", "cdd", "noisy_icm"}
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert list((workdir / "pictures").rglob("*dialogues*.png"))


def test_a_dialogue_is_drawn_and_gone_on_with(workdir, tmp_path):
    ask = ("--workdir", str(workdir), "--seed", "3", "--candidates", "2")
    say = ("--say", "add a large red circle at the center", "--say", "add a small blue star")
    assert generate.main((*ask, *say, "--out", str(tmp_path / "whole"))) == 0
    made = {path.name for path in (tmp_path / "whole").glob("*.png")}
    assert made == {"turn_1.png", "turn_2.png", "dialogue.png"}
    first, second = (tmp_path / "whole" / f"turn_{i}.png" for i in (1, 2))
    assert Image.open(second).text["say"] == say[3]
    assert len(Image.open(second).text["scores"].split(",")) == 2
    again = (*ask, *say[2:], "--image", str(first), "--turn", "2", "--out", str(tmp_path / "on"))
    assert generate.main(again) == 0
    np.testing.assert_array_equal(Image.open(tmp_path / "on" / "turn_2.png"), Image.open(second))
    with pytest.raises(UserError, match="--say"):
        generate.main((*ask, "--image", str(first), "--out", str(tmp_path / "x")))
    with pytest.raises(UserError, match="say what the turn changes"):
        generate.main((*ask, "--say", " ", "--out", str(tmp_path / "x")))


def test_dialogues_of_one_and_of_14_turns_of_200_words(tmp_path):
    """Shorter ones are filled up with their last turn, and texts are cut at the context's end."""
    pytest.importorskip("h5py")
    for split in ("train", "val", "test"):
        geneva.write(tmp_path / f"codraw_{split}.h5", Long(), "codraw")
    train_tokenizer(["teller bigger and"], 560).save(tmp_path / "tokenizer.json")
    config = cdd_icm.get_published_config("codraw", str(tmp_path))
    config.tokenizer, config.data.image_size = str(tmp_path / "tokenizer.json"), 8
    given = read_dialogues(config, 5)
    assert given.lengths.tolist() == [1, 14]
    assert given.pictures.shape == (2, 14, 8, 8, 3)
    assert (given.pictures[0] == given.pictures[0, 0]).all()
    assert given.tokens.shape == (2, 14, 77)
    end = given.tokens.max()
    assert (given.tokens.argmax(-1) == 76).all()
    assert (given.tokens[..., -1] == end).all()
    for stage in cdd_icm.stages(config):
        turn = stage.transform(stage.source[14], np.random.default_rng(0))
        np.testing.assert_array_equal(turn["tokens"], given.tokens[1, 13])


@pytest.mark.slow
def test_held_out_dialogues_are_drawn(workdir, tmp_path):
    flags = ("--num_dialogues", "2", "--sampler", "dpm_solver", "--out", str(tmp_path))
    assert generate.main(("--workdir", str(workdir), *flags)) == 0
    assert len(list(tmp_path.glob("dialogue_*.png"))) == 2


def test_tables_fill_themselves(workdir):
    flags = (
        "--num_dialogues",
        "3",
        "--batch_size",
        "3",
        "--also",
        "icm_scale=0",
        "sampler=dpm_solver,steps=2",
    )
    assert evaluate.main(("--workdir", str(workdir), *flags)) == 0
    found = json.loads((workdir / "evaluation" / "results.json").read_text())
    tables = found["tables"]
    assert {TABLE_1, TABLE_2, LAST, BY_TURN, SAID, RETRIEVAL, SETTINGS, "drift"} == tables.keys()
    ours = {row["method"]: row for row in tables[TABLE_1] if row["source"] == "here"}
    copies = ours["copies the reference"]
    assert copies["RSIM"] == copies["recall"] == 0
    supplied = ours["copies the reference, true references"]
    assert 20 < supplied["recall"] < 80
    ceiling, chance = (ours[f"draws {how}"] for how in ("anew by the texts", "at chance places"))
    assert ceiling["F1 (mean)"] > 90
    assert ceiling["RSIM"] > chance["RSIM"]
    said = {row["method"]: row for row in tables[SAID]}
    assert said["draws anew by the texts"]["holds"] > 75
    drift = [row for row in tables["drift"] if row["method"] == "CDD-ICM"]
    assert [row["turn"] for row in drift] == [1, 2, 3]
    settings = {row["method"]: row for row in tables[SETTINGS]}
    assert settings.keys() == {"CDD-ICM", "w/o ICM guidance", "sampler=dpm_solver,steps=2"}
    assert settings.keys() < ours.keys()
    assert all(row["seconds a picture"] > 0 for row in settings.values())


def test_settings_that_cannot_be():
    judging = evaluation.Judging()
    assert evaluation.varied(judging, "keep=8,steps=5").keep == 8
    with pytest.raises(UserError, match="--also=seed=3: 'seed' is none of candidates"):
        evaluation.varied(judging, "seed=3")
    with pytest.raises(UserError, match="keep takes a number, not 'much'"):
        evaluation.varied(judging, "keep=much")
    with pytest.raises(UserError, match="--also=steps=5,candidates=0: --candidates=0: give"):
        evaluation.varied(judging, "steps=5,candidates=0")


def test_papers_rows_add_up():
    """F1 as the harmonic mean of a row's precision and recall, to the last digit."""
    rows = [row for row in PAPER if row.table == TABLE_1 and "F1 (of means)" in row.values]
    assert len(rows) == 6
    for row in rows:
        p, r = row.values["precision"], row.values["recall"]
        assert abs(2 * p * r / (p + r) - row.values["F1 (of means)"]) < 0.011


class Localiser(nnx.Module):
    """Three of 58 classes are there; a picture's first value tells the place of the first."""

    published_names = staticmethod(ObjectLocalizer.published_names)

    def __init__(self, classes, coordinates, *, rngs):
        assert (classes, coordinates) == (58, 3)

    def __call__(self, images):
        first = images[:, 0, 0, 0]
        places = jnp.stack([first, 1 - first, first / 2], -1)[:, None].repeat(58, 1)
        return jnp.where(jnp.arange(58) < 3, 0.6, 0.4) * jnp.ones((len(images), 1)), places


def test_genevas_localiser_judges_where_it_is_given(monkeypatch):
    """Its layouts, with depth for CoDraw; a file of something else is refused."""
    sizes = {"detector": 58, "localizer": 58 * 3}
    tensors = {f"module.{name}.1.bias": np.zeros(n, np.float32) for name, n in sizes.items()}
    monkeypatch.setattr(detection, "read_tensors", lambda path: tensors)
    monkeypatch.setattr(detection, "assign", lambda skeleton, tensors, origin: skeleton)
    monkeypatch.setattr(detection, "ObjectLocalizer", Localiser)
    see = detection.open_localizer("codraw.pth", 2, 0)
    levels = np.array([0, 51, 102], np.uint8)
    layouts = see(np.full((3, 9, 9, 3), levels[:, None, None, None]))
    assert [layout.present.sum() for layout in layouts] == [3, 3, 3]
    first = [layout.centres[0] for layout in layouts]
    np.testing.assert_allclose(first, [(0, 0), (0.2, 0.1), (0.4, 0.2)], atol=1e-6)
    with pytest.raises(UserError, match=r"codraw\.pth: knows 58 classes, the data have 24"):
        detection.open_localizer("codraw.pth", 2, 24)
    tensors.clear()
    with pytest.raises(UserError, match="holds no detector and localizer"):
        detection.open_localizer("codraw.pth", 2, 0)
