"""A picture's codes one after the other, under a text, by a gated PixelCNN.

Van den Oord et al., *Neural Discrete Representation Learning* (2017), section 4.1: the codes of a
VQ-VAE with a PixelCNN over their map as the prior. Stages `autoencoder` and `vqgan` give the codes,
as for `tokens`; `prior` learns what follows what.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.progress import Progress
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    drawings,
    make_stage,
    read_texts,
    told,
)
from vljax.systems.text2image.families.tokens import code_stages
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`autoencoder`, `vqgan`, `prior`: those that the config has."""
    listed = code_stages(config)
    if "prior" in config.stages:
        length = config.model.clip.context_length
        train, pictures = [(r"prior\.", 1.0)], drawings(FAMILY, config)
        listed.append(make_stage(config, "prior", loss, train, length, pictures=pictures))
    return listed


def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
    """−log p, in nats a code."""
    codes = jax.lax.stop_gradient(model.vqgan.codes(to_unit(batch["image"])))
    nats = model.prior.nats(codes[..., None], told(model, batch["tokens"])).mean()
    return nats, {"codes": nats}


@functools.partial(jax.jit, static_argnames="grid")
def draw_batch(
    model: Any,
    tokens: Int[Array, "b n"],
    keys: Key[Array, " b"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
    *,
    grid: int,
) -> UInt8[Array, "b h w 3"]:
    """The pictures of codes drawn one after the other; one program for texts, seeds and ways."""
    how = {"temperature": temperature, "top_k": top_k}
    codes = model.prior.draw(told(model, tokens), keys, (grid, grid), **how)[..., 0]
    return to_pixels(model.vqgan.decode(model.vqgan.vectors(codes)))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish."""
    tokens = read_texts(config, wish.texts)
    temperature, top_k = jnp.float32(wish.temperature), jnp.int32(wish.top_k)
    grid = config.data.image_size // model.vqgan.shrink
    return draw_batch(model, jnp.asarray(tokens), wish.keys(), temperature, top_k, grid=grid)


@jax.jit
def _exact(
    model: Any, images: UInt8[Array, "b h w 3"], tokens: Int[Array, "b n"]
) -> Float[Array, " b"]:
    codes = model.vqgan.codes(to_unit(images))
    return model.prior.nats(codes[..., None], told(model, tokens)).mean((1, 2, 3))


def nats(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """−log p of the pictures' codes under their texts, exact, in nats a code."""
    return _exact(model, examples["image"], examples["tokens"])


FAMILY = Family(
    name="vqvae",
    heeds=frozenset({"temperature", "top_k"}),
    stages=stages,
    draw=draw,
    nats=nats,
)
