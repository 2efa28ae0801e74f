"""Texts: corpora, vocabularies and tokenizers."""

from vljax.data.text.corpus import (
    END,
    MARKS,
    PAD,
    START,
    UNKNOWN,
    Corpus,
    LinePairs,
    Text,
    TfdsPairs,
    Vocabulary,
    open_django,
    open_text,
    open_vocabulary,
    pad_text,
)

__all__ = [
    "END",
    "MARKS",
    "PAD",
    "START",
    "UNKNOWN",
    "Corpus",
    "LinePairs",
    "Text",
    "TfdsPairs",
    "Vocabulary",
    "open_django",
    "open_text",
    "open_vocabulary",
    "pad_text",
]
