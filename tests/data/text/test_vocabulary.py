"""Vocabularies of words and of pieces, learnt, stored and read again."""

import pickle
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.data.text.vocabulary import (
    MARKS,
    Pieces,
    Words,
    learn_pieces,
    learn_words,
    open_vocabulary,
)
from vljax.errors import UserError
from vljax.marks import END, PAD, START, UNKNOWN

SENTENCES = ["the cat sat on the mat", "the dog sat", "a cat and a dog", "Ro-En: pădurea — ☃"] * 3


class TestWords:
    def test_marks_come_first_then_words_by_frequency(self):
        learnt = learn_words(["b a c", "a b", "a"])
        assert learnt.words == ("a", "b", "c")
        assert learnt.size == 7
        assert learnt.encode("c zebra a") == [6, UNKNOWN, 4]
        assert learnt.tokens(range(7)) == [*MARKS, "a", "b", "c"]
        assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)

    def test_rare_words_and_the_last_of_too_many_are_unknown(self):
        texts = ["a a a b b c"]
        assert learn_words(texts, min_count=2).words == ("a", "b")
        assert learn_words(texts, vocabulary_size=5).words == ("a",)

    def test_a_text_cannot_forge_marks(self):
        learnt = learn_words(["a <end> b"])
        assert learnt.words == ("a", "b")
        assert learnt.encode("a <end> <pad> b") == [4, UNKNOWN, UNKNOWN, 5]

    def test_decodes_up_to_the_end(self):
        learnt = learn_words(["a b"])
        assert learnt.decode(np.array([START, 4, 5, END, 4, PAD])) == "a b"
        assert learnt.decode([START, UNKNOWN, 5]) == "<unk> b"
        assert learnt.decode([START, END]) == ""

    def test_splits_at_spaces_only(self):
        learnt = learn_words(["a\xa0b 'c d'", "  x  "])
        assert set(learnt.words) == {"a\xa0b", "'c", "d'", "x"}
        assert learnt.encode("") == learnt.encode("   ") == []

    def test_captions_are_split_into_words_and_signs(self):
        learnt = learn_words(["A man's dog."], caption=True)
        assert set(learnt.words) == {"a", "man", "'s", "dog", "."}
        assert UNKNOWN not in learnt.encode("a dog. A MAN")

    def test_a_word_twice_is_refused(self):
        with pytest.raises(UserError, match="'b' occurs twice"):
            Words(["a", "b", "b"])


@pytest.fixture(scope="module")
def pieces():
    return learn_pieces(SENTENCES, 300)


class TestPieces:
    def test_learns_merges_of_the_commonest_pairs(self, pieces):
        assert 260 < pieces.size <= 300
        ids = pieces.encode("the cat")
        assert pieces.tokens(ids) == [" the", " cat"]
        assert len(pieces.encode("xylophone")) > 3
        assert min(pieces.encode("<pad><start>")) >= len(MARKS)

    @settings(max_examples=100, deadline=None)
    @given(written=st.text(st.characters(blacklist_categories=("Cs",)), max_size=30))
    def test_any_text_comes_back(self, pieces, written):
        ids = pieces.encode(written)
        assert all(len(MARKS) <= i < pieces.size for i in ids)
        expected = unicodedata.normalize("NFC", written.strip()).strip()
        assert pieces.decode([START, *ids, END, 9]) == expected

    def test_unknown_shows_in_its_place(self, pieces):
        cat = pieces.encode("cat")
        assert pieces.decode([*cat, UNKNOWN, *cat]) == "cat <unk> cat"
        assert pieces.decode([UNKNOWN]) == "<unk>"

    def test_too_small_a_size_is_refused(self):
        with pytest.raises(UserError, match="bytes and marks take 260"):
            learn_pieces(SENTENCES, 260)

    def test_pickles(self, pieces):
        again = pickle.loads(pickle.dumps(pieces))
        assert again.encode("the mat") == pieces.encode("the mat")


class TestVocabularyFiles:
    @pytest.mark.parametrize("kind", ["words", "caption", "pieces"])
    def test_round_trip(self, kind, pieces, tmp_path):
        learnt = {
            "words": learn_words(SENTENCES),
            "caption": learn_words(SENTENCES, caption=True),
            "pieces": pieces,
        }[kind]
        learnt = learnt.with_frequencies(range(learnt.size))
        learnt.save(tmp_path / "deep" / "vocabulary.json")
        again = open_vocabulary(tmp_path / "deep" / "vocabulary.json")
        assert type(again) is type(learnt)
        assert again.fingerprint == learnt.fingerprint
        assert again.encode("The mat: a ☃") == learnt.encode("The mat: a ☃")
        np.testing.assert_array_equal(again.frequencies, np.arange(learnt.size))
        assert again.frequencies.dtype == np.int64
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["vocabulary.json"]

    def test_a_list_of_words(self, tmp_path):
        (tmp_path / "words.txt").write_text("<pad>\n<unk>\n<start>\n<end>\na\ndog\n")
        listed = open_vocabulary(tmp_path / "words.txt")
        assert listed.words == ("a", "dog")
        assert listed.encode("A dog, ") == [4, 5, UNKNOWN]

    def test_a_tokenizer_of_hugging_face(self, pieces, tmp_path):
        (tmp_path / "tokenizer.json").write_text(pieces._backend.to_str())
        again = open_vocabulary(tmp_path / "tokenizer.json")
        assert isinstance(again, Pieces)
        assert again.encode("the cat") == pieces.encode("the cat")

    def test_what_cannot_be_read_is_named(self, tmp_path):
        (tmp_path / "empty.txt").write_text("\n")
        (tmp_path / "cut.json").write_text('{"kind": "words", "words"')
        (tmp_path / "short.json").write_text('{"kind":"words","words":["a"],"frequencies":[1]}')
        for name, why in [
            ("none.json", "does not exist"),
            ("empty.txt", "it is empty"),
            ("cut.json", "cannot be read"),
            ("short.json", "5 entries has 1 frequencies"),
        ]:
            with pytest.raises(UserError, match=why) as caught:
                open_vocabulary(tmp_path / name)
            assert "\n" not in str(caught.value)
            assert name in str(caught.value)
