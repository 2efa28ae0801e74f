"""A text-conditional variational autoencoder.

Kingma & Welling, *Auto-Encoding Variational Bayes* (2014), equation 3; under a text as in Sohn et
al., *Learning Structured Output Representation using Deep Conditional Generative Models* (2015).
Stage `variational`. A picture takes one pass.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.likelihood import discretized_gaussian_log_likelihood
from vljax.diffusion.progress import Progress
from vljax.models.vector_pictures import TextVAE
from vljax.ops.pixels import to_pixels, to_unit
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
    """`variational`, where the config has it."""
    if "variational" not in config.stages:
        return []
    length = config.model.clip.context_length
    pictures = drawings(FAMILY, config)
    train = [(r"vae\.", 1.0)]
    return [make_stage(config, "variational", loss, train, length, pictures=pictures)]


def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
    """−ELBO, in nats a value of the picture: the density's error and the divergence."""
    return elbo_loss(model.vae, to_unit(batch["image"]), told(model, batch["tokens"]), key)


def elbo_loss(
    vae: TextVAE,
    images: Float[Array, "b h w 3"],
    condition: Float[Array, "b e"],
    key: Key[Array, ""],
) -> Any:
    """As `loss`, of pictures in [-1, 1] under any vectors."""
    noise = jax.random.normal(key, (len(images), vae.latents))
    drawn, divergence = vae(images, condition, noise)
    log_scale = vae.log_scale[...]
    apart = jnp.square(images - drawn) * jnp.exp(-2 * log_scale)
    error = (0.5 * (apart + math.log(2 * math.pi)) + log_scale).mean()
    divergence = divergence.mean() / images[0].size
    metrics = {"error": error, "divergence": divergence, "scale": jnp.exp(log_scale)}
    return error + divergence, metrics


@jax.jit
def draw_batch(
    model: Any, tokens: Int[Array, "b n"], keys: Key[Array, " b"]
) -> UInt8[Array, "b h w 3"]:
    """The means of pictures at codes drawn from the prior."""
    return to_pixels(model.vae.sample(told(model, tokens), keys))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a wish."""
    tokens = read_texts(config, wish.texts)
    return draw_batch(model, jnp.asarray(tokens), wish.keys())


@jax.jit
def _bound(
    model: Any, images: UInt8[Array, "b h w 3"], tokens: Int[Array, "b n"], key: Array
) -> Float[Array, " b"]:
    vae = model.vae
    x = to_unit(images)
    noise = jax.random.normal(key, (len(x), vae.latents))
    drawn, divergence = vae(x, told(model, tokens), noise)
    log_p = discretized_gaussian_log_likelihood(x, drawn, vae.log_scale[...])
    return (divergence - log_p.sum((1, 2, 3))) / (x[0].size * math.log(2))


def bits(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """The bound in bits per dimension, by one draw of z, of pictures at 8-bit levels."""
    return _bound(model, examples["image"], examples["tokens"], key)


FAMILY = Family(name="variational", heeds=frozenset(), stages=stages, draw=draw, bits=bits)
