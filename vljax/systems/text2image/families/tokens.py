"""Words and a picture's codes as one sequence: Ramesh et al., *Zero-Shot Text-to-Image Generation*.

Stages `autoencoder` and `vqgan` (van den Oord et al., *Neural Discrete Representation Learning*,
2017: the codes; without the first codes begin near zero, as published) and `transformer` (DALL-E,
section 2.2: the sequence). The Transformer is SeMani-Trans's, without a gray picture.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.source import Transform
from vljax.diffusion.progress import Progress
from vljax.errors import UserError
from vljax.models.adversarial import reconstruction_error, vqgan_loss
from vljax.models.completion import complete
from vljax.models.parameters import copied
from vljax.models.vqgan import codebook_of_centres
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    caption_transform,
    drawings,
    first_pictures,
    make_stage,
)
from vljax.systems.text2image.model import make_tokenizer
from vljax.training.stage import Stage

# Of the encoder's learning rate, where codes begin as centres of its encodings.
_ENCODER_RATE = 0.1
# Pictures whose encodings begin the codebook.
_CODEBOOK_PICTURES = 256


def stages(config: ConfigDict) -> list[Stage]:
    """`autoencoder`, `vqgan`, `transformer`: those that the config has."""
    listed = code_stages(config)
    if "transformer" in config.stages:
        listed.append(
            make_stage(
                config,
                "transformer",
                _drawing_loss(config),
                [(r"transformer\.", 1.0)],
                config.model.clip.context_length,
                transform=_plain_texts(config),
                pictures=drawings(FAMILY, config),
            )
        )
    return listed


def code_stages(config: ConfigDict) -> list[Stage]:
    """`autoencoder`, `vqgan`: those that the config has. They train the part `vqgan`.

    Raises:
        UserError: it is neither trained nor given.
    """
    if "vqgan" not in config.stages and not config.pretrained.vqgan:
        raise UserError("no codes are trained: give some with --config.pretrained.vqgan=FILE")
    length = config.model.clip.context_length
    towers = [(r"vqgan\.(?!quantize)", 1.0)]
    codes, start = [(r"vqgan\.", 1.0)], None
    if "autoencoder" in config.stages:
        # Codes begin where encodings are, and are lost where these run away.
        codes.insert(0, (r"vqgan\.(encoder|quant_conv)\.", _ENCODER_RATE))
        start = _codes_from(config)
    made = {
        "autoencoder": lambda name: make_stage(
            config, name, _autoencoder_loss(config), towers, length
        ),
        "vqgan": lambda name: make_stage(
            config, name, _codes_loss(config), codes, length, start=start
        ),
    }
    return [make(name) for name, make in made.items() if name in config.stages]


def _plain_texts(config: ConfigDict) -> Transform:
    """`image` and `text`, the tokens without start and end [text_length]."""
    tokenizer, length = make_tokenizer(config), config.model.transformer.text_length
    square = caption_transform(config, config.model.clip.context_length)

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        told = example["captions"]
        chosen = told[rng.integers(len(told))]
        image = square(example, rng)["image"]
        return {"image": image, "text": tokenizer.plain([chosen], length, warn=False)[0]}

    return transform


def _autoencoder_loss(config: ConfigDict) -> Any:
    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        images = to_unit(batch["image"])
        drawn = model.vqgan.decode(model.vqgan.encode(images))
        return reconstruction_error(drawn, images, config.codes.squared), {}

    return loss


def _codes_loss(config: ConfigDict) -> Any:
    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        return vqgan_loss(model.vqgan, to_unit(batch["image"]), squared=config.codes.squared)

    return loss


def _codes_from(config: ConfigDict) -> Any:
    """See `vljax.models.vqgan.codebook_of_centres`."""

    def start(model: Any) -> Any:
        images = first_pictures(config, _CODEBOOK_PICTURES)
        begun = copied(model)
        begun.vqgan = codebook_of_centres(
            model.vqgan, to_unit(jnp.asarray(images)), jax.random.key(config.seed)
        )
        return begun

    return start


def _log_p(model: Any, images: Array, text: Array) -> tuple[Array, Array]:
    """−log p of words and of codes, in nats of each [b t], [b n]."""
    network, codes = model.transformer, model.vqgan.codes(to_unit(images)).reshape(len(images), -1)
    codes = jax.lax.stop_gradient(codes)
    logits = network(text, codes)
    of = optax.softmax_cross_entropy_with_integer_labels
    return of(logits.text, network.padded(text)), of(logits.image, codes)


def _drawing_loss(config: ConfigDict) -> Any:
    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        words, codes = _log_p(model, batch["image"], batch["text"])
        found = {"words": words.mean(), "codes": codes.mean()}
        weight = config.text_weight
        return weight * found["words"] + (1 - weight) * found["codes"], found

    return loss


@jax.jit
def draw_batch(
    model: Any,
    text: Int[Array, "b t"],
    keys: Key[Array, " b"],
    temperature: Float[Array, ""],
    top_k: Int[Array, ""],
) -> UInt8[Array, "b h w 3"]:
    """The pictures of codes drawn one after the other; one program for texts, seeds and ways."""
    network, vqgan = model.transformer, model.vqgan
    blank = jnp.zeros((len(text), network.codes), jnp.int32)
    drawn = complete(
        network, text, blank, blank == 0, keys, temperature=temperature, top_k=top_k
    ).codes
    grid = drawn.reshape(len(text), network.grid, network.grid)
    return to_pixels(vqgan.decode(vqgan.vectors(grid)))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish."""
    text = make_tokenizer(config).plain(wish.texts, config.model.transformer.text_length)
    temperature, top_k = jnp.float32(wish.temperature), jnp.int32(wish.top_k)
    return draw_batch(model, jnp.asarray(text), wish.keys(), temperature, top_k)


@jax.jit
def _exact(
    model: Any, images: UInt8[Array, "b h w 3"], tokens: Int[Array, "b n"]
) -> Float[Array, " b"]:
    length = model.transformer.text_length
    return _log_p(model, images, plain_of(tokens, length))[1].mean(1)


def plain_of(tokens: Int[Array, "b n"], length: int) -> Int[Array, "b t"]:
    """Words without start and end, 0 for padding, of tokens with both; the end is the largest."""
    words = jnp.where(jnp.arange(tokens.shape[1]) < tokens.argmax(1)[:, None], tokens, 0)[:, 1:]
    return jnp.pad(words, ((0, 0), (0, length)))[:, :length]


def nats(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """−log p of the pictures' codes under their texts, exact, in nats a code."""
    return _exact(model, examples["image"], examples["tokens"])


FAMILY = Family(
    name="tokens",
    heeds=frozenset({"temperature", "top_k"}),
    stages=stages,
    draw=draw,
    nats=nats,
)
