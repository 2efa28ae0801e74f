"""Text to tokens: CLIP's byte-level BPE, and small ones of the same form trained on captions.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (2021),
section 2.4. Text is normalised (NFC), white space joined, letters made small; words, single digits
and runs of signs are split into bytes, and the bytes are joined by the merges, in order. Any text
can be written with the bytes alone, so nothing is ever unknown. The work is done by Hugging Face's
`tokenizers`.

GLIDE's texts are split as GPT-2's are (Radford et al., *Language Models are Unsupervised Multitask
Learners*, 2019, section 2.2), with small letters: a word has the space before it, runs of digits
stay together, and there is no start.
"""

import copy
import functools
import gzip
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vljax import files
from vljax.data.source import Transform
from vljax.errors import UserError

START = "<|startoftext|>"
END = "<|endoftext|>"
_WORD_END = "</w>"
# The bytes, each as the character that stands for it, and the same at a word's end.
_SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())
_ENDS = [symbol + _WORD_END for symbol in _SYMBOLS]
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
# OpenAI's file lists more merges than CLIP uses: its vocabulary is these, the bytes at the end
# and inside of words, and the two marks, 49,408 together.
_CLIP_MERGES = 48_894


class Tokenizer:
    """A text's tokens, between a start and an end token.

    The end token has the largest index; CLIP's text tower reads the embedding at its first place.
    GLIDE's vocabulary has no start: then rows are bare tokens, and the end is only what pads them.

    Args:
        backend: Splits text into the tokens of its vocabulary, which holds `START` and `END`, or
            is GLIDE's and holds `END` alone.
        padding: The token that fills what is left of a row after the end: `END`, as CLIP and
            Stable Diffusion 1 have it, or "!" (index 0), as Stable Diffusion 2 has.
        marked: Whether it holds `START`.

    Raises:
        UserError: the vocabulary does not hold them, or `END` is not its last.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, padding: str = END, *, marked: bool = True
    ) -> None:
        self.vocabulary_size: int = backend.get_vocab_size()
        self.marked = marked
        start, end = backend.token_to_id(START), backend.token_to_id(END)
        if (start is None) == marked or end != self.vocabulary_size - 1:
            raise UserError(
                f"the vocabulary does not end in {START} and {END} as CLIP's does: give the "
                "tokenizer that belongs to the CLIP"
            )
        if (pad := backend.token_to_id(padding)) is None:
            raise UserError(
                f"the vocabulary has no {padding!r} to pad with: give the tokenizer that belongs "
                "to the text tower"
            )
        self.start: int | None = start
        self.end: int = end
        self.pad: int = pad
        self._backend = backend
        # Of words of its own: their index in the backend, and the tokens that they stand for.
        self._own: dict[int, list[int]] = {}

    def with_word(self, word: str, index: int, count: int = 1) -> "Tokenizer":
        """A tokenizer that also knows a word of its own, as it stands, for `count` tokens.

        Args:
            word: Such as "<cat-toy>".
            index: Of its first token, which the others follow: how many rows the embeddings had.
            count: Tokens that it stands for.

        Raises:
            UserError: the word is known.
        """
        if self._backend.token_to_id(word) in self._own:
            raise UserError(f"{word!r} was learnt already: give the other concept another word")
        if len(self._encode([word])[0]) < 2:
            raise UserError(
                f"{word!r} is a word of the vocabulary: give the concept another, such as <mine>"
            )
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.add_tokens([tokenizers.AddedToken(word, normalized=False)])
        place = backend.token_to_id(word)
        assert place is not None
        more = copy.copy(self)
        more._backend = backend
        more._own = {**self._own, place: [*range(index, index + count)]}
        return more

    def __call__(
        self, texts: Sequence[str], length: int, *, warn: bool = True
    ) -> Int[np.ndarray, "b length"]:
        """The tokens of texts, int32.

        A text of more than `length` tokens loses its last ones, as in CLIP, and one warning names
        the first such text.

        Args:
            texts: Any strings, also empty ones.
            length: Number of tokens of each row, start and end included; 2 or more.
            warn: Whether to warn; of a data set whose texts are known to be long, nobody can
                shorten any.
        """
        if isinstance(texts, str):
            raise TypeError("texts is a sequence of strings, not one string")
        room = length - 2 * self.marked
        if room < 0:
            raise ValueError(f"length={length} has no room for the start and the end token")
        encoded = self._encode(texts)
        tokens = np.full((len(encoded), length), self.pad, np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            kept = ids[:room] if self.start is None else [self.start, *ids[:room], self.end]
            row[: len(kept)] = kept
        if warn:
            _warn_of_length(texts, encoded, room)
        return tokens

    def count(self, text: str) -> int:
        """How many tokens a text has, without start and end."""
        return len(self._encode([text])[0])

    def real(self, tokens: Any) -> Any:
        """Which tokens of rows are no padding: those up to the end, with it where texts have one.

        Args:
            tokens: From a call; of NumPy or of JAX, traced too, [b n].

        Returns:
            Booleans [b n], likewise.
        """
        if not self.marked:
            return tokens != self.end
        # Words of its own have larger indices than the end.
        return np.arange(tokens.shape[1]) <= (tokens == self.end).argmax(1)[:, None]

    def plain(
        self, texts: Sequence[str], length: int, *, warn: bool = True
    ) -> Int[np.ndarray, "b length"]:
        """The tokens of texts without start and end, int32, followed by zeros.

        So SeMani-Trans and DALLE-pytorch read texts. In CLIP's vocabulary 0 is also "!" before
        another sign (alone or at a word's end it is 256), which they cannot tell from padding.

        Args:
            texts: Any strings, also empty ones.
            length: Number of tokens of each row.
            warn: As in a call.
        """
        encoded = self._encode(texts)
        tokens = np.zeros((len(encoded), length), np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: min(len(ids), length)] = ids[:length]
        if warn:
            _warn_of_length(texts, encoded, length)
        return tokens

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # One by one: the library's threads do not survive the forks of a data pipeline.
        encoded = [self._backend.encode(text, add_special_tokens=False).ids for text in texts]
        if not self._own:
            return encoded
        return [[i for one in ids for i in self._own.get(one, [one])] for ids in encoded]

    def decode(self, tokens: Int[np.ndarray, "b length"]) -> list[str]:
        """The texts of rows of tokens, up to the end token, normalised as they were read."""
        texts = []
        known = {token: i for i, many in self._own.items() for token in many}
        for row in np.asarray(tokens):
            ids = [known.get(int(i), int(i)) for i in row if i != self.start]
            ids = ids[: ids.index(self.end)] if self.end in ids else ids
            text = self._backend.decode(ids, skip_special_tokens=False)
            texts.append(text.replace(_WORD_END, " ").strip())
        return texts

    def save(self, path: str | os.PathLike) -> None:
        """Write `tokenizer.json`, which `open_tokenizer` and Hugging Face's libraries read."""
        files.write(path, self._backend.to_str())

    def save_folder(self, folder: str | os.PathLike, length: int) -> None:
        """Write what `transformers`' `CLIPTokenizer` reads, which gives the same tokens.

        Args:
            folder: Where to write.
            length: Most tokens of a text, start and end included.

        Raises:
            UserError: it is GLIDE's.
        """
        if self.start is None:
            raise UserError(
                "transformers' CLIPTokenizer has no form for GLIDE's tokenizer: keep it"
            )
        folder = Path(folder)
        # Theirs put start and end around a text by themselves.
        whole = tokenizers.Tokenizer.from_str(self._backend.to_str())
        whole.post_processor = processors.RobertaProcessing(
            (END, self.end), (START, self.start), add_prefix_space=False, trim_offsets=False
        )
        told = json.loads(whole.to_str())
        vocabulary, merges = told["model"]["vocab"], told["model"]["merges"]
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        marks = {
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": self._backend.id_to_token(self.pad),
        }
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": length,
            "do_lower_case": True,
            "errors": "replace",
            **marks,
        }
        written = {
            "tokenizer.json": whole.to_str(),
            "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *pairs]) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2),
            "special_tokens_map.json": json.dumps(marks, indent=2),
        }
        for name, content in written.items():
            files.write(folder / name, content)


def _warn_of_length(texts: Sequence[str], encoded: Sequence[Sequence[int]], room: int) -> None:
    """One warning of the first text that loses its last tokens."""
    if not (over_long := [i for i, ids in enumerate(encoded) if len(ids) > room]):
        return
    first, more = over_long[0], len(over_long) - 1
    others = f" (and {more} other text{'s' * (more > 1)})" if more else ""
    warnings.warn(
        f"the text {_shortened(texts[first])!r} has {len(encoded[first])} tokens, of which "
        f"the first {room} count{others}: shorten it, or put what matters first",
        stacklevel=3,
    )


def open_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer in a file or folder.

    Args:
        path: CLIP's merges (`bpe_simple_vocab_16e6.txt.gz`, or unpacked), a `tokenizer.json`, or a
            Hugging Face folder with `tokenizer.json` or `vocab.json` and `merges.txt`, itself or
            in its folder `tokenizer`; beside them may be told what pads. GLIDE's: `vocab.bpe.gz`
            with `encoder.json.gz` beside it, both also unpacked.

    Raises:
        UserError: nothing readable is there, or it is no tokenizer of CLIP's form.
    """
    path = files.expanded(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise UserError(
            f"no tokenizer at {path}: give CLIP's bpe_simple_vocab_16e6.txt.gz or a Hugging Face "
            "folder"
        )
    try:
        if path.suffix == ".json":
            backend = tokenizers.Tokenizer.from_file(str(path))
            # A folder's own padding and truncation give way to the caller's length.
            backend.no_padding()
            backend.no_truncation()
            return Tokenizer(backend, _padding(path.parent))
        pairs = [tuple(line.split()) for line in _unpacked(path).splitlines()[1:]]
        if (indices := _indices_beside(path)) is not None and START not in indices:
            whole = [(left, right) for left, right in filter(None, pairs)]
            return Tokenizer(_gpt2_encoding(whole, indices), marked=False)
        merges = [(left, right) for left, right in pairs[:_CLIP_MERGES]]
        if indices is None and len(merges) != _CLIP_MERGES:
            raise ValueError(f"{len(merges)} merges instead of {_CLIP_MERGES}")
        return Tokenizer(_byte_pair_encoding(merges, indices), _padding(path.parent))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # the library raises bare exceptions
        raise UserError(
            f"{path} is not a readable tokenizer ({str(error).partition(chr(10))[0]}): fetch it "
            "again"
        ) from error


def given_tokenizer(given: str, *published: str) -> Tokenizer | None:
    """What a run was given to read texts with, opened once; None for nothing.

    Args:
        given: `config.tokenizer`: a file, a folder, or "".
        published: Weights of `config.pretrained`. Of those that are folders the first one's.

    Raises:
        UserError: as `open_tokenizer`.
    """
    for path in (given, *(one for one in published if files.expanded(one).is_dir())):
        if path:
            return _opened(path)
    return None


def no_tokenizer() -> UserError:
    """The error where there is neither one nor anything to train one on."""
    return UserError(
        "tokenizer='': give the one of the published networks, such as "
        "--config.tokenizer=bpe_simple_vocab_16e6.txt.gz"
    )


@functools.lru_cache(maxsize=8)
def _opened(path: str) -> Tokenizer:
    return open_tokenizer(path)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """A small tokenizer of CLIP's form whose merges are the commonest pairs of some texts.

    Args:
        texts: What to learn from; the same texts give the same tokenizer.
        vocabulary_size: Most tokens: 514 for bytes and marks, the others for merges. Fewer come
            out when the texts have no more pairs to join.

    Raises:
        UserError: `vocabulary_size` leaves no merges.
    """
    return _trained(tuple(texts), vocabulary_size)


@functools.lru_cache(maxsize=8)
def _trained(texts: tuple[str, ...], vocabulary_size: int) -> Tokenizer:
    bare = _byte_pair_encoding([])
    fixed = bare.get_vocab_size()
    if vocabulary_size <= fixed:
        raise UserError(
            f"vocabulary_size={vocabulary_size}: bytes and marks take {fixed}, choose more"
        )
    # The trainer counts the bytes that it has seen; the other bytes cost nothing here.
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.normalizer, learner.pre_tokenizer = bare.normalizer, bare.pre_tokenizer
    # Between pairs that are equally common their indices decide, and symbols that the trainer meets
    # on its way get theirs in an order that differs by process: all are named before.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size + len(_ENDS),
        end_of_word_suffix=_WORD_END,
        special_tokens=_ENDS,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return Tokenizer(_byte_pair_encoding(merges[: vocabulary_size - fixed]))


def captioned(tokenizer: Tokenizer, length: int) -> Transform:
    """The transform from a captioned picture to the picture and the tokens of a caption.

    Args:
        tokenizer: Texts to tokens.
        length: Tokens of each text.

    Returns:
        `transform(example, rng) -> {"image", "tokens"}`. The caption is the field `caption`, or
        one of `captions` by chance.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        captions = example.get("captions")
        caption = captions[rng.integers(len(captions))] if captions else example["caption"]
        return {"image": example["image"], "tokens": tokenizer([caption], length)[0]}

    return transform


def with_dropped_text(transform: Transform, tokenizer: Tokenizer, share: float) -> Transform:
    """A transform that gives so large a share of examples the empty text's `tokens`.

    What learns from it can be asked without a text (Ho and Salimans, *Classifier-Free Diffusion
    Guidance*, 2022, algorithm 1).
    """

    def dropping(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        made = transform(example, rng)
        if rng.random() >= share:
            return made
        return {**made, "tokens": tokenizer([""], len(made["tokens"]))[0]}

    return dropping


def _byte_pair_encoding(
    merges: Sequence[tuple[str, str]], indices: dict[str, int] | None = None
) -> tokenizers.Tokenizer:
    """CLIP's pipeline; by default indices go to bytes, bytes at a word's end, merges and marks."""
    if indices is None:
        tokens = [*_SYMBOLS, *_ENDS]
        tokens += [left + right for left, right in merges]
        # Two merges may end in one token.
        indices = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=indices, merges=list(merges), end_of_word_suffix=_WORD_END)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END])
    return backend


def _gpt2_encoding(
    merges: Sequence[tuple[str, str]], indices: dict[str, int]
) -> tokenizers.Tokenizer:
    """GLIDE's pipeline."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=indices, merges=list(merges)))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _unpacked(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")


def _indices_beside(merges: Path) -> dict[str, int] | None:
    """The vocabulary in the folder of a file of merges; None where there is none."""
    for name in ("vocab.json", "encoder.json", "encoder.json.gz"):
        if (file := merges.with_name(name)).is_file():
            return json.loads(_unpacked(file))
    return None


def _in_folder(folder: Path) -> Path:
    """The file of a Hugging Face folder to read, or of its merges."""
    for place in (folder, folder / "tokenizer"):
        for name in ("tokenizer.json", "merges.txt"):
            if (place / name).is_file():
                return place / name
    raise UserError(
        f"{folder} holds no tokenizer: it should contain tokenizer.json, or vocab.json and "
        "merges.txt"
    )


def _padding(folder: Path) -> str:
    """The token that pads, as a Hugging Face folder tells it."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_text("utf-8")).get("pad_token")
            told = told.get("content") if isinstance(told, dict) else told
            if isinstance(told, str):
                return told
    return END


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
