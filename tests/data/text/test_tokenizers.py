"""Tokenizers against `transformers`', and the promises of our own."""

import gzip
import json
import pickle
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest

from vljax.data.text.tokenizers import (
    END,
    START,
    captioned,
    open_tokenizer,
    train_tokenizer,
    with_dropped_text,
)
from vljax.errors import UserError

MERGES = Path(__file__).parents[3] / "../shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
needs_merges = pytest.mark.skipif(
    not MERGES.is_file(), reason="CLIP's merges (shared/data/clip) are not beside the checkout"
)
CAPTIONS = [
    f"a {size} {colour} {shape} on a {ground} background"
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle", "star")
    for ground in ("white", "black")
]


@pytest.fixture(scope="module")
def clip():
    return open_tokenizer(MERGES)


@pytest.fixture(scope="module")
def hugging_face_folder(tmp_path_factory):
    """`vocab.json` and `merges.txt` as a `transformers` folder holds them."""
    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[1:48895]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(line.split()) for line in lines] + [START, END]
    folder = tmp_path_factory.mktemp("folder")
    indices = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(indices), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]), encoding="utf-8")
    return folder


def test_a_folder_tells_what_pads(tmp_path):
    """Stable Diffusion 2 pads with "!", whose index is 0, after the end token."""
    transformers = pytest.importorskip("transformers")
    made = train_tokenizer(CAPTIONS, 600)
    (tmp_path / "tokenizer").mkdir()
    made.save(tmp_path / "tokenizer" / "tokenizer.json")
    before = open_tokenizer(tmp_path)(["a red circle"], 9)
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    after = open_tokenizer(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer" / "tokenizer.json"), pad_token="!"
    )
    found = after(["a red circle", "wow!"], 9)
    assert after.pad == theirs.pad_token_id == 0
    end = int(before.argmax())
    np.testing.assert_array_equal(found[0, : end + 1], before[0, : end + 1])
    assert (before[0, end:] == made.end).all()
    assert not found[0, end + 1 :].any()
    assert after.decode(found) == ["a red circle", "wow !"]
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(UserError, match="has no '<pad>' to pad with"):
        open_tokenizer(tmp_path)


def strings(count):
    """Words, signs, digits, any Unicode, emoji, white space, marks, long and empty ones."""
    rng = np.random.default_rng(0)
    assigned = [
        chr(i) for i in range(0x20000) if unicodedata.category(chr(i)) not in ("Cs", "Cn", "Co")
    ]
    common = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ 0123456789.,!?'\"-()\t\n")
    emoji = [*map(chr, range(0x1F300, 0x1F650)), "\u200d", "\ufe0f"]
    emoji += ["\U0001f468\u200d\U0001f469", "\U0001f3f3\ufe0f\u200d\U0001f308"]
    accents = [*"éàüñçßøÅİıſK", "e\u0301", "A\u030a", "\u1e9b\u0323", "ﬁ", "한국", "日本語"]
    pieces = ["don't", "WE'LL", "'s", "'S", "<|endoftext|>", "<|ENDOFTEXT|>", "</w>", "&amp;"]
    pools = [common, common, emoji, accents, assigned, pieces + common]
    made = ["", " ", "\n\t ", "\u3000", START, END, "a" * 500, "dog " * 200, "😀" * 100]
    while len(made) < count:
        pool = pools[rng.integers(len(pools))]
        length = rng.integers(1, 150 if rng.random() < 0.1 else 25)
        separator = " " if rng.random() < 0.3 else ""
        made.append(separator.join(pool[i] for i in rng.integers(0, len(pool), length)))
    return made


@needs_merges
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_strings_become_the_tokens_of_transformers(clip, hugging_face_folder, count):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(hugging_face_folder)
    texts = strings(count)
    expected = theirs(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    with pytest.warns(UserWarning, match="tokens, of which the first 75 count"):
        tokens = clip(texts, 77)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, expected)
    # Ours stops at an end token that the text itself holds; theirs goes on.
    plain = [i for i, text in enumerate(texts[:1000]) if START not in text and END not in text]
    decoded = theirs.batch_decode(tokens[plain], skip_special_tokens=True)
    assert clip.decode(tokens[plain]) == decoded


@needs_merges
def test_openais_tokens(clip):
    # The tokens of OpenAI's own tokenizer, but that it pads with zeros.
    tokens = clip(["a photo of a cat", "Hello  World's 12\n", ""], 9)
    np.testing.assert_array_equal(
        tokens,
        [
            [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407],
            [49406, 3306, 1002, 568, 272, 273, 49407, 49407, 49407],
            [49406, *[49407] * 8],
        ],
    )
    assert clip.vocabulary_size == 49_408


@needs_merges
def test_every_form_of_file_gives_the_same_tokens(clip, hugging_face_folder, tmp_path):
    texts = ["Two dogs & a café", "😀 100 %"]
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.decompress(MERGES.read_bytes()))
    pipeline = tmp_path / "pipeline" / "tokenizer"
    clip.save(pipeline / "tokenizer.json")
    for path in (plain, hugging_face_folder, pipeline / "tokenizer.json", pipeline.parent):
        np.testing.assert_array_equal(open_tokenizer(path)(texts, 16), clip(texts, 16))


@needs_merges
def test_a_folder_written_by_transformers_opens(clip, hugging_face_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(hugging_face_folder)
    theirs(["a"], padding="max_length", max_length=5)  # leaves its padding in the file
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    texts = ["a photo of a cat", ""]
    np.testing.assert_array_equal(open_tokenizer(tmp_path)(texts, 12), clip(texts, 12))


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(CAPTIONS, 700)


def test_a_trained_tokenizer_is_short_on_its_own_texts(small):
    tokens = small(CAPTIONS, 12)
    words = len(CAPTIONS[0].split())
    # Every word of the captions is one token, between start and end.
    assert (tokens[:, 0] == small.start).all()
    np.testing.assert_array_equal((tokens == small.end).argmax(1), words + 1)
    assert len(np.unique(tokens, axis=0)) == len(CAPTIONS)
    assert small.decode(tokens) == CAPTIONS
    assert tokens.max() == small.end == small.vocabulary_size - 1 < 700


def test_a_trained_tokenizer_reads_any_text(small):
    texts = ["Zażółć GĘŚLĄ jaźń", "日本語 😀", "~\x00\x7f", "\t"]
    decoded = small.decode(small(texts, 64))
    assert decoded[0] == "zażółć gęślą jaźń"
    assert decoded[1] == "日本語 😀"
    assert decoded[3] == ""


def test_training_is_deterministic_and_survives_files_and_processes(small, tmp_path):
    again = train_tokenizer(iter(CAPTIONS), 700)
    again.save(tmp_path / "tokenizer.json")
    opened = open_tokenizer(tmp_path)
    copied = pickle.loads(pickle.dumps(again))
    texts = [*CAPTIONS, "something else entirely"]
    for other in (again, opened, copied):
        np.testing.assert_array_equal(other(texts, 20), small(texts, 20))


@pytest.mark.parametrize("processes", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_every_process_trains_the_same_tokenizer(processes):
    """The trainer's tables are ordered differently in each; many pairs here are equally common."""
    program = (
        "from vljax.data.scenes import Scenes;"
        "from vljax.data.text.tokenizers import train_tokenizer;"
        "scenes = Scenes(fields=('captions',), size=1000, max_objects=1, sizes=('large',));"
        "texts = [caption for scene in scenes for caption in scene['captions']];"
        "print(train_tokenizer(texts, 768)(texts, 40).tolist())"
    )
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    assert len(printed[0]) > 1000
    assert len(set(printed)) == 1


def test_words_of_its_own_are_counted_and_no_end(small):
    """Though their indices are larger than the end's."""
    more = small.with_word("<toy>", small.vocabulary_size, 2)
    tokens = more(["a <toy>", "a"], 8)
    count = more.count("a <toy>")
    assert count == small.count("a") + 2
    np.testing.assert_array_equal(more.real(tokens).sum(1), [count + 2, count])


def test_over_long_texts_are_cut_with_one_warning(small):
    texts = ["red", "a small red circle " * 5, "blue star " * 9]
    with pytest.warns(UserWarning, match="tokens") as caught:
        tokens = small(texts, 6)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("the text 'a small red circle a small")
    assert "has 20 tokens, of which the first 4 count (and 1 other text)" in message
    assert "\n" not in message
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(tokens[:, 0], small.start)
    np.testing.assert_array_equal(tokens[1:, -1], small.end)
    assert small.decode(tokens) == ["red", "a small red circle", "blue star blue star"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small(["a small red circle"], 6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no tokenizer at"),
        (b"\x1f\x8bnothing", "not a readable tokenizer"),
        (b"#version\nno merges in a line of many words\n", "not a readable tokenizer"),
        (b"#version\na b\n", "1 merges instead of 48894"),
    ],
)
def test_unreadable_files_are_named(content, words, tmp_path):
    path = tmp_path / "merges.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        open_tokenizer(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_tokenizers_and_empty_folders_are_refused(tmp_path):
    from tokenizers import Tokenizer, models

    with pytest.raises(UserError, match="holds no tokenizer"):
        open_tokenizer(tmp_path)
    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="does not end in"):
        open_tokenizer(tmp_path)


def test_mistakes_are_refused(small):
    with pytest.raises(UserError, match=r"vocabulary_size=514: .* take 514"):
        train_tokenizer(CAPTIONS, 514)
    with pytest.raises(ValueError, match="length=1"):
        small(["a"], 1)
    with pytest.raises(TypeError, match="not one string"):
        small("a cat", 8)


def test_captions_are_told_with_their_pictures():
    tokenizer = train_tokenizer(["red star", "blue heart"], 520)
    image = np.zeros((2, 2, 3), np.uint8)
    rng = np.random.default_rng(0)
    transform = captioned(tokenizer, 16)
    made = transform({"image": image, "caption": "red star", "index": 3}, rng)
    assert set(made) == {"image", "tokens"}
    np.testing.assert_array_equal(made["tokens"], tokenizer(["red star"], 16)[0])
    several = {"image": image, "captions": ["red star", "blue heart"]}
    seen = {transform(several, rng)["tokens"].tobytes() for _ in range(20)}
    assert seen == {tokens.tobytes() for tokens in tokenizer(several["captions"], 16)}


def test_a_share_of_texts_is_dropped():
    tokenizer = train_tokenizer(["red star", "blue heart"], 520)
    example = {"image": np.zeros((2, 2, 3), np.uint8), "caption": "red star"}
    empty = tokenizer([""], 16)[0]
    rng = np.random.default_rng(0)
    for share, low, high in ((0.0, 0, 0), (0.25, 30, 70), (1.0, 200, 200)):
        transform = with_dropped_text(captioned(tokenizer, 16), tokenizer, share)
        dropped = sum(np.array_equal(transform(example, rng)["tokens"], empty) for _ in range(200))
        assert low <= dropped <= high


def test_plain_tokens_have_no_marks_and_end_in_zeros():
    """As SeMani-Trans reads texts: "!" before another sign cannot be told from padding."""
    tokenizer = train_tokenizer(["a photo of a red circle"] * 3, 560)
    text = "A red circle"
    ids = tokenizer([text], 12)[0]
    inner = ids[1 : list(ids).index(tokenizer.end)]
    plain = tokenizer.plain([text, text + "!?", ""], 8)
    assert plain.dtype == np.int32
    np.testing.assert_array_equal(plain[0, : len(inner)], inner)
    assert not plain[0, len(inner) :].any()
    np.testing.assert_array_equal(plain[2], np.zeros(8))
    marked, end = plain[1, len(inner) :], tokenizer.plain(["!", "?"], 1)[:, 0]
    np.testing.assert_array_equal(marked[:3], [0, end[1], 0])
    assert end[0] > 0
    with pytest.warns(UserWarning, match="of which the first 2 count"):
        cut = tokenizer.plain([text], 2)
    np.testing.assert_array_equal(cut[0], inner[:2])
