"""VQA, VQA-X and ACT-X as they are published; their vocabularies and rules for words."""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import write_png
from vljax.data.source import CorruptExampleError, Source
from vljax.data.text.published import (
    PublishedWords,
    explanation_ids,
    majority,
    open_published_words,
    pjx_words,
    question_ids,
)
from vljax.data.text.vqa import (
    Questions,
    open_asked,
    read_act_x,
    read_nlx,
    read_vqa,
    read_vqa_x,
)
from vljax.errors import UserError

SHARED = Path(__file__).parents[3] / "../shared/data"
PJX, VQA = SHARED / "pjx", SHARED / "vqa"
needs_samples = pytest.mark.skipif(
    not (PJX / "vqa_x").is_dir(), reason="the real samples (shared/data/pjx) are not there"
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def vote(*answers):
    return [
        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers)
    ]


@pytest.fixture
def folder(tmp_path):
    """A tiny VQA-X in its published shape, with pictures and features."""
    questions = [
        {"image_id": 7, "question": "Is this a zoo?", "question_id": 7001},
        {"image_id": 9, "question": "What is it?", "question_id": 9000},
        {"image_id": 9, "question": "Nobody answers?", "question_id": 9001},
    ]
    answers = [
        {"question_id": 7001, "answers": vote("yes", "no", "yes"), "answer_type": "yes/no"},
        {"question_id": 9000, "answers": vote("cat", "dog"), "answer_type": "other"},
    ]
    for name in ("v2_OpenEnded_mscoco_val2014_questions", "OpenEnded_mscoco_val2014_questions"):
        write(tmp_path / "Questions" / f"{name}.json", {"questions": questions})
    for name in ("v2_mscoco_val2014_annotations", "mscoco_val2014_annotations"):
        write(tmp_path / "Annotations" / f"{name}.json", {"annotations": answers})
    write(tmp_path / "textual/val_exp_anno.json", {"9000": ["it is furry", "it purrs"]})
    write(
        tmp_path / "exp_test_split.json", {"a": {"iid": "0123", "ans": "ski, general", "exp": "x"}}
    )
    row = {
        "question": "is it?",
        "answers": vote("no"),
        "image_name": "COCO_val2014_000000000009.jpg",
    }
    write(tmp_path / "vqaX_test.json", {"9000": {**row, "explanation": ["no"]}})
    for number in (7, 9):
        name = f"COCO_val2014_{number:012d}.jpg"
        write_png(tmp_path / "val2014" / name, np.full((4, 6, 3), number, np.uint8))
        place = tmp_path / "res5c/val2014" / f"{name}.npz"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place, x=np.full((2, 3, 3), number, np.float32))
    return tmp_path


class TestReading:
    def test_every_published_form(self, folder):
        for name in ("vqa_v1", "vqa_v2"):
            zoo, what = open_asked(name, folder, "val")
            assert (zoo.id, zoo.image) == ("7001", "COCO_val2014_000000000007.jpg")
            assert (zoo.question, zoo.answers) == ("Is this a zoo?", ("yes", "no", "yes"))
            assert (zoo.answer, zoo.kind, zoo.justifications) == ("yes", "yes/no", ())
            assert what.answer == "dog"  # a tie goes to the last by the alphabet
        (explained,) = open_asked("vqa_x", folder, "val")
        assert explained.question == "What is it?"
        assert explained.justifications == ("it is furry", "it purrs")
        (act,) = open_asked("act_x", folder, "test")
        assert (act.question, act.answer, act.image) == ("", "ski, general", "0123.jpg")
        assert act.justifications == ("x",)
        (nlx,) = open_asked("nlx", folder, "test")
        assert (nlx.id, nlx.answers, nlx.justifications) == ("9000", ("no",), ("no",))
        assert nlx.image == explained.image

    @pytest.mark.parametrize(
        ("name", "split", "told"),
        [
            ("vqa", "val", r"data\.name='vqa': choose one of vqa_v2"),
            ("vqa_x", "dev", r"data\.split='dev': choose one of train"),
            ("vqa_x", "train", r"has no train_exp_anno\.json"),
            ("vqa_v2", "train", r"has no v2_OpenEnded_mscoco_train2014_questions\.json"),
        ],
    )
    def test_what_is_missing_is_named(self, folder, name, split, told):
        with pytest.raises(UserError, match=told):
            open_asked(name, folder, split)

    def test_damage_is_named(self, folder, tmp_path):
        asked = open_asked("vqa_v2", folder, "val")
        questions = folder / "Questions/v2_OpenEnded_mscoco_val2014_questions.json"
        answers = folder / "Annotations/v2_mscoco_val2014_annotations.json"
        wrong = tmp_path / "wrong_val2014.json"
        for content, read, told in (
            ("[", lambda p: read_nlx(p), "not readable json"),
            ([], lambda p: read_nlx(p), "no entries"),
            ({"1": {"question": "x"}}, read_nlx, "entry 1 has no 'image_name'"),
            ({"1": {"iid": "x", "ans": "y"}}, read_act_x, "entry 1 has no 'exp'"),
            ({"1": {"iid": "x", "ans": "y", "exp": [3]}}, read_act_x, "entry 1 is no list"),
            ({"5": ["so"]}, lambda p: read_vqa_x(p, asked), "question 5 is none of 2"),
            ({"rows": []}, lambda p: read_vqa(p, answers), "no list 'questions'"),
            ({"questions": [{}]}, lambda p: read_vqa(p, answers), "entry 0 has no 'question_id'"),
            ({"annotations": []}, lambda p: read_vqa(questions, p), "no question in common"),
            (
                {"annotations": [{"question_id": 7001, "answers": []}]},
                lambda p: read_vqa(questions, p),
                "entry 7001 has no 'answers'",
            ),
        ):
            write(wrong, content)
            with pytest.raises(UserError, match=told) as error:
                read(wrong)
            assert str(wrong) in str(error.value)
            assert "\n" not in str(error.value)
        nameless = write(tmp_path / "questions.json", questions.read_text())
        with pytest.raises(UserError, match="tells no subset"):
            read_vqa(nameless, answers)


class TestSource:
    def test_examples_have_pictures_and_features_where_they_are_needed(self, folder):
        asked = open_asked("vqa_v2", folder, "val")
        plain = Questions(asked)
        assert isinstance(plain, Source)
        assert not {"image", "features"} & set(plain[0])
        source = Questions(asked, pictures=folder, features=folder / "res5c")
        example = source[1]
        assert example["question"] == "What is it?"
        assert example["answer"] == "dog"
        assert example["image"].shape == (4, 6, 3)
        assert example["features"].shape == (2, 3, 3)
        assert example["features"].dtype == np.float32
        assert (example["features"] == 9).all()
        assert source.fingerprint == plain.fingerprint != Questions(asked[:1]).fingerprint
        with pytest.raises(IndexError):
            source[2]

    def test_what_is_missing_or_damaged_is_named(self, folder):
        asked = open_asked("vqa_v2", folder, "val")
        source = Questions(asked, pictures=folder, features=folder / "res5c")
        place = folder / "res5c/val2014/COCO_val2014_000000000009.jpg.npz"
        np.savez(place, y=np.zeros(3))
        with pytest.raises(CorruptExampleError, match=r"question 9000.*no array 'x' \(it has y\)"):
            source[1]
        place.unlink()
        with pytest.raises(UserError, match=r"lacks the features of 1 of 2.*0009\.jpg\.npz"):
            Questions(asked, features=folder / "res5c")
        with pytest.raises(UserError, match=r"lacks the photographs of 2 of 2"):
            Questions(asked, pictures=folder / "textual")

    def test_benchmarks_open_them(self, folder):
        fields = {"name": "vqa_v2", "path": str(folder), "split": "val", "eval_split": ""}
        benchmark = open_benchmark(ConfigDict({**fields, "features": str(folder / "res5c")}))
        wanted = ("question", "answer", "features")
        for held_out in (False, True):
            assert benchmark.questions(wanted, held_out=held_out)[0]["features"].shape == (2, 3, 3)
        assert "image" in benchmark.questions(("image",))[0]
        with pytest.raises(UserError, match=r"data\.features is empty"):
            open_benchmark(ConfigDict(fields)).questions(wanted)
        scenes = open_benchmark(
            ConfigDict({"name": "scenes", "split": "train", "scenes": {"size": 3}})
        )
        wanted = ("image", "question", "answer", "justifications")
        example = scenes.questions(wanted)[0]
        assert set(example) == set(wanted)
        assert example["answer"] in scenes.answers


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Is this a zoo?", "is this a zoo"),
            ("It's the man's, isn't it?", "its the mans isnt it"),
            ("left-hand and/or right", "left hand and or right"),
            ('"Yes" ($5: @ noon;)!.', "yes 5  noon"),
        ],
    )
    def test_rules(self, text, words):
        assert pjx_words(text) == words.split(" ")

    def test_entries_keep_their_order(self, tmp_path):
        words = open_published_words(write(tmp_path / "v.json", {"b": 1, "<EOS>": 0, "": 2}))
        assert words.entries == ("<EOS>", "b", "")
        assert (words.end, words.unknown, len(words)) == (0, 2, 3)
        assert words.encode("B, what b") == [1, 2, 1]
        assert words.decode([1, 2, 1, 0, 1]) == "b b"
        with pytest.raises(UserError, match=r"'c' is none of 1"):
            PublishedWords(["a"]).id("c")

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("{", "not readable json"),
            ([1], "maps no words"),
            ({"a": "0"}, "maps no words"),
            ({"a": 0, "b": 2}, "has the number 1"),
            ({"a": 0, "b": 0}, "has the number 1"),
        ],
    )
    def test_damaged_lists_are_refused(self, tmp_path, content, told):
        with pytest.raises(UserError, match=told):
            open_published_words(write(tmp_path / "v.json", content))

    def test_questions_stand_at_the_right(self):
        words = PublishedWords(["", "a", "b", "c"])
        ids, there = question_ids(words, "a b?", 4)
        assert ids.tolist() == [0, 0, 1, 2]
        assert there.tolist() == [False, False, True, True]
        assert question_ids(words, "a b c a b c", 4)[0].tolist() == [3, 1, 2, 3]

    def test_explanations_begin_and_end_with_the_same_mark(self):
        words = PublishedWords(["<EOS>", "", "a", "b"])
        read, written = explanation_ids(words, "a b.", 5)
        assert read.tolist() == [0, 2, 3, 0, 0]
        assert written.tolist() == [2, 3, 0, -1, -1]
        read, written = explanation_ids(words, "a b a b", 3)  # the end is cut off
        assert read.tolist() == [0, 2, 3]
        assert written.tolist() == [2, 3, 2]
        with pytest.raises(UserError, match="exp_vdict"):
            explanation_ids(PublishedWords(["", "a"]), "a")

    def test_most_people_decide(self):
        assert majority(["no", "yes", "no"]) == "no"
        assert majority(["no", "yes"]) == "yes"


@needs_samples
class TestRealSamples:
    def test_vqa_x(self):
        place = PJX / "vqa_x"
        asked = read_vqa(
            place / "v2_OpenEnded_mscoco_val2014_questions.part_val.json",
            place / "v2_mscoco_val2014_annotations.part_val.json",
        )
        explained = read_vqa_x(place / "val_exp_anno.json", asked)
        assert len(explained) == len(asked) == 150
        assert all(len(one.justifications) == 3 for one in explained)
        assert all(len(one.answers) == 10 for one in explained)
        assert {one.kind for one in explained} == {"yes/no", "number", "other"}
        assert explained[0].image == "COCO_val2014_000000393271.jpg"
        nlx = read_nlx(place / "nlx_form_test.json")
        told = json.loads((place / "test_exp_anno.json").read_text())
        assert {one.id: list(one.justifications) for one in nlx} == told
        assert nlx[0].image == "COCO_val2014_000000083277.jpg"

    def test_published_vocabularies_know_the_words(self):
        sizes = {
            "questions": (VQA / "vdict.json", 13_321),
            "answers": (VQA / "adict.json", 3000),
            "explanations": (PJX / "vocab/vqa_exp_vdict.json", 8247),
            "acts": (PJX / "vocab/act_adict.json", 397),
            "act explanations": (VQA / "act_exp_vdict.json", 7565),
        }
        lists = {name: open_published_words(path) for name, (path, _) in sizes.items()}
        assert {name: len(words) for name, words in lists.items()} == {
            name: size for name, (_, size) in sizes.items()
        }
        assert lists["answers"].unknown == 2999
        assert lists["questions"].unknown == 0
        assert (lists["explanations"].end, lists["explanations"].unknown) == (0, 1)
        assert lists["acts"].id("badminton, competitive (Taylor Code 450)") == 1
        # Of the whole validation and test sets 1.3 and 1.2 %, 0.3 and 0.2 % of the words.
        test = read_nlx(PJX / "vqa_x/nlx_form_test.json")
        unknown = {
            "explanations": [text for one in test for text in one.justifications],
            "questions": [one.question for one in test],
        }
        for name, texts in unknown.items():
            ids = [i for text in texts for i in lists[name].encode(text)]
            share = ids.count(lists[name].unknown) / len(ids)
            assert share < (0.02 if name == "explanations" else 0.006)
        known = [one.answer in lists["answers"] for one in test]
        assert np.mean(known) > 0.98
