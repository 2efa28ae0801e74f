"""What a captioner does with pictures: reads them, writes of them, and shows where it looked.

The networks' equations are in `vljax.models.captioner`; here is how they act on a batch, and the
picture of attention word by word (Show, Attend and Tell, figure 3).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.captioned import CaptionedPhotographs
from vljax.data.pictures.images import contact_sheet, image_grid, stretched
from vljax.data.pictures.maps import over_picture
from vljax.data.source import Source, readable, stacked
from vljax.data.text.vocabulary import Vocabulary
from vljax.diffusion.noise import example_keys
from vljax.diffusion.progress import in_steps
from vljax.errors import UserError
from vljax.marks import END, PAD, START, UNKNOWN
from vljax.models import decoding
from vljax.ops.parts import filled_batches, joined
from vljax.pretrained.features import keep_features
from vljax.systems.captioner.model import Captioners, features_of, part_of
from vljax.systems.captioner.words import open_words
from vljax.training.mesh import gather

Arrays = dict[str, np.ndarray]

# What is never written: a caption of photographs has words instead of those that are unknown.
_NO_WORDS = np.array([PAD, START, UNKNOWN])


def open_examples(
    config: ConfigDict, more: Sequence[str] = (), *, held_out: bool = False
) -> Source:
    """The examples of a run: picture or features, and `more`.

    Args:
        config: The run's.
        more: Further fields of the examples, such as `captions`.
        held_out: Those to judge by.

    Raises:
        UserError: the data is not there, or has no features.
    """
    benchmark, trunk = open_benchmark(config.data), config.model.trunk
    if config.data.features and trunk.kind != "none":

        def photographs() -> Mapping[str, Path]:
            source = benchmark.pictures(held_out=held_out)
            if not isinstance(source, CaptionedPhotographs):
                raise UserError(
                    f"data.features={config.data.features!r}: data.name={config.data.name!r} has "
                    "no photographs to keep features of; leave it empty"
                )
            return source.files

        size = config.data.image_size
        keep_features(config.data.features, photographs, trunk, config.pretrained.trunk, size)
    reads = config.data.features or trunk.kind == "none"
    fields = ("features" if reads else "image", *more)
    return benchmark.pictures(fields, held_out=held_out)


def read_example(config: ConfigDict, example: Mapping[str, Any]) -> Arrays:
    """An example's picture (stretched to the model's size) or features."""
    if "features" in example:
        return {"features": np.ascontiguousarray(example["features"].transpose(1, 2, 0))}
    return {"image": stretched(example["image"], config.data.image_size)}


class Written(NamedTuple):
    """Captions with what was looked at; arrays of JAX or, on the host, of numpy.

    Attributes:
        tokens: Their words, the end, then padding, int32 [b t].
        log_prob: Of them, float32 [b], in nats.
        attention: Where was looked for each word, float32 [b t h w]; None without attention.
        gate: How much that counted, float32 [b t]; None without attention.
    """

    tokens: Any
    log_prob: Any
    attention: Any
    gate: Any


@functools.partial(jax.jit, static_argnames=("attention", "length", "beams"))
def write(
    model: Captioners,
    batch: Mapping[str, Array],
    keys: Key[Array, " b"],
    *,
    length: int,
    attention: str = "soft",
    beams: int = 1,
    temperature: float | Float[Array, ""] = 0.0,
    top_k: int | Array = 0,
    top_p: float | Float[Array, ""] = 1.0,
) -> Written:
    """Write a caption of each picture.

    Args:
        model: The model.
        batch: `image`, uint8 [b h w 3], or `features` [b h w c].
        keys: One a row, for drawing words.
        length: Room for a caption and its end; static.
        attention: Who writes, `"soft"` or `"none"`; static.
        beams: Width of the search where no words are drawn; static.
        temperature: Of drawing words; 0 takes the most probable one.
        top_k: Draw from so many words; 0 for all.
        top_p: Draw from this share.
    """
    captioner = part_of(model, attention)
    features = features_of(model, batch)
    seen: Any = captioner.look(features)

    def step(state: Any, token: Array) -> tuple[Array, Any]:
        log_probs, state = captioner.step(seen, state, token)
        return jax.nn.log_softmax(log_probs.at[:, _NO_WORDS].set(-jnp.inf)), state

    first = jnp.full(len(features), START)
    if beams > 1:
        cache = captioner.start(seen)
        found = decoding.beam_search(step, cache, first, length, beams, end=END, pad=PAD)
        tokens, log_prob = found.tokens[:, 0], found.log_prob[:, 0]
    else:
        drawn = decoding.sample(
            step,
            captioner.start(seen),
            first,
            length,
            keys,
            end=END,
            pad=PAD,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        tokens, log_prob = drawn.tokens, drawn.log_prob
    # What was looked at follows from the words: they are read once more, all together.
    told = captioner(features, jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1))
    return Written(tokens, log_prob, told.attention, told.gate)


def write_batch(
    model: Captioners,
    config: ConfigDict,
    arrays: Sequence[Arrays],
    *,
    seed: int = 0,
    first: int = 0,
    **how: Any,
) -> Written:
    """`write` of a list of examples; on the host.

    Args:
        model: The model.
        config: The run's.
        arrays: From `read_example`.
        seed: Of drawing words.
        first: The index of the first example: a caption depends on the seed and its own.
        **how: Of `write`.
    """
    keys = example_keys(jax.random.key(seed), len(arrays), first)
    found = write(model, stacked(arrays), keys, length=config.data.max_words + 1, **how)
    return jax.tree.map(np.asarray, found)


def write_all(
    model: Captioners,
    config: ConfigDict,
    arrays: Sequence[Arrays],
    *,
    batch_size: int,
    seed: int = 0,
    **how: Any,
) -> Written:
    """`write_batch` of any number of examples, in batches of one size."""
    parts = []
    batches = filled_batches(len(arrays), min(batch_size, len(arrays)))
    for places in in_steps("describing", batches):
        some = [arrays[i] for i in places]
        parts.append(write_batch(model, config, some, seed=seed, first=places[0], **how))
    return joined(parts, len(arrays))


def words_of(words: Vocabulary, tokens: np.ndarray) -> list[str]:
    """The words of a caption, one a token, up to its end; place i is that of its attention."""
    ended = np.flatnonzero(tokens == END)
    return words.tokens(tokens[: ended[0] if ended.size else len(tokens)])


def attention_strip(
    image: UInt8[np.ndarray, "h w 3"],
    words: Sequence[str],
    attention: Float[np.ndarray, "t h w"],
    gates: Float[np.ndarray, " t"],
    side: int = 112,
) -> UInt8[np.ndarray, "H W 3"]:
    """The picture, then one for each word with where was looked, brighter where more.

    Show, Attend and Tell, figure 3. Under each word stands how much what was looked at counted, β.

    Args:
        image: The picture, of any size; it is shown as a square.
        words: Of the caption.
        attention: Where was looked for each, and perhaps for more.
        gates: β of each.
        side: Of a picture of the strip, in pixels.
    """
    shown = stretched(image, side)
    maps = [over_picture(one, shown) for one in attention[: len(words)]]
    labels = ["", *(f"{word} {gate:.2f}" for word, gate in zip(words, gates, strict=False))]
    font, line = ImageFont.load_default(size=14), 20
    tiles = np.full((len(labels), side + line, side, 3), 255, np.uint8)
    for tile, picture, label in zip(tiles, [shown, *maps], labels, strict=True):
        head = Image.new("RGB", (side, line), "white")
        ImageDraw.Draw(head).text((2, 1), label, fill="black", font=font)
        tile[:line], tile[line:] = np.asarray(head), picture
    return image_grid(tiles, columns=min(len(tiles), 8))


def captioned_pictures(
    config: ConfigDict, attention: str
) -> Callable[[Captioners], dict[str, np.ndarray]]:
    """Draws a few held-out pictures, each with its caption above it."""
    source, words, count = None, open_words(config), config.samples.count
    if config.model.trunk.kind != "none" and not config.data.features:
        source = open_examples(config, held_out=True)

    def draw(model: Captioners) -> dict[str, np.ndarray]:
        if source is None:
            return {}
        read = readable(source, config.data.on_corrupt, count)
        arrays = [read_example(config, example) for _, example in read]
        here = jax.tree.map(gather, model)
        found = write_batch(here, config, arrays, attention=attention)
        rows = [
            (words.decode(tokens), one["image"][None])
            for tokens, one in zip(found.tokens, arrays, strict=True)
        ]
        return {"captions": contact_sheet(rows, min_side=112)}

    return draw
