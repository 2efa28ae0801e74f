"""The words that captions are written in."""

import functools
import json

from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.captioned import CaptionedPhotographs
from vljax.data.text.vocabulary import Vocabulary, Words, learn_words, open_vocabulary
from vljax.errors import UserError


def open_words(config: ConfigDict) -> Vocabulary:
    """The vocabulary of a run: that of a file, a list of all words, or one that is counted.

    Raises:
        UserError: the file cannot be read, or the data is not there.
    """
    if config.data.vocabulary:
        return open_vocabulary(config.data.vocabulary)
    return _own(json.dumps(config.data.to_dict()), config.model.trunk.kind == "none")


@functools.lru_cache(maxsize=4)
def _own(data: str, reads: bool) -> Words:
    fields = ConfigDict(json.loads(data))
    benchmark = open_benchmark(fields)
    if benchmark.vocabulary:
        return Words((*benchmark.vocabulary, ","), caption=True)
    source = benchmark.pictures(("features" if reads else "image",))
    if not isinstance(source, CaptionedPhotographs):
        raise UserError(f"data.name={fields.name!r} has no captions: choose 'scenes' or 'coco'")
    captions = (caption for lines in source.captions for caption in lines)
    return learn_words(captions, vocabulary_size=fields.vocabulary_size, caption=True)
