"""Pictures by way of their CLIP embeddings: Ramesh et al. 2022, unCLIP (DALL-E 2).

p(picture | text) = p(picture | embedding) p(embedding | text) (section 2). The prior is theirs,
diffusion of embeddings by a causal Transformer, and of two embeddings the one nearer to the text
is taken; the decoder here is the VAE of `variational`, under the picture's embedding. Stages
`prior` and `variational`, which need not wait for each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.prior import draw_embeddings, measured, nearest, prior_loss, read_text
from vljax.diffusion.process import Process, make_process
from vljax.diffusion.progress import Progress
from vljax.models.parameters import copied
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    drawings,
    first_pictures,
    make_stage,
    read_texts,
)
from vljax.systems.text2image.families.variational import elbo_loss
from vljax.systems.text2image.model import to_condition
from vljax.training.stage import Stage

# Pictures whose embeddings are measured before the prior learns.
_MEASURED = 256
# Embeddings drawn for each picture (end of section 2.2).
_CANDIDATES = 2


def stages(config: ConfigDict) -> list[Stage]:
    """`prior` and `variational`, where the config has them."""
    length = config.model.clip.context_length
    made = {
        "prior": lambda name: make_stage(
            config,
            name,
            _prior_loss(config),
            [(r"unclip\.", 1.0)],
            length,
            dropped=config.diffusion.caption_dropout,
            start=_measured(config),
        ),
        "variational": lambda name: make_stage(
            config, name, _loss, [(r"vae\.", 1.0)], length, pictures=drawings(FAMILY, config)
        ),
    }
    return [make(name) for name, make in made.items() if name in config.stages]


def _prior_loss(config: ConfigDict) -> Any:
    process = make_process(config)

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        embedding = _embed(model, to_unit(batch["image"]))
        text = read_text(model.clip, batch["tokens"])
        return prior_loss(model.unclip, process, embedding, text, key), {}

    return loss


def _measured(config: ConfigDict) -> Any:
    """See `vljax.diffusion.prior.measured`."""

    def start(model: Any) -> Any:
        images = first_pictures(config, _MEASURED)
        begun = copied(model)
        begun.unclip = measured(model.unclip, _embed(model, to_unit(jnp.asarray(images))))
        return begun

    return start


def _loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
    """−ELBO under pictures' embeddings."""
    images = to_unit(batch["image"])
    return elbo_loss(model.vae, images, to_condition(_embed(model, images)), key)


def _embed(model: Any, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
    """CLIP's embeddings; no gradient reaches CLIP."""
    return jax.lax.stop_gradient(model.clip.encode_image(images))


@jax.jit
def predict(
    model: Any,
    process: Process,
    tokens: Int[Array, "b n"],
    without: Int[Array, "b n"],
    guidance_scale: Float[Array, ""],
    keys: Key[Array, " b"],
) -> Float[Array, "b e"]:
    """The embeddings of pictures that texts may have, by the prior.

    Args:
        model: The model.
        process: The prior's, respaced.
        tokens: Of the texts.
        without: Of the negative prompt, or of the empty text.
        guidance_scale: w of cond + w·(cond − uncond).
        keys: One a picture.
    """
    text, negative = read_text(model.clip, tokens), read_text(model.clip, without)

    def one(number: Int[Array, ""]) -> Float[Array, "b e"]:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return draw_embeddings(model.unclip, process, text, negative, guidance_scale, own)

    return nearest(jax.lax.map(one, jnp.arange(_CANDIDATES)), text[0])


@jax.jit
def draw_batch(
    model: Any, embedding: Float[Array, "b e"], keys: Key[Array, " b"]
) -> UInt8[Array, "b h w 3"]:
    """The means of pictures of embeddings, at codes drawn from the VAE's prior."""
    return to_pixels(model.vae.sample(to_condition(embedding), keys))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish."""
    embedding = predict(
        model,
        make_process(config, wish.steps or ""),
        jnp.asarray(read_texts(config, wish.texts)),
        jnp.asarray(read_texts(config, [wish.negative] * len(wish.texts))),
        jnp.float32(wish.guidance_scale),
        wish.keys(),
    )
    return draw_batch(model, embedding, wish.keys())


def agreement(
    model: Any, config: ConfigDict, images: UInt8[np.ndarray, "b h w 3"], texts: list[str]
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """The cosines of pictures' embeddings with what the prior predicts, and with their texts'."""
    tokens = jnp.asarray(read_texts(config, texts))
    without = jnp.asarray(read_texts(config, [""] * len(texts)))
    keys = Wish(tuple(texts), tuple(range(len(texts)))).keys()
    process = make_process(config, config.samples.steps)
    predicted = predict(model, process, tokens, without, jnp.float32(0.0), keys)
    seen = _embed(model, to_unit(jnp.asarray(images)))
    told = model.clip.encode_text(tokens)
    return np.asarray(cosine(predicted, seen)), np.asarray(cosine(told, seen))


FAMILY = Family(
    name="unclip",
    heeds=frozenset({"negative", "guidance_scale", "steps"}),
    stages=stages,
    draw=draw,
)
