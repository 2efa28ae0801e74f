"""What a person asks of a captioner: what a picture shows, and where it looked for each word."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vljax.data.pictures.images import contact_sheet, read_image
from vljax.data.source import readable
from vljax.data.text.vocabulary import Vocabulary
from vljax.errors import UserError
from vljax.models.captioner import ATTENTIONS
from vljax.models.decoding import check_choice
from vljax.request import Picture, changed, option
from vljax.systems import Result
from vljax.systems.captioner.method import (
    Written,
    attention_strip,
    open_examples,
    read_example,
    words_of,
    write_all,
)
from vljax.systems.captioner.model import Captioners, part_of
from vljax.systems.captioner.words import open_words

# Pictures described at a time, so that device memory does not grow with those asked for.
_TOGETHER = 16


@dataclass(frozen=True)
class Request:
    """A caption of a picture, and where was looked for each of its words."""

    image: Picture | None = option(None, help="the photograph to describe")
    num_examples: int = option(4, low=1, help="without --image: held-out pictures to describe")
    attention: str = option("soft", choices=ATTENTIONS, help="who writes: with attention or none")
    beams: int = option(1, low=1, high=64, help="width of the search for the caption")
    temperature: float = option(0.0, low=0.0, help="of drawing words; 0: the most probable ones")
    top_k: int = option(0, low=0, high=65536, help="draw from so many words; 0 for all")
    top_p: float = option(1.0, low=0.0, high=1.0, help="draw words from this share")
    seed: int = option(0, seed=True, help="of drawing words")


def generate(model: Captioners, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`attention_0.png`, …, each picture's strip; `captions.png`, a sheet; `captions.json`.

    Raises:
        UserError: the request cannot be.
    """
    part_of(model, request.attention)
    how = decoding_of(request)
    words, examples = open_words(config), _examples(config, request)
    arrays = [read_example(config, one) for one in examples]
    how |= {"attention": request.attention, "seed": request.seed}
    found = write_all(model, config, arrays, batch_size=_TOGETHER, **how)
    told, rows = [], []
    for i, example in enumerate(examples):
        told.append(_told(words, example, found, i))
        if "image" not in example:
            continue
        rows.append((told[i]["caption"], example["image"][None]))
        if found.attention is not None:
            strip = attention_strip(
                example["image"],
                words_of(words, found.tokens[i]),
                found.attention[i],
                found.gate[i],
            )
            settings = {"caption": told[i]["caption"]}
            yield Result(f"attention_{i}.png", strip, told[i]["caption"], settings)
    if len({pictures.shape for _, pictures in rows}) == 1:  # a sheet has pictures of one size
        yield Result("captions.png", contact_sheet(rows, min_side=112), told[0]["caption"])
    text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
    yield Result("captions.json", text, "\n".join(one["caption"] for one in told))


def decoding_of(request: Request) -> dict[str, Any]:
    """How words are chosen, as `vljax.systems.captioner.method.write` takes it.

    Raises:
        UserError: one asks to search and to draw at once, or limits what is not drawn.
    """
    check_choice(request.beams, request.temperature, top_p=request.top_p, top_k=request.top_k)
    return {
        "beams": request.beams,
        "temperature": np.float32(request.temperature),
        "top_k": np.int32(request.top_k),
        "top_p": np.float32(request.top_p),
    }


def _examples(config: ConfigDict, request: Request) -> list[dict[str, Any]]:
    """The photograph, or the first held-out examples with what people said of them."""
    if request.image is None:
        source = open_examples(config, ("captions",), held_out=True)
        read = readable(source, config.data.on_corrupt, request.num_examples)
        return [example for _, example in read]
    if config.model.trunk.kind == "none":
        raise UserError(
            "--image: this model reads features that were made once; leave it out to describe "
            "held-out examples"
        )
    if "num_examples" in changed(request):
        raise UserError("--num_examples: with --image that picture is described; leave one out")
    return [{"image": read_image(request.image)}]


def _told(words: Vocabulary, example: dict[str, Any], found: Written, i: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "caption": words.decode(found.tokens[i]),
        "log_prob": round(float(found.log_prob[i]), 3),
    }
    if found.gate is not None:
        by_word = words_of(words, found.tokens[i])
        told["gates"] = [
            [word, round(float(gate), 3)]
            for word, gate in zip(by_word, found.gate[i], strict=False)
        ]
    return told | ({"people": list(example["captions"])} if "captions" in example else {})
