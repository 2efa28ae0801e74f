"""What the methods are for, seen on the examples in the package: a method on, against off.

"Off" is the same model without the method, or with what it heeds exchanged among the examples, so
that each test fails where the method does nothing.
"""

import jax
import numpy as np
import pytest

from vljax.data.benchmarks import open_benchmark
from vljax.data.scenes import CLASSES, oracle
from vljax.diffusion.noise import example_keys
from vljax.diffusion.process import make_process
from vljax.doors import example, open_model, read_workdir
from vljax.metrics import pointing
from vljax.metrics.guided import attribute_accuracy
from vljax.metrics.layout import geneva_score, layout_of
from vljax.metrics.manipulation import outside_kept, scene_score
from vljax.metrics.shape import iou_within, oracle_segmenter
from vljax.systems import load_system

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def opened(name):
    config = read_workdir(example(name))
    config.compilation_cache = ""
    system = load_system(config.system)
    return system, open_model((), system, config, example(name)), config


@pytest.fixture(scope="module")
def sdg():
    """`drawn(encoder, scale)`: eight pictures of texts, and the share in the colour asked for."""
    from vljax.systems.sdg.method import Drawing

    system, model, config = opened("sdg")
    asked = [("circle", "red"), ("square", "blue")] * 4
    texts = [f"a photo of a {colour} {shape}" for shape, colour in asked]
    tokens = system.make_tokenizer(config)(texts, config.model.clip.context_length)
    keys = example_keys(jax.random.key(0), len(asked))

    def drawn(encoder, scale):
        drawing = Drawing(config, steps="ddim10", encoder=encoder)
        pictures = np.asarray(drawing(model, keys, {"text": (tokens, np.float32(scale))}))
        return attribute_accuracy(pictures, asked)["colour right"]

    return drawn


def test_a_text_guides_a_model_that_knows_none(sdg):
    assert sdg("noisy_clip", 100) > sdg("noisy_clip", 0) + 0.4


@pytest.mark.slow
def test_noise_aware_clip_guides_better_than_clean(sdg):
    assert sdg("noisy_clip", 300) > sdg("clip", 300) + 0.3


def test_pjx_points_at_the_evidence():
    """Of numbers and existence; the map of another picture and question lies there by chance."""
    from vljax.systems.pjx.method import explain_batch
    from vljax.systems.pjx.probing import open_judged
    from vljax.systems.pjx.words import open_words

    _, model, config = opened("pjx")
    words = open_words(config)
    judged, _ = open_judged(config, words, open_benchmark(config.data), 80)
    found = explain_batch(model, config, words, judged.arrays, judged.truth, part="explainer")
    mass, of_another, area = [], [], []
    for i, one in enumerate(judged.examples):
        if one["question_kind"] in ("count", "exist") and (one["evidence"] > 0).any():
            mass.append(pointing.mass_on(found.points[i], one["evidence"] > 0))
            of_another.append(pointing.mass_on(found.points[i - 1], one["evidence"] > 0))
            area.append((one["evidence"] > 0).mean())
    assert len(mass) >= 15
    assert np.mean(mass) > 2.5 * np.mean(area)
    assert np.mean(mass) > 1.5 * np.mean(of_another)


def test_a_dialogue_is_drawn():
    """Two turns hold more of what was said in them than of what another dialogue said."""
    from vljax.systems.cdd_icm.method import Drawing, read_dialogues

    _, model, config = opened("cdd_icm")
    given = read_dialogues(config, 12)
    first = given._replace(pictures=given.pictures[:, :2], tokens=given.tokens[:, :2])
    drawn = Drawing(config, steps="ddim8", icm=0.0).dialogues(model, 0, first, 12)[:, 1]
    size = drawn.shape[1:3]
    seen, meant = (
        [layout_of(oracle.detect(one), len(CLASSES), size) for one in pictures]
        for pictures in (drawn, given.pictures[:, 1])
    )
    own = [geneva_score(a, b).f1 for a, b in zip(seen, meant, strict=True)]
    other = [geneva_score(a, b).f1 for a, b in zip(seen, meant[1:] + meant[:1], strict=True)]
    assert np.mean(own) > np.mean(other) + 0.1


def test_an_entity_edit_keeps_the_rest():
    """Other pixels are the same bit for bit; most entities have the colour that is asked for."""
    from vljax.systems.semani_diff.method import draw, finish, make_batch

    system, model, config = opened("semani_diff")
    wishes = [w for w in open_benchmark(config.data).manipulations(48) if w.kind == "colour"][:10]
    images = np.stack([one.image for one in wishes])
    masks = np.stack([one.mask for one in wishes])
    batch = make_batch(
        system.make_tokenizer(config),
        model.sd.tokens,
        images,
        masks,
        [one.text for one in wishes],
        guidance_scale=config.samples.guidance_scale,
        seeds=range(len(wishes)),
    )
    process = make_process(config, "ddim10", clean_end=config.diffusion.clean_end)
    drawn = np.asarray(draw(model.sd, process, batch, None, sampler="ddim"))
    each = zip(images, drawn, masks, strict=True)
    made = np.stack([finish(*one, config.samples.feather) for one in each])
    assert outside_kept(made, images, masks).all()
    right = [scene_score(a, b, w.truth).right for a, b, w in zip(made, images, wishes, strict=True)]
    assert np.mean(right) >= 0.5


def test_attention_inside_and_outside_keeps_the_shape():
    """With nothing copied from the photograph, the object fills its shape better than without."""
    from vljax.systems.shape_guided.evaluation import TRIALS, Judging, _make_pictures, open_edits

    _, model, config = opened("shape_guided")
    edits = open_edits(config, 6)
    trials = [
        one
        for one in TRIALS
        if one.kind == "given" and not (one.copies or one.idle)
        if one.method in ("shape_guided", "without_ioa")
    ]
    made = _make_pictures(
        model,
        config,
        Judging(steps="6", batch_size=6),
        edits,
        {"given": edits.shape},
        trials,
        None,
    )
    fills = {
        trial.method: np.mean(
            [
                iou_within(oracle_segmenter(one, wish.edit), shape)
                for one, wish, shape in zip(pictures, edits.wishes, edits.shape, strict=True)
            ]
        )
        for trial, pictures in made.items()
    }
    assert fills["shape_guided"] > fills["without_ioa"] + 0.15


def test_an_order_is_recovered():
    """VOI writes what an insertion model of common words first taught it in that order."""
    from vljax.systems.voi.evaluation import compared_orders
    from vljax.systems.voi.model import texts
    from vljax.systems.voi.writing import write_all

    _, model, config = opened("voi")
    source = texts(config, held_out=True)
    (some, _) = next(iter(write_all(model, config, source, 16, 16, 1, 0.0)))
    report = compared_orders(some.tokens[:, 0], some.order[:, 0], source)
    distance = {row.method: row.values["normalised_levenshtein"] for row in report.rows}
    assert distance["common"] < 0.3
    assert min(distance["random"], distance["rare"]) > 0.5


def test_content_words_are_written_first():
    """Of captions; read from left to right the same words come the other way round, if at all."""
    from vljax.metrics.order import precedence
    from vljax.systems.voi.model import texts
    from vljax.systems.voi.writing import lines, write_all

    _, model, config = opened("voi_captions")
    source = texts(config, held_out=True)
    (some, _) = next(iter(write_all(model, config, source, 16, 16, 1, 0.0)))
    told = lines(some, source.vocabulary)
    words = [line.words for line in told]
    learnt = precedence(words, [line.order for line in told])
    read = precedence(words, [range(len(line.words)) for line in told])
    assert learnt.difference > 0.1
    assert learnt.p_value < 0.01
    assert read.difference < learnt.difference - 0.1
