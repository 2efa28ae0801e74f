"""Writing with a trained VOI: a text or regions in, a sequence and its order out."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vljax.data.source import readable, stacked
from vljax.data.text import Text, pad_text
from vljax.diffusion.noise import example_keys
from vljax.diffusion.progress import in_steps
from vljax.errors import UserError
from vljax.models.decoding import check_choice
from vljax.models.insertion_search import Written, sample, search_order
from vljax.ops.parts import filled_batches
from vljax.request import changed, option
from vljax.systems import Result
from vljax.systems.voi.model import VOI, texts
from vljax.systems.voi.writing import Line, lines, order_picture, search, write_all

_sample = jax.jit(sample, static_argnums=2)
_search_order = jax.jit(search_order, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to write, and how."""

    text: tuple[str, ...] = option((), help="a source; may be repeated", repeat=True)
    target: str = option("", help="do not write: infer the order of this text instead")
    num_examples: int = option(8, low=1, help="without --text: evaluation examples to write")
    batch_size: int = option(8, low=1, help="how many at a time")
    beams: int = option(10, low=1, help="width of the beam search")
    length_penalty: float = option(0.0, help="of the beam search; above 0: longer")
    sample: bool = option(False, help="draw instead of searching")
    temperature: float = option(1.0, low=0, help="of drawing; 0: greedy")
    top_k: int = option(0, low=0, high=65536, help="draw from so many; 0: from all")
    top_p: float = option(1.0, low=0, high=1, help="draw from this share")
    seed: int = option(0, seed=True, help="of drawing")
    distill: bool = option(
        False,
        help="write every training source's text anew, as a data set for another order",
        form=False,
    )


def generate(model: VOI, config: ConfigDict, request: Request) -> Iterator[Result]:
    """What is written, and in which order: `written.json` and `orders.png`.

    Raises:
        UserError: a source or target is too long, a field does nothing, or the model writes of
            pictures.
    """
    _check(request)
    if request.distill:
        yield from distill(model, config, request)
        return
    names, examples = _asked(config, request)
    transform = pad_text(config.data.max_source, config.data.max_target)
    padded = [transform(example, np.random.default_rng(0)) for example in examples]
    told: list[Line] = []
    for places in in_steps("writing", filled_batches(len(padded), request.batch_size)):
        batch = stacked([padded[i] for i in places])
        written = _write(model, config, request, batch, int(places[0]))
        told += lines(written, texts(config).vocabulary)
    told = told[: len(padded)]
    records, label = [], []
    for name, line in zip(names, told, strict=True):
        by_step = " ".join(line.words[place] for place in line.order)
        label.append(f"{name}\n  text:    {line.text}\n  written: {by_step}")
        records.append({"source": name, **line._asdict()})
    written_json = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    yield Result("written.json", written_json, "\n".join(label))
    yield Result("orders.png", order_picture(told), "words, and the steps that wrote them")


# What each way of writing heeds beside `batch_size` and `seed`; without a name it is a search.
_SOURCES = {"text", "num_examples"}
_HEEDED = {
    "distill": {"beams", "length_penalty"},
    "target": {"beams", *_SOURCES},
    "sample": {"temperature", "top_k", "top_p", *_SOURCES},
    "": {"beams", "length_penalty", *_SOURCES},
}


def _check(request: Request) -> None:
    """Refuse what does nothing where one writes as is asked."""
    given = changed(request)
    way = next((one for one in ("distill", "target", "sample") if one in given), "")
    for name in given:
        if name not in {way, "batch_size", "seed", *_HEEDED[way]}:
            why = f"with --{way}: leave one of them out" if way else "without --sample: give both"
            raise UserError(f"--{name} does nothing {why}")
    if request.text and "num_examples" in given:
        raise UserError("--num_examples: with --text that is written; leave one out")
    if request.sample:
        check_choice(1, request.temperature, top_p=request.top_p, top_k=request.top_k)


def _asked(config: ConfigDict, request: Request) -> tuple[list[str], list[dict[str, Any]]]:
    """What is read, by name: the texts of a request, or evaluation examples."""
    training = texts(config)
    if request.text:
        if training.feature_size:
            raise UserError("--text: this model writes of pictures; give --num_examples instead")
        target = _encode("target", request.target, training)
        return list(request.text), [
            {"source": _encode("source", text, training), "target": target} for text in request.text
        ]
    source = texts(config, held_out=True)
    read = dict(readable(source, config.data.on_corrupt, request.num_examples))
    examples = list(read.values())
    if request.target:
        ids = _encode("target", request.target, training)
        examples = [example | {"target": ids} for example in examples]
    names = [
        training.vocabulary.decode(example["source"]) if "source" in example else f"example {index}"
        for index, example in zip(read, examples, strict=True)
    ]
    return names, examples


def _write(
    model: VOI, config: ConfigDict, request: Request, batch: dict[str, Any], first: int
) -> Written:
    room = config.data.max_target + 2
    if request.target:
        return _search_order(model.decoder, batch, request.beams)
    if not request.sample:
        penalty = np.float32(request.length_penalty)
        return search(model.decoder, batch, room, request.beams, length_penalty=penalty)
    keys = example_keys(jax.random.key(request.seed), request.batch_size, first)
    return _sample(
        model.decoder,
        batch,
        room,
        keys,
        temperature=np.float32(request.temperature),
        top_k=np.int32(request.top_k),
        top_p=np.float32(request.top_p),
    )


def _encode(name: str, text: str, source: Text) -> np.ndarray:
    limit = source.max_source if name == "source" else source.max_target
    ids = source.vocabulary.encode(text)
    if len(ids) > limit:
        raise UserError(
            f"--{'text' if name == 'source' else name}: {len(ids)} words, over data.max_{name}="
            f"{limit}: shorten it"
        )
    return np.asarray(ids, np.int32)


def distill(model: VOI, config: ConfigDict, request: Request) -> Iterator[Result]:
    """Sequence-level distillation (Kim & Rush 2016): the training sources with the model's texts.

    Leaves pairs of lines as Django's, with the vocabulary: `src_raw_train.txt`,
    `tgt_raw_train.txt`, the evaluation pairs unchanged as `src_raw_dev.txt` and `tgt_raw_dev.txt`,
    and `vocabulary.json`. Recipes of texts take the folder as their data.

    Raises:
        UserError: the model writes of pictures.
    """
    training, held_out = texts(config), texts(config, held_out=True)
    if training.feature_size:
        raise UserError("--distill: this model writes of pictures, not texts; leave it out")
    vocabulary = training.vocabulary
    pairs: list[tuple[str, str]] = []
    for written, batch in write_all(
        model,
        config,
        training,
        len(training),
        request.batch_size,
        request.beams,
        request.length_penalty,
    ):
        for source, line in zip(batch.arrays["source"], lines(written, vocabulary), strict=True):
            pairs.append((vocabulary.decode(source), line.text))
    examples = (example for _, example in readable(held_out, config.data.on_corrupt))
    dev = [(vocabulary.decode(e["source"]), vocabulary.decode(e["target"])) for e in examples]
    for split, corpus in (("train", pairs), ("dev", dev)):
        for side, name in enumerate(("src", "tgt")):
            told = "".join(f"{' '.join(pair[side].split())}\n" for pair in corpus)
            yield Result(f"{name}_raw_{split}.txt", told)
    yield Result("vocabulary.json", vocabulary.as_json(), f"{len(pairs)} texts written anew")
