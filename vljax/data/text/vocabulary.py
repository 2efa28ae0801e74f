"""Vocabularies: what the ids of a text stand for, in whole words or in pieces of words.

Entries 0 to 3 of every vocabulary are those of `vljax.marks`. Texts in languages with
endless words are written in pieces (byte-pair encoding), of which nothing is unknown. CLIP has
tokens of its own: `vljax.data.text.tokenizers`.
"""

import abc
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vljax import files
from vljax.data.text.captions import caption_words
from vljax.errors import UserError
from vljax.marks import END, PAD, START, UNKNOWN

MARKS = ("<pad>", "<start>", "<end>", "<unk>")


class Vocabulary(abc.ABC):
    """The entries that texts are written in, and how often each occurs.

    Attributes:
        frequencies: int64 [size], how often each entry is in the targets of the training split;
            zeros in a vocabulary that has counted none.
    """

    def __init__(self, size: int, frequencies: Iterable[int] | None = None) -> None:
        counts = np.zeros(size, np.int64) if frequencies is None else np.array(frequencies)
        if counts.shape != (size,):
            raise UserError(f"a vocabulary of {size} entries has {counts.size} frequencies")
        self.frequencies: Int[np.ndarray, " size"] = counts.astype(np.int64)

    @property
    def size(self) -> int:
        """Number of entries, the four marks included."""
        return len(self.frequencies)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the entries."""
        return hashlib.sha256(json.dumps(self._entries()).encode()).hexdigest()[:16]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: up to the first `END`, without `PAD` and `START`."""
        return self._join(_content(ids))

    def as_json(self) -> str:
        """The entries and frequencies, as a file for `open_vocabulary` holds them."""
        told = {**self._entries(), "frequencies": self.frequencies.tolist()}
        return json.dumps(told, ensure_ascii=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `as_json` to a file."""
        files.write(path, self.as_json())

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end; never a mark other than `UNKNOWN`."""

    @abc.abstractmethod
    def tokens(self, ids: Iterable[int]) -> list[str]:
        """What each id stands for, marks included, for pictures and statistics."""

    @abc.abstractmethod
    def with_frequencies(self, frequencies: Iterable[int]) -> "Vocabulary":
        """The same entries, counted anew."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str: ...

    @abc.abstractmethod
    def _entries(self) -> dict[str, Any]: ...


class Words(Vocabulary):
    """A vocabulary of whole words.

    Args:
        words: The entries after the four marks, each once.
        frequencies: Counts of all entries, marks included.
        caption: Whether texts are split as captions (small letters, signs by themselves) instead
            of at spaces.
    """

    def __init__(
        self,
        words: Iterable[str],
        frequencies: Iterable[int] | None = None,
        *,
        caption: bool = False,
    ) -> None:
        self.words = tuple(words)
        self.caption = caption
        self._ids = {word: i for i, word in enumerate(self.words, len(MARKS))}
        if len(self._ids) != len(self.words):
            twice = next(word for word, n in Counter(self.words).items() if n > 1)
            raise UserError(f"vocabulary: the word {twice!r} occurs twice; keep one")
        super().__init__(len(MARKS) + len(self.words), frequencies)

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words."""
        words = caption_words(text) if self.caption else spaced_words(text)
        return [self._ids.get(word, UNKNOWN) for word in words]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The word of each id."""
        return [(MARKS[i] if i < len(MARKS) else self.words[i - len(MARKS)]) for i in ids]

    def with_frequencies(self, frequencies: Iterable[int]) -> "Words":
        """The same words, counted anew."""
        return Words(self.words, frequencies, caption=self.caption)

    def _join(self, ids: list[int]) -> str:
        return " ".join(self.tokens(ids))

    def _entries(self) -> dict[str, Any]:
        return {"kind": "caption" if self.caption else "words", "words": list(self.words)}


class Pieces(Vocabulary):
    """A vocabulary of pieces of words: byte-pair encoding by Hugging Face's `tokenizers`.

    Sennrich, Haddow and Birch, *Neural Machine Translation of Rare Words with Subword Units*
    (2016), over bytes, so that nothing is unknown and decoding gives back the text, its white
    space at either end excepted.

    Args:
        backend: Splits text into pieces; piece `i` has id `i + 4`.
        frequencies: Counts of all entries, marks included.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, frequencies: Iterable[int] | None = None
    ) -> None:
        self._backend = backend
        super().__init__(len(MARKS) + backend.get_vocab_size(), frequencies)

    def encode(self, text: str) -> list[int]:
        """The ids of a text's pieces."""
        text = text.strip()
        if not text:
            return []
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [i + len(MARKS) for i in ids]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each piece, a space before it where a word begins."""
        return [
            MARKS[i] if i < len(MARKS) else self._backend.decode([int(i) - len(MARKS)]) for i in ids
        ]

    def with_frequencies(self, frequencies: Iterable[int]) -> "Pieces":
        """The same pieces, counted anew."""
        return Pieces(self._backend, frequencies)

    def _join(self, ids: list[int]) -> str:
        text = ""
        pieces: list[int] = []
        for i in [*ids, UNKNOWN]:
            if i >= len(MARKS):
                pieces.append(i - len(MARKS))
                continue
            # Bytes of one character may lie in several pieces: decode whole runs.
            text += self._backend.decode(pieces, skip_special_tokens=False)
            text += f" {MARKS[UNKNOWN]}"
            pieces = []
        return text.removesuffix(f" {MARKS[UNKNOWN]}").strip()

    def _entries(self) -> dict[str, Any]:
        return {"kind": "pieces", "tokenizer": json.loads(self._backend.to_str())}


def spaced_words(text: str) -> list[str]:
    """Split a text at spaces, and at nothing else."""
    return [word for word in text.split(" ") if word]


def _content(ids: Iterable[int]) -> list[int]:
    kept = []
    for i in ids:
        if i == END:
            break
        if i not in (PAD, START):
            kept.append(int(i))
    return kept


def learn_words(
    texts: Iterable[str], *, min_count: int = 1, vocabulary_size: int = 0, caption: bool = False
) -> Words:
    """The words of some texts, from the most frequent to the rarest, equals by spelling.

    Args:
        texts: What to learn from.
        min_count: How often a word must occur.
        vocabulary_size: Most entries, marks included; 0 for no limit.
        caption: As for `Words`.
    """
    split = caption_words if caption else spaced_words
    counts = Counter(word for text in texts for word in split(text))
    words = [word for word, n in counts.items() if n >= min_count and word not in MARKS]
    words.sort(key=lambda word: (-counts[word], word))
    if vocabulary_size:
        words = words[: vocabulary_size - len(MARKS)]
    return Words(words, caption=caption)


def learn_pieces(texts: Iterable[str], vocabulary_size: int, *, min_count: int = 1) -> Pieces:
    """Byte-pair encoding whose merges are the commonest pairs of some texts.

    Args:
        texts: What to learn from; the same texts give the same pieces.
        vocabulary_size: Most entries: 4 marks, 256 bytes, and merges.
        min_count: How often a pair must occur.

    Raises:
        UserError: `vocabulary_size` leaves no room for merges.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = len(MARKS) + len(alphabet)
    if vocabulary_size <= fixed:
        raise UserError(
            f"data.vocabulary_size={vocabulary_size}: bytes and marks take {fixed}, choose more"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - len(MARKS),
        min_frequency=min_count,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Pieces(backend)


def open_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary in a file.

    Args:
        path: What `Vocabulary.save` wrote; a `tokenizer.json` of Hugging Face's `tokenizers`; or a
            list of words, one a line, in which marks such as `<unk>` are passed over, and whose
            texts are captions.

    Raises:
        UserError: The file is missing or is none of these.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(
            f"data.vocabulary={str(path)!r} does not exist: check the path, or leave it empty to "
            "learn one from the training split"
        )
    try:
        if path.suffix != ".json":
            lines = (line.strip() for line in path.read_text("utf-8").split("\n"))
            words = [line for line in lines if line and line not in MARKS]
            if not words:
                raise UserError("it is empty")
            return Words(words, caption=True)
        told = json.loads(path.read_text("utf-8"))
        if "kind" not in told:
            return Pieces(tokenizers.Tokenizer.from_str(json.dumps(told)))
        if told["kind"] == "pieces":
            backend = tokenizers.Tokenizer.from_str(json.dumps(told["tokenizer"]))
            return Pieces(backend, told["frequencies"])
        return Words(told["words"], told["frequencies"], caption=told["kind"] == "caption")
    except Exception as error:  # `tokenizers` raises bare exceptions.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data.vocabulary={str(path)!r} cannot be read ({reason}): give a file that "
            "Vocabulary.save wrote, a tokenizer.json, or a list of words"
        ) from error
