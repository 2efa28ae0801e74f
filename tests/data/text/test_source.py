"""Sequences of tokens from every format, and clear words for what cannot be read."""

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from vljax.data.pipeline import batches
from vljax.data.scenes import VOCABULARY
from vljax.data.source import CorruptExampleError, Source
from vljax.data.text import (
    END,
    PAD,
    START,
    UNKNOWN,
    open_django,
    open_text,
    pad_text,
    survey,
)
from vljax.data.text.vocabulary import Words
from vljax.errors import UserError

ROOT = Path(__file__).parents[3]
DJANGO = ROOT / "../shared/data/django"
COCO = ROOT / "../shared/data/coco_captions"


def config(name, path="", **fields):
    told = {
        "name": name,
        "path": str(path),
        "split": "train",
        "held_out": 0,
        "max_source": 12,
        "max_target": 12,
        "vocabulary_size": 0,
        "min_count": 1,
    }
    return ConfigDict({**told, **fields})


def write_django(folder, split, pairs):
    for side, lines in zip(("src", "tgt"), zip(*pairs, strict=True), strict=True):
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{side}_raw_{split}.txt").write_bytes(text.encode())


PAIRS = [
    ("import the module os .", "import os"),
    ("", "pass"),
    ("return x , twice  .", "return x  , x"),
    ("increment x", "x += 1"),
]


@pytest.fixture
def django(tmp_path):
    write_django(tmp_path, "train", PAIRS)
    write_django(tmp_path, "dev", [("return y", "return y"), ("one", "x"), ("", "")])
    return tmp_path


def one_line(caught):
    return "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ Django


class TestDjango:
    def test_both_sides_share_one_vocabulary(self, django):
        source = open_text(config("django", django))
        assert len(source) == 4
        assert isinstance(source, Source)
        assert source.fields == ("source", "target")
        told = source.vocabulary
        for i, (read, written) in enumerate(PAIRS):
            example = source[i]
            assert example["source"].dtype == example["target"].dtype == np.int32
            assert told.decode(example["source"]) == " ".join(read.split())
            assert told.decode(example["target"]) == " ".join(written.split())
            assert source.references(i) == [" ".join(written.split())]
        assert source[1]["source"].shape == (0,)
        assert source[1]["target"].shape == (1,)
        assert source.feature_size == 0

    def test_frequencies_count_the_training_targets(self, django):
        for held_out in (False, True):
            told = open_text(config("django", django), held_out=held_out).vocabulary
            count = dict(zip(told.tokens(range(told.size)), told.frequencies, strict=True))
            assert count["x"] == 3
            assert count["pass"] == 1
            assert count["module"] == 0
            assert told.frequencies.sum() == 10

    def test_evaluation_words_beyond_training_are_unknown(self, django):
        source = open_text(config("django", django), held_out=True)
        assert source.vocabulary.decode(source[0]["target"]) == "return <unk>"
        assert source.references(0) == ["return y"]
        assert [len(source[2][name]) for name in ("source", "target")] == [0, 0]

    def test_rare_words_are_counted_as_unknown(self, django):
        told = open_text(config("django", django, min_count=2)).vocabulary
        assert set(told.words) == {"x", "import", "os", "return", ",", "."}
        assert told.frequencies[UNKNOWN] == 3  # pass, += and 1
        assert told.frequencies.sum() == 10

    def test_training_drops_what_is_too_long_and_evaluation_cuts_it(self, django):
        with pytest.warns(UserWarning, match="2 of 4 training examples are left out") as told:
            source = open_text(config("django", django, max_source=4, max_target=3))
        assert len(told) == 1
        assert source.dropped == 2
        assert [source.references(i) for i in range(2)] == [["pass"], ["x += 1"]]
        with pytest.warns(UserWarning, match="1 of 3 evaluation examples are over data.max_source"):
            source = open_text(config("django", django, max_target=1), held_out=True)
        assert (len(source), source.truncated) == (3, 1)
        assert len(source[0]["target"]) == 1
        assert source.references(0) == ["return y"]

    def test_a_target_without_words_is_no_training_example(self, tmp_path):
        write_django(tmp_path, "train", [("a", "b"), ("c", "")])
        with pytest.warns(UserWarning, match="1 of 2 training examples are left out"):
            assert len(open_text(config("django", tmp_path))) == 1
        write_django(tmp_path, "train", [("a", "b c d e")])
        with pytest.raises(UserError, match="all 1 training examples"):
            open_text(config("django", tmp_path, max_target=3))

    def test_a_part_of_training_may_be_held_out(self, django):
        training = open_text(config("django", django, held_out=1))
        evaluation = open_text(config("django", django, held_out=1), held_out=True)
        assert (len(training), len(evaluation)) == (3, 1)
        assert evaluation.references(0) == ["x += 1"]
        assert evaluation.vocabulary.decode(evaluation[0]["target"]) == "x <unk> <unk>"
        with pytest.raises(UserError, match="held_out=4 of 4"):
            open_text(config("django", django, held_out=4))

    def test_the_evaluation_split_is_chosen(self, django):
        write_django(django, "test", [("a", "x")])
        assert len(open_text(config("django", django, eval_split="test"), held_out=True)) == 1

    def test_a_saved_vocabulary_is_enough_to_evaluate(self, django, tmp_path):
        file = tmp_path / "vocabulary.json"
        trained = open_text(config("django", django))
        trained.vocabulary.save(file)
        for side in ("src", "tgt"):
            (django / f"{side}_raw_train.txt").unlink()
        source = open_text(config("django", django, vocabulary=str(file)), held_out=True)
        assert source.vocabulary.fingerprint == trained.vocabulary.fingerprint
        np.testing.assert_array_equal(source.vocabulary.frequencies, trained.vocabulary.frequencies)

    def test_fingerprints_change_with_what_is_read(self, django):
        seen = {
            open_text(config("django", django)).fingerprint,
            open_text(config("django", django, held_out=1)).fingerprint,
            open_text(config("django", django, min_count=2)).fingerprint,
            open_text(config("django", django), held_out=True).fingerprint,
        }
        assert len(seen) == 4
        assert open_text(config("django", django)).fingerprint in seen

    def test_odd_signs_part_no_lines(self, tmp_path):
        odd = "a\x0bb\u2028c\x85d\re"
        write_django(tmp_path, "train", [("read", odd), ("x", "y\r")])
        assert open_django(tmp_path, "train").targets == (odd, "y")

    def test_indices_outside_are_refused(self, django):
        source = open_text(config("django", django))
        for index in (-1, 4):
            with pytest.raises(IndexError):
                source[index]


class TestMistakes:
    def test_mismatched_files_are_named_with_both_counts(self, django):
        (django / "tgt_raw_train.txt").write_text("import os\n")
        with pytest.raises(UserError, match=r"has 4 lines, tgt_raw_train.txt 1") as caught:
            open_text(config("django", django))
        assert one_line(caught)

    def test_missing_and_unreadable_files(self, django, tmp_path):
        (django / "src_raw_bad.txt").write_bytes(b"\xff\xfe\n")
        (django / "src_raw_none.txt").write_text("")
        (django / "tgt_raw_none.txt").write_text("")
        cases = [
            (config("django", tmp_path / "missing"), "has no src_raw_train.txt"),
            (config("django", django, split="test"), "has no src_raw_test.txt"),
            (config("django", django, split="bad"), "no UTF-8"),
            (config("django", django, split="none"), "is empty"),
            (config("django"), "data.path is empty"),
            (config("python150"), "choose one of scenes, coco, django"),
            (config("django", django, vocabulary="none.json"), "does not exist"),
            (config("django", django, max_target=0), "data.max_target=0"),
            (config("django", django, held_out=-1), "data.held_out=-1"),
            (config("django", django, vocabulary_size=4), "data.vocabulary_size=4"),
            (config("scenes", max_target=10), "data.max_target=10: captions of scenes need 11"),
            (
                config("gigaword", tmp_path / "missing", vocabulary_size=300),
                "data_dir does not exist",
            ),
            (config("wmt16", tmp_path, vocabulary_size=300), "prepare it with `tfds build"),
        ]
        for wrong, why in cases:
            with pytest.raises(UserError, match=why) as caught:
                open_text(wrong)
            assert one_line(caught)

    def test_unknown_fields(self, django):
        with pytest.raises(UserError, match="field 'regions' is none of source, target"):
            open_text(config("django", django), fields=("regions",))


@pytest.mark.skipif(not DJANGO.is_dir(), reason="the Django corpus is not beside the checkout")
def test_the_whole_of_django():
    with pytest.warns(UserWarning, match="61 of 16000 training examples"):
        source = open_text(config("django", DJANGO, max_source=70, max_target=50))
    assert len(source) == 15_939
    assert source.vocabulary.size == 9_887
    for index in (0, 7_777, 15_938):
        assert source.vocabulary.decode(source[index]["target"]) == source.references(index)[0]
    with pytest.warns(UserWarning, match="5 of 1000 evaluation examples"):
        held_out = open_text(config("django", DJANGO, max_source=70, max_target=50), held_out=True)
    assert held_out.references(0) == ["def strip_tags ( value ) :pass"]
    assert held_out.vocabulary.fingerprint == source.vocabulary.fingerprint


# --------------------------------------------------------------------------------- pictures


class TestScenes:
    def test_examples(self):
        source = open_text(config("scenes", scenes={"size": 40}))
        assert len(source) == 40
        assert source.fields == ("regions", "boxes", "target")
        assert source.feature_size == 22
        assert set(source.vocabulary.words) == {*VOCABULARY, ","}
        for i in range(40):
            example = source[i]
            assert 1 <= len(example["target"]) <= 12
            assert UNKNOWN not in example["target"]
            assert source.vocabulary.decode(example["target"]) in source.references(i)
            assert len(source.references(i)) == 5
            assert example["boxes"].shape == (len(example["regions"]), 4)
        told = source.vocabulary
        count = dict(zip(told.tokens(range(told.size)), told.frequencies, strict=True))
        assert count["a"] > count["red"] > 0

    def test_evaluation_scenes_are_others(self):
        training = open_text(config("scenes", scenes={"size": 40}))
        evaluation = open_text(config("scenes", scenes={"size": 40}, held_out=7), held_out=True)
        assert len(evaluation) == 7
        assert any(training.references(i) != evaluation.references(i) for i in range(7))
        np.testing.assert_array_equal(
            training.vocabulary.frequencies, evaluation.vocabulary.frequencies
        )

    def test_pictures_on_request(self):
        source = open_text(
            config("scenes", scenes={"size": 4, "image_size": 24}), fields=("image", "target")
        )
        assert source[2]["image"].shape == (24, 24, 3)
        assert set(source[2]) == {"image", "target"}


def test_regions_that_cannot_be_read_do_not_hide_the_size_of_the_others(tmp_path):
    for folder in ("captions", "features"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        (tmp_path / f"captions/{name}.txt").write_text("a cat")
        np.savez(tmp_path / f"features/{name}.npz", features=np.zeros((2, 3, 5)))
    (tmp_path / "features/a.npz").write_bytes(b"damaged")
    source = open_text(config("coco", tmp_path))
    with pytest.raises(CorruptExampleError, match=r"example 0: .*a\.npz cannot be read"):
        source[0]
    assert source.feature_size == 5
    (tmp_path / "features/b.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match="check the storage"):
        _ = open_text(config("coco", tmp_path)).feature_size


@pytest.mark.skipif(not COCO.is_dir(), reason="the captions are not beside the checkout")
class TestRealCaptions:
    def test_training_has_each_caption_and_evaluation_each_picture(self):
        fields = {"features": "pixels", "held_out": 2, "max_source": 49, "max_target": 30}
        training = open_text(config("coco", COCO, **fields))
        evaluation = open_text(config("coco", COCO, **fields), held_out=True)
        assert (len(training), len(evaluation)) == (15, 2)
        assert all(len(evaluation.references(i)) == 5 for i in range(2))
        assert {r for i in range(15) for r in training.references(i)}.isdisjoint(
            evaluation.references(0)
        )
        assert training.feature_size == 192
        written = [training.vocabulary.decode(training[i]["target"]) for i in range(15)]
        assert written[:5] == training.references(0)

    def test_the_published_vocabulary_knows_every_word(self):
        fields = {"features": "pixels", "max_source": 49, "max_target": 30}
        listed = str(COCO / "train2017_vocab.txt")
        source = open_text(config("coco", COCO, vocabulary=listed, **fields))
        assert len(source) == 25
        assert source.vocabulary.frequencies[UNKNOWN] == 0
        assert source.vocabulary.frequencies.sum() == sum(
            len(source[i]["target"]) for i in range(25)
        )


# ------------------------------------------------------------------------------ transform


class TestPadText:
    def test_texts(self):
        transform = pad_text(4, 3)
        padded = transform(
            {"source": np.array([7, 8, 9], np.int32), "target": np.array([5], np.int32)},
            np.random.default_rng(0),
        )
        np.testing.assert_array_equal(padded["source"], [7, 8, 9, PAD])
        np.testing.assert_array_equal(padded["source_mask"], [True, True, True, False])
        np.testing.assert_array_equal(padded["target"], [START, 5, END, PAD, PAD])
        np.testing.assert_array_equal(padded["target_mask"], [True, True, True, False, False])
        assert padded["source"].dtype == padded["target"].dtype == np.int32
        assert padded["source_mask"].dtype == padded["target_mask"].dtype == bool

    def test_the_longest_just_fit_and_longer_ones_are_refused(self):
        transform = pad_text(2, 2)
        ids = np.array([4, 5], np.int32)
        padded = transform({"source": ids, "target": ids}, np.random.default_rng(0))
        assert padded["source_mask"].all()
        np.testing.assert_array_equal(padded["target"], [START, 4, 5, END])
        for name in ("source", "target"):
            with pytest.raises(UserError, match=f"a {name} has 3 tokens, over max_{name}=2"):
                transform({name: np.array([4, 5, 6])}, np.random.default_rng(0))

    def test_an_empty_source_is_an_end(self):
        padded = pad_text(2, 2)(
            {"source": np.zeros(0, np.int32), "target": np.zeros(0, np.int32)},
            np.random.default_rng(0),
        )
        np.testing.assert_array_equal(padded["source"], [END, PAD])
        np.testing.assert_array_equal(padded["source_mask"], [True, False])
        np.testing.assert_array_equal(padded["target"], [START, END, PAD, PAD])

    def test_regions(self):
        example = {
            "regions": np.ones((3, 5), np.float32),
            "boxes": np.ones((3, 4), np.float32),
            "other": 3,
        }
        padded = pad_text(4, 2)(example, np.random.default_rng(0))
        np.testing.assert_array_equal(padded["regions_mask"], [True, True, True, False])
        assert padded["regions"].shape == (4, 5)
        np.testing.assert_array_equal(padded["regions"][3], 0)
        np.testing.assert_array_equal(padded["boxes"][:, 0], [1, 1, 1, 0])
        assert padded["other"] == 3
        fewer = pad_text(2, 2)(example, np.random.default_rng(0))
        assert fewer["regions_mask"].all()
        assert fewer["boxes"].shape == (2, 4)

    def test_batches(self, django):
        source = open_text(config("django", django))
        batch = next(
            batches(source, batch_size=4, seed=0, transform=pad_text(12, 12), shuffle=False)
        )
        assert batch["source"].shape == (4, 12)
        assert batch["target"].shape == batch["target_mask"].shape == (4, 14)
        np.testing.assert_array_equal(batch["target_mask"].sum(1), [4, 3, 6, 5])

    def test_sources_pickle_for_workers(self, django):
        for source in (
            open_text(config("django", django)),
            open_text(config("scenes", scenes={"size": 9})),
        ):
            again = pickle.loads(pickle.dumps(source))
            assert again.fingerprint == source.fingerprint
            for name, value in source[1].items():
                np.testing.assert_array_equal(again[1][name], value)


# ------------------------------------------------------------------- TensorFlow Datasets

TFDS = """
import os, pathlib, pickle, sys, warnings
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

folder = sys.argv[1]
os.environ["XDG_CACHE_HOME"] = folder + "/cache"
LINES = [(f"document number {i} of the longest day", f"day {i}") for i in range(30)]
LINES[3] = ("", "nothing was read")
LINES[7] = ("a " * 90, "too long to be read")

class Gigaword(tfds.core.GeneratorBasedBuilder):
    "Documents and summaries."
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
            {"document": tfds.features.Text(), "summary": tfds.features.Text()}))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples(LINES),
                "validation": self._generate_examples([("day seven", "sunday — ☃")])}

    def _generate_examples(self, lines):
        for i, (document, summary) in enumerate(lines):
            yield i, {"document": document, "summary": summary}

class Wmt16Translate(tfds.core.GeneratorBasedBuilder):
    "Sentences in two languages."
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="ro-en", version="1.0.0")]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.Translation(languages=("ro", "en")))

    def _split_generators(self, downloads):
        return {"train": self._generate_examples(9), "validation": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"ro": f"pădurea {i} este mare", "en": f"forest {i} is big"}

for builder in (Gigaword(data_dir=folder, file_format="array_record"),
                Wmt16Translate(config="ro-en", data_dir=folder, file_format="array_record")):
    builder.download_and_prepare()

from vljax.data.text import survey as text
from vljax.data.text import UNKNOWN, open_text, pad_text
from vljax.data.pipeline import batches
from vljax.errors import UserError

def config(name, **fields):
    return ConfigDict({"name": name, "path": folder, "split": "train", "held_out": 0,
        "max_source": 60, "max_target": 40, "vocabulary_size": 300, "min_count": 1} | fields)

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    source = open_text(config("gigaword"))
assert any("1 of 30 training examples are left out" in str(w.message) for w in told), told
assert len(source) == 29
again = pickle.loads(pickle.dumps(source))
shown = set()
for i in range(29):
    example = again[i]
    assert source.vocabulary.decode(example["target"]) == source.references(i)[0]
    shown.add((source.vocabulary.decode(example["source"]), source.references(i)[0]))
assert shown == {pair for pair in LINES if "too long" not in pair[1]}, shown
assert 260 < source.vocabulary.size <= 300
total = sum(len(source.vocabulary.encode(summary)) for _, summary in LINES)
assert source.vocabulary.frequencies.sum() == total

cached = sorted(p.name.split("-")[0] for p in pathlib.Path(folder, "cache/vljax").iterdir())
assert cached == ["pieces", "survey"], cached
stop = lambda *_, **__: (_ for _ in ()).throw(AssertionError("learnt or counted again"))
learn, measure = text.learn_pieces, text.measure
text.learn_pieces = text.measure = stop
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    second = open_text(config("gigaword"))
assert second.fingerprint == source.fingerprint
assert (second.vocabulary.frequencies == source.vocabulary.frequencies).all()
text.learn_pieces, text.measure = learn, measure
for file in pathlib.Path(folder, "cache/vljax").iterdir():
    file.write_bytes(file.read_bytes()[:50])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    assert open_text(config("gigaword")).fingerprint == source.fingerprint

evaluation = open_text(config("gigaword"), held_out=True)
assert len(evaluation) == 1 and evaluation.references(0) == ["sunday — ☃"]
assert evaluation.vocabulary.decode(evaluation[0]["target"]) == "sunday — ☃"
assert UNKNOWN not in evaluation[0]["target"]
last = open_text(config("gigaword", held_out=5, max_source=100), held_out=True)
assert len(last) == 5

source = open_text(config("wmt16"))
first = source[0]
assert source.vocabulary.decode(first["source"]).startswith("pădurea")
assert source.vocabulary.decode(first["target"]).startswith("forest")
batch = next(batches(source, batch_size=4, seed=0, transform=pad_text(60, 40)))
assert batch["target"].shape == (4, 42)

try:
    open_text(config("gigaword", split="test"))
except UserError as error:
    assert "choose one of train, validation" in str(error)
else:
    raise AssertionError("there is no such split")

assert "tensorflow" not in sys.modules
"""


def test_tfds_pairs_without_tensorflow(tmp_path):
    """In a process of its own, since other tests' libraries may import TensorFlow."""
    script = tmp_path / "pairs.py"
    script.write_text(textwrap.dedent(TFDS))
    (tmp_path / "data").mkdir()
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    place = survey._cached("pieces", "x", ".json")
    survey._keep(lambda: Words(["a"]).save(place))
    assert not place.exists()
    assert (tmp_path / "file").read_text() == "no folder"
