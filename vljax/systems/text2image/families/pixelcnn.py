"""A picture's values one after the other, under a text, by a gated PixelCNN.

Van den Oord et al., *Conditional Image Generation with PixelCNN Decoders* (2016): the text's vector
is the condition of every layer. Values are few levels a channel (`model.pixelcnn.levels`), so that
a small network learns them. Stage `pixelcnn`. The likelihood is exact; a picture takes as many
steps as it has values.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.progress import Progress
from vljax.models.pixelcnn import from_few_levels, to_few_levels
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    drawings,
    make_stage,
    read_texts,
    told,
)
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`pixelcnn`, where the config has it."""
    if "pixelcnn" not in config.stages:
        return []
    length = config.model.clip.context_length
    train, pictures = [(r"pixelcnn\.", 1.0)], drawings(FAMILY, config)
    return [make_stage(config, "pixelcnn", loss, train, length, pictures=pictures)]


def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
    """−log p, in nats a value."""
    values = to_few_levels(batch["image"], model.pixelcnn.levels)
    nats = model.pixelcnn.nats(values, told(model, batch["tokens"])).mean()
    return nats, {"bits": nats / math.log(2)}


@functools.partial(jax.jit, static_argnames="side")
def draw_batch(
    model: Any,
    tokens: Int[Array, "b n"],
    keys: Key[Array, " b"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    *,
    side: int,
) -> UInt8[Array, "b h w 3"]:
    """The pictures, value by value; one program for texts, seeds and ways."""
    how = {"temperature": temperature, "top_k": top_k}
    values = model.pixelcnn.draw(told(model, tokens), keys, (side, side), **how)
    return from_few_levels(values, model.pixelcnn.levels).astype(jnp.uint8)


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish."""
    tokens = read_texts(config, wish.texts)
    temperature, top_k = jnp.float32(wish.temperature), jnp.int32(wish.top_k)
    side = config.data.image_size
    return draw_batch(model, jnp.asarray(tokens), wish.keys(), temperature, top_k, side=side)


@jax.jit
def _exact(
    model: Any, images: UInt8[Array, "b h w 3"], tokens: Int[Array, "b n"]
) -> Float[Array, " b"]:
    network = model.pixelcnn
    values = to_few_levels(images, network.levels)
    # 8-bit values are even within each of the equal ranges.
    within = math.log2(256 / network.levels)
    return network.bits_per_dimension(values, told(model, tokens)) + within


def bits(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """−log₂ p of pictures at 8-bit levels, exact: that of their levels, and even within these."""
    return _exact(model, examples["image"], examples["tokens"])


FAMILY = Family(
    name="pixelcnn", heeds=frozenset({"temperature", "top_k"}), stages=stages, draw=draw, bits=bits
)
