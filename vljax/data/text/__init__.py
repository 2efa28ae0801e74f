"""Texts: corpora, vocabularies and tokenizers."""

from vljax.data.text.corpus import Corpus, LinePairs, TfdsPairs, open_django
from vljax.data.text.source import Text, open_text, pad_text
from vljax.data.text.vocabulary import MARKS, Vocabulary, open_vocabulary
from vljax.marks import END, PAD, START, UNKNOWN

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
