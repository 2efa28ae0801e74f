"""What the decoder writes: batches of sources, searched, as lines of words and as a picture.

Training draws it, use and evaluation tell it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from vljax.data.pipeline import epoch
from vljax.data.source import Source, Span, readable
from vljax.data.text import Text, Vocabulary, pad_text
from vljax.marks import END
from vljax.models.insertion_search import Written, beam_search
from vljax.systems.voi.model import VOI

search = jax.jit(beam_search, static_argnums=(2, 3))


class Line(NamedTuple):
    """A sequence written.

    Attributes:
        text: the text.
        words: its words in natural order.
        order: the place, from 0, of what each step wrote.
        log_prob: log p(y, z | x) in nats.
    """

    text: str
    words: list[str]
    order: list[int]
    log_prob: float


def lines(written: Written, vocabulary: Vocabulary) -> list[Line]:
    """The best sequence of every row, without marks."""
    told = []
    for tokens, order, log_prob in zip(
        np.asarray(written.tokens[:, 0]),
        np.asarray(written.order[:, 0]),
        np.asarray(written.log_prob[:, 0]),
        strict=True,
    ):
        count = int((tokens > END).sum())
        ids = [int(token) for token in tokens[1 : count + 1]]
        places = [int(place) - 1 for place in order[1:] if 0 < place <= count]
        told.append(Line(vocabulary.decode(ids), vocabulary.tokens(ids), places, float(log_prob)))
    return told


class Batch(NamedTuple):
    """Padded examples of a source, as many as in every batch.

    Attributes:
        arrays: of each example.
        places: which examples they are, int64 [b].
        valid: which of them count, bool [b]; the others fill the batch.
    """

    arrays: dict[str, np.ndarray]
    places: np.ndarray
    valid: np.ndarray


def batches(config: ConfigDict, source: Source, batch_size: int) -> Iterator[Batch]:
    """Padded batches of one size over a source."""
    made = epoch(
        source,
        batch_size=batch_size,
        transform=pad_text(config.data.max_source, config.data.max_target),
        on_corrupt=config.data.on_corrupt,
    )
    with made:
        for batch in made:
            del batch["substituted"]
            places, valid = batch.pop("index"), batch.pop("valid")
            yield Batch(batch, places, valid)


def first_example(config: ConfigDict, source: Source) -> dict[str, np.ndarray]:
    """The first example that can be read, padded."""
    transform = pad_text(config.data.max_source, config.data.max_target)
    _, example = next(readable(source, config.data.on_corrupt))
    return transform(example, np.random.default_rng(0))


def write_all(
    model: VOI,
    config: ConfigDict,
    source: Text,
    count: int,
    batch_size: int,
    beams: int,
    length_penalty: float = 0.0,
) -> Iterator[tuple[Written, Batch]]:
    """Beam search over the first examples of a source, with the batches, rows that count only."""
    room = config.data.max_target + 2
    span = Span(source, 0, min(count, len(source)))
    for batch in batches(config, span, batch_size):
        written = search(
            model.decoder, batch.arrays, room, beams, length_penalty=np.float32(length_penalty)
        )
        rows = batch.valid
        yield jax.tree.map(lambda field, rows=rows: np.asarray(field)[rows], (written, batch))


def order_picture(told: Sequence[Line], scale: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """Lines of words in boxes, the number of its step under each word; early steps are dark.

    Args:
        told: What was written.
        scale: Pixels for each point of the drawing.
    """
    size, gap, height = 11 * scale, 4 * scale, 34 * scale
    font = ImageFont.load_default(size)
    small = ImageFont.load_default(8 * scale)
    wide = [[font.getlength(word) + 2 * gap for word in line.words] for line in told]
    width = max([sum(row) + gap * (len(row) + 1) for row in wide], default=0)
    image = Image.new("RGB", (max(int(width) + 1, 8), max(height * len(told), 8)), "white")
    pen = ImageDraw.Draw(image)
    for row, (line, widths) in enumerate(zip(told, wide, strict=True)):
        steps = {place: step for step, place in enumerate(line.order)}
        x, y = float(gap), row * height + gap
        for place, (word, length) in enumerate(zip(line.words, widths, strict=True)):
            share = steps[place] / max(len(line.words) - 1, 1)
            # From a dark blue to a pale one; the words stay legible on both.
            shade = tuple(int(a + (b - a) * share) for a, b in ((33, 222), (76, 235), (140, 247)))
            pen.rectangle([x, y, x + length, y + 18 * scale], fill=shade)
            ink = "white" if share < 0.55 else "black"
            pen.text((x + gap, y + 2 * scale), word, fill=ink, font=font)
            pen.text((x + gap, y + 19 * scale), str(steps[place] + 1), fill="black", font=small)
            x += length + gap
    return np.asarray(image)
