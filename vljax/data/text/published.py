"""Vocabularies that were published with PJ-X, and its rules for words.

Facts of the code of Park et al., *Multimodal Explanations* (2018), github
Seth-Park/MultimodalExplanations at b58c09a; thesis chapter 2 is silent on them. The order of the
entries is that of the published weights, so that it must stay.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from vljax.data.source import read_json
from vljax.errors import UserError

#: Ends an explanation and, as the first input, begins it.
END = "<EOS>"
#: Stands for an unknown word or answer, and for nothing at the left of a short question.
NOTHING = ""


def pjx_words(text: str) -> list[str]:
    """Split a question or an explanation into words as PJ-X's code does.

    Small letters; the signs `? ! ' " $ : @ ( ) , . ;` vanish, so that "it's" becomes "its"; `-` and
    `/` part words; so does each space, so that two spaces leave an empty word between them.
    """
    text = re.sub("[-/]", " ", re.sub("[?!'\"$:@(),.;]", "", text.lower()))
    return text.split(" ")


class PublishedWords:
    """Words, or whole answers, in the order of a published list.

    Attributes:
        entries: the words; the id of each is its place.
        split: parts a text into words.
        unknown: the id of what is not among them: that of the empty entry; None without one.
        end: the id of `END`; None without one, as in questions and answers.
    """

    def __init__(
        self, entries: Iterable[str], split: Callable[[str], list[str]] = pjx_words
    ) -> None:
        self.entries, self.split = tuple(entries), split
        self._ids = {entry: i for i, entry in enumerate(self.entries)}
        self.unknown = self._ids.get(NOTHING)
        self.end = self._ids.get(END)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, entry: str) -> bool:
        return entry in self._ids

    def id(self, entry: str) -> int:
        """The place of a word or of a whole answer; that of what is unknown where it is none.

        Raises:
            UserError: it is none, and the list has no entry for what is unknown.
        """
        found = self._ids.get(entry, self.unknown)
        if found is None:
            raise UserError(f"{entry!r} is none of {len(self)} published entries: choose another")
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text's words; without `END`."""
        return [self.id(word) for word in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to the first `END`, parted by spaces; unknown ones are left out."""
        told = []
        for i in ids:
            if i == self.end:
                break
            told.append(self.entries[i])
        return " ".join(filter(None, told))


def open_published_words(path: str | os.PathLike[str]) -> PublishedWords:
    """Read a published `vdict.json`, `adict.json` or `exp_vdict.json`: `{"word": id}`.

    Raises:
        UserError: it cannot be read, is no such list, or an id is missing or there twice.
    """
    found = read_json(path, "give a vocabulary of PJ-X, such as vdict.json")
    if not isinstance(found, dict) or not all(type(i) is int for i in found.values()):
        raise UserError(f"{path} maps no words to numbers: give a vocabulary of PJ-X")
    ids = sorted(found.values())
    if wrong := [i for i, known in enumerate(ids) if i != known]:
        raise UserError(
            f"{path}: of {len(ids)} entries none, or more than one, has the number {wrong[0]}: "
            "fetch it again"
        )
    return PublishedWords(sorted(found, key=found.__getitem__))


def question_ids(
    words: PublishedWords, question: str, length: int = 15
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """A question as PJ-X reads it: its last `length` words, with nothing to the left of fewer.

    Returns:
        Ids, and which of them are words.
    """
    ids = words.encode(question)[-length:]
    padded = np.full(length, words.id(NOTHING), np.int32)
    padded[length - len(ids) :] = ids
    return padded, np.arange(length) >= length - len(ids)


def explanation_ids(
    words: PublishedWords, explanation: str, length: int = 36
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """An explanation as PJ-X learns to write it.

    Returns:
        What is read, `END` and then the words, and what is to be written, the words and then `END`;
        −1 where nothing is. Of an explanation of `length` words or more, `END` is cut off.

    Raises:
        UserError: the vocabulary has no `END`.
    """
    if words.end is None:
        raise UserError(f"a vocabulary without {END!r} writes no explanations: give exp_vdict.json")
    ids = words.encode(explanation)
    read, written = np.full((2, length), words.end, np.int32)
    told = [*ids, words.end][:length]
    read[1 : len(told)] = told[: len(told) - 1]
    written[:] = -1
    written[: len(told)] = told
    return read, written


def majority(answers: Sequence[str]) -> str:
    """The answer that most people gave; of several, the last by the alphabet (PJ-X's rule)."""
    return max(answers, key=lambda answer: (answers.count(answer), answer))
