"""Writing with a trained VOI: a text or regions in, a sequence and its order out."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from vljax.data.datasets import Span
from vljax.data.pictures.images import write_png
from vljax.data.pipeline import epoch
from vljax.data.text import Text, Vocabulary, pad_text
from vljax.errors import UserError
from vljax.models.insertion_search import Written, beam_search, sample, search_order
from vljax.systems.voi.model import VOI, open_source
from vljax.training.mesh import gather


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


_beam_search = jax.jit(beam_search, static_argnums=(2, 3))
_sample = jax.jit(sample, static_argnums=2)
_search_order = jax.jit(search_order, static_argnums=2)


def lines(written: Written, vocabulary: Vocabulary) -> list[Line]:
    """The best sequence of every row, without marks."""
    told = []
    for tokens, order, log_prob in zip(
        np.asarray(written.tokens[:, 0]),
        np.asarray(written.order[:, 0]),
        np.asarray(written.log_prob[:, 0]),
        strict=True,
    ):
        count = int((tokens > 2).sum())
        ids = [int(token) for token in tokens[1 : count + 1]]
        places = [int(place) - 1 for place in order[1:] if 0 < place <= count]
        told.append(Line(vocabulary.decode(ids), vocabulary.tokens(ids), places, float(log_prob)))
    return told


def batches(
    config: ConfigDict, source: Any, batch_size: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Padded batches of one size over a source, each with how many of its rows count."""
    transform = pad_text(config.data.max_source, config.data.max_target)
    with epoch(source, batch_size=batch_size, transform=transform) as made:
        for batch in made:
            valid = int(batch.pop("valid").sum())
            arrays = {name: batch[name] for name in batch if name not in ("index", "substituted")}
            yield arrays, valid


def write_all(
    model: VOI,
    config: ConfigDict,
    source: Text,
    count: int,
    batch_size: int,
    beams: int,
    length_penalty: float = 0.0,
) -> Iterator[tuple[Written, dict[str, np.ndarray]]]:
    """Beam search over the first examples of a source, with the batches, rows that count only."""
    room = config.data.max_target + 2
    span = Span(source, 0, min(count, len(source)))
    for batch, valid in batches(config, span, batch_size):
        written = _beam_search(model.decoder, batch, room, beams, length_penalty=length_penalty)
        yield (
            jax.tree.map(lambda field, n=valid: np.asarray(field)[:n], written),
            {name: value[:valid] for name, value in batch.items()},
        )


def written_pictures(config: ConfigDict) -> Callable[[VOI], dict[str, np.ndarray]]:
    """Draws what the decoder writes for a few training examples, and when it writes each word."""
    source = open_source(config)
    count, beams = config.samples.count, config.samples.beams

    def draw(model: VOI) -> dict[str, np.ndarray]:
        told: list[Line] = []
        for written, _ in write_all(
            jax.tree.map(gather, model), config, source, count, count, beams
        ):
            told += lines(written, source.vocabulary)
        return {"orders": order_picture(told)}

    return draw


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


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.generate` for this system."""
    parser.add_argument("--text", action="append", default=[], help="a source; may be repeated")
    parser.add_argument(
        "--target", default="", help="do not write: infer the order of this text instead"
    )
    parser.add_argument(
        "--num_examples", type=int, default=8, help="without --text: evaluation examples to write"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="how many at a time")
    parser.add_argument("--beams", type=int, default=10, help="width of the beam search")
    parser.add_argument(
        "--length_penalty", type=float, default=0.0, help="of the beam search; above 0: longer"
    )
    parser.add_argument("--sample", action="store_true", help="draw instead of searching")
    parser.add_argument("--temperature", type=float, default=1.0, help="of drawing; 0: greedy")
    parser.add_argument("--top_k", type=int, default=0, help="draw from so many; 0: from all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from this share")
    parser.add_argument("--seed", type=int, default=0, help="of drawing")
    parser.add_argument(
        "--distill",
        action="store_true",
        help="write every training source's text anew, as a data set for another order",
    )


def generate(model: VOI, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """What is written, and in which order: on the console, `written.json` and `orders.png`.

    Raises:
        UserError: a flag cannot be.
    """
    check_flags(args)
    if args.distill:
        distill(model, config, args, out)
        return
    transform = pad_text(config.data.max_source, config.data.max_target)
    training = open_source(config)
    vocabulary = training.vocabulary
    if args.text:
        examples = [_example(text, args.target, training) for text in args.text]
        told_sources: list[str] = list(args.text)
    else:
        source = open_source(config, held_out=True)
        count = min(args.num_examples, len(source))
        examples = [dict(source[index]) for index in range(count)]
        if args.target:
            ids = np.asarray(_encode("target", args.target, training), np.int32)
            examples = [example | {"target": ids} for example in examples]
        told_sources = [
            vocabulary.decode(example["source"]) if "source" in example else f"example {index}"
            for index, example in enumerate(examples)
        ]
    padded = [transform(example, np.random.default_rng(0)) for example in examples]
    told: list[Line] = []
    for first in range(0, len(padded), args.batch_size):
        rows = padded[first : first + args.batch_size]
        rows += rows[-1:] * (args.batch_size - len(rows))  # one program for every batch
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        written = _write(model, config, args, batch, first)
        told += lines(written, vocabulary)[: len(padded) - first]
    for name, line in zip(told_sources, told, strict=True):
        by_step = " ".join(line.words[place] for place in line.order)
        print(f"{name}\n  text:    {line.text}\n  written: {by_step}")
    records = [
        {"source": name, **line._asdict()} for name, line in zip(told_sources, told, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "written.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    write_png(out / "orders.png", order_picture(told), {})


def _write(
    model: VOI, config: ConfigDict, args: argparse.Namespace, batch: dict[str, Any], first: int
) -> Written:
    room = config.data.max_target + 2
    if args.target:
        return _search_order(model.decoder, batch, args.beams)
    if not args.sample:
        return _beam_search(
            model.decoder, batch, room, args.beams, length_penalty=np.float32(args.length_penalty)
        )
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(args.seed), i))(
        np.arange(first, first + args.batch_size)
    )
    return _sample(
        model.decoder,
        batch,
        room,
        keys,
        temperature=np.float32(args.temperature),
        top_k=np.int32(args.top_k),
        top_p=np.float32(args.top_p),
    )


def _encode(name: str, text: str, source: Text) -> list[int]:
    limit = source.max_source if name == "source" else source.max_target
    ids = source.vocabulary.encode(text)
    if len(ids) > limit:
        raise UserError(
            f"--{'text' if name == 'source' else name}: {len(ids)} words, over data.max_{name}="
            f"{limit}: shorten it"
        )
    return ids


def _example(text: str, target: str, source: Text) -> dict[str, np.ndarray]:
    if source.feature_size:
        raise UserError("--text: this model writes of pictures; give --num_examples instead")
    return {
        "source": np.asarray(_encode("source", text, source), np.int32),
        "target": np.asarray(_encode("target", target, source), np.int32),
    }


def check_flags(args: argparse.Namespace) -> None:
    """Raises a `UserError` for numbers that cannot be."""
    for name in ("num_examples", "batch_size", "beams"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give 1 or more")
    for name, low, high in (("temperature", 0, np.inf), ("top_p", 0, 1), ("top_k", 0, np.inf)):
        if not low <= getattr(args, name, low) <= high:
            raise UserError(f"--{name}={getattr(args, name)}: give a number from {low} to {high}")


def distill(model: VOI, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Sequence-level distillation (Kim & Rush 2016): the training sources with the model's texts.

    Leaves pairs of lines as Django's, with the vocabulary: `src_raw_train.txt`,
    `tgt_raw_train.txt`, the evaluation pairs unchanged as `src_raw_dev.txt` and `tgt_raw_dev.txt`,
    and `vocabulary.json`. Recipes of texts take the folder as their data.

    Raises:
        UserError: the model writes of pictures.
    """
    training = open_source(config)
    if training.feature_size:
        raise UserError("--distill: this model writes of pictures, not texts")
    vocabulary, out = training.vocabulary, Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[str, str]] = []
    for written, batch in write_all(
        model, config, training, len(training), args.batch_size, args.beams, args.length_penalty
    ):
        for source, line in zip(batch["source"], lines(written, vocabulary), strict=True):
            pairs.append((vocabulary.decode(source), line.text))
    held_out = open_source(config, held_out=True)
    examples = (held_out[index] for index in range(len(held_out)))
    dev = [(vocabulary.decode(e["source"]), vocabulary.decode(e["target"])) for e in examples]
    for split, texts in (("train", pairs), ("dev", dev)):
        for side, name in enumerate(("src", "tgt")):
            told = "".join(f"{' '.join(pair[side].split())}\n" for pair in texts)
            (out / f"{name}_raw_{split}.txt").write_text(told, encoding="utf-8")
    vocabulary.save(out / "vocabulary.json")
    print(f"{len(pairs)} texts written anew")
