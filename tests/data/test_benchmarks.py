"""Benchmarks: what a data set has, and what judges it."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from vljax.data.benchmarks import KINDS, open_benchmark
from vljax.data.pictures.images import write_png
from vljax.data.scenes import CLASSES, SHAPES, Scenes, words
from vljax.data.source import Source, Span
from vljax.errors import UserError
from vljax.metrics.order import open_tagger
from vljax.metrics.text import METRICS


def fields(**changes):
    base = {"name": "scenes", "path": "", "split": "train", "held_out": 0, "image_size": 32}
    return ConfigDict({**base, "scenes": {"size": 9, "max_objects": 2, "seed": 4}, **changes})


def test_scenes_have_everything():
    scenes = open_benchmark(fields())
    wanted = ("image", "class_ids")
    for held_out, split in ((False, "train"), (True, "val")):
        source = scenes.pictures(wanted, held_out=held_out)
        same = Scenes(size=9, max_objects=2, seed=4, split=split, image_size=32, fields=wanted)
        assert source == same
    labels = source[0]["class_ids"]
    assert scenes.classes[labels[0]] == CLASSES[labels[0]]
    assert scenes.captioned
    said = {word for caption in scenes.captions(3) for word in words(caption)}
    assert said <= set(scenes.vocabulary)
    assert len(list(scenes.captions(12))) == 60
    assert {one.label for one in scenes.oracle.detect(source[0]["image"])} <= set(labels)
    assert "unknown" not in open_tagger(scenes.tagger)(list(scenes.vocabulary))


def test_scenes_edits_change_a_colour_and_keep_the_shape():
    edits = list(open_benchmark(fields()).edits(12))
    assert len(edits) == 12
    for edit in edits:
        assert edit["category"] in SHAPES
        source, wish = edit["source_prompt"].split(), edit["edit_prompt"].split()
        assert source[-1] == wish[-1] == edit["category"]
        assert source != wish
        assert edit["image"].shape[:2] == edit["edit_mask"].shape == (32, 32)


def test_folders_keep_their_last_pictures_for_evaluation(tmp_path):
    for i in range(5):
        write_png(tmp_path / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
    config = fields(name="folder", path=str(tmp_path))
    assert len(open_benchmark(config).pictures()) == 5
    config.held_out = 2
    folder = open_benchmark(config)
    training, kept = folder.pictures(), folder.pictures(held_out=True)
    assert isinstance(kept, Source)
    assert isinstance(kept, Span)
    values = [example["image"][0, 0, 0] for example in itertools.chain(_all(training), _all(kept))]
    assert values == [0, 1, 2, 3, 4]
    assert len(kept) == 2
    assert kept.fingerprint != training.fingerprint
    assert folder.label == f"folder {tmp_path}"
    assert [folder.captioned, folder.oracle, folder.text_metrics] == [False, None, ()]
    with pytest.raises(UserError, match=r"data\.held_out=0: nothing is kept"):
        open_benchmark(fields(name="folder", path=str(tmp_path))).pictures(held_out=True)
    config.held_out = 5
    with pytest.raises(UserError, match=r"data\.held_out=5 of 5 examples: some must stay"):
        folder.pictures()


def _all(source):
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("name", KINDS)
def test_what_a_benchmark_lacks_is_told_with_those_that_have_it(name):
    benchmark = open_benchmark(fields(name=name))
    assert set(benchmark.text_metrics) <= set(METRICS)
    asked = {
        "pictures": lambda: benchmark.pictures(),
        "captions": lambda: benchmark.captions(1),
        "edits": lambda: benchmark.edits(1),
        "questions": lambda: benchmark.questions(("question",)),
    }
    for what, ask in asked.items():
        if what not in benchmark.has:
            with pytest.raises(UserError, match=f"{name}.*has no {what}: choose one of .*scenes"):
                ask()
    assert benchmark.text_metrics or "texts" not in benchmark.has


def test_texts_are_opened_where_there_are_some():
    wanted = {"max_source": 3, "max_target": 20, "vocabulary_size": 0, "min_count": 1}
    text = open_benchmark(fields(**wanted)).text()
    assert set(text[0]) == {"regions", "boxes", "target"}
    with pytest.raises(UserError, match=r"data\.name='folder': choose one of scenes"):
        open_benchmark(fields(name="folder", **wanted)).text()
