"""What is learnt from a corpus before training: its vocabulary, its lengths, its frequencies.

Large corpora are read once for it, and what is found is kept in vljax's cache folder.
"""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict
from rich.progress import track

from vljax import files
from vljax.data.scenes import VOCABULARY
from vljax.data.text.captions import SceneCaptions
from vljax.data.text.corpus import Corpus, TfdsPairs
from vljax.data.text.vocabulary import (
    Vocabulary,
    Words,
    learn_pieces,
    learn_words,
    open_vocabulary,
)
from vljax.errors import UserError

# Pairs that byte-pair encoding is learnt from: more change few merges and take minutes.
_LEARN_FROM = 1_000_000
# Examples that take long enough to count for a person to want to see it: a quarter of a minute.
_LONG = 100_000


def learn(corpus: Corpus, config: ConfigDict) -> Vocabulary:
    """The vocabulary of a training corpus: whole words, or pieces of words of prepared pairs.

    Args:
        corpus: Its training examples.
        config: `vocabulary_size` and `min_count`, see `vljax.data.text.source`.

    Raises:
        UserError: the size leaves no room for pieces.
    """
    if isinstance(corpus, SceneCaptions):
        return Words((*VOCABULARY, ","), caption=True)
    if not isinstance(corpus, TfdsPairs):
        return learn_words(
            _all_texts(corpus, range(len(corpus))),
            min_count=config.min_count,
            vocabulary_size=config.vocabulary_size,
            caption="regions" in corpus.fields,
        )
    told = f"{corpus.fingerprint} {config.vocabulary_size} {config.min_count} {_LEARN_FROM}"
    file = _cached("pieces", told, ".json")
    if file.is_file():
        with contextlib.suppress(UserError):  # A damaged file is made anew.
            return open_vocabulary(file)
    spread = np.linspace(0, len(corpus) - 1, num=min(len(corpus), _LEARN_FROM)).astype(int)
    pieces = learn_pieces(
        _all_texts(corpus, spread.tolist()), config.vocabulary_size, min_count=config.min_count
    )
    _keep(lambda: pieces.save(file))
    return pieces


def _all_texts(corpus: Corpus, indices: Iterable[int]) -> Iterator[str]:
    for index in indices:
        yield from corpus.texts(index).values()


def survey(
    corpus: Corpus, vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " size"]]:
    """Tokens of each source and target, and how often each entry is in the targets.

    Those of prepared pairs are measured once for a vocabulary, and kept.
    """
    if not isinstance(corpus, TfdsPairs):
        return measure(corpus, vocabulary)
    file = _cached("survey", f"{corpus.fingerprint} {vocabulary.fingerprint}", ".npz")
    try:
        with np.load(file, allow_pickle=False) as saved:
            return saved["lengths"], saved["counts"]
    except Exception:  # Missing or damaged, it is made anew.
        lengths, counts = measure(corpus, vocabulary)
    packed = io.BytesIO()
    np.savez(packed, lengths=lengths, counts=counts)
    _keep(lambda: files.write(file, packed.getvalue()))
    return lengths, counts


def measure(
    corpus: Corpus, vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " size"]]:
    """What `survey` tells, by reading every example."""
    lengths = np.zeros((len(corpus), 2), np.int32)
    counts: Counter[int] = Counter()
    shown = len(lengths) >= _LONG
    for index in track(range(len(lengths)), "Counting tokens, once …", disable=not shown):
        row, texts = lengths[index], corpus.texts(index)
        target = vocabulary.encode(texts["target"])
        row[:] = len(vocabulary.encode(texts.get("source", ""))), len(target)
        counts.update(target)
    frequencies = np.zeros(vocabulary.size, np.int64)
    frequencies[list(counts.keys())] = list(counts.values())
    return lengths, frequencies


def _cached(kind: str, told: str, suffix: str) -> Path:
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return files.cache_folder() / f"{kind}-{digest}{suffix}"


def _keep(save: Callable[[], object]) -> None:
    # Without room for the cache the next run does the work again.
    with contextlib.suppress(OSError):
        save()
