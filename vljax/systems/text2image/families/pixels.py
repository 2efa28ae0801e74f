"""Diffusion of pixels under a text: GLIDE (Nichol et al. 2022).

Classifier-free guidance (section 2.2) or guidance by CLIP (section 2.3). Stages `diffusion` and,
where a second network enlarges the pictures, `upsampler` (section 3.2); each network's text
Transformer learns with it.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.text.tokenizers import Tokenizer, given_tokenizer
from vljax.diffusion.editing import guided
from vljax.diffusion.guidance import language, on_predicted_x0, score_guidance, semantic_score
from vljax.diffusion.likelihood import bits_per_dimension
from vljax.diffusion.losses import denoising_loss, named_loss
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import Process, make_process
from vljax.diffusion.progress import Progress
from vljax.diffusion.samplers import ddpm, sample
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.blocks import average_pool
from vljax.models.clip import CLIP
from vljax.models.glide import GLIDE
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    caption_transform,
    drawings,
    enlarged,
    make_stage,
)
from vljax.systems.text2image.model import make_tokenizer
from vljax.training.stage import Stage

_BITS_STEPS = "50"
# What reads the texts, but for the layers that hand them on.
_TEXT = r"(transformer\.|final_ln\.|token_embedding\.|positional_embedding|padding_embedding)"
# Makes the upsampler's noise another than the first network's.
_SECOND = 2**30


def stages(config: ConfigDict) -> list[Stage]:
    """`diffusion` and `upsampler`, where the config has them."""
    length, share = config.model.text_encoder.text_length, config.diffusion.caption_dropout
    reader = text_tokenizer(config)

    def trained(part: str) -> list[tuple[str, float]]:
        return [(rf"{part}\.{_TEXT}", config.text_rate), (rf"{part}\.", 1.0)]

    larger = enlarged(config, config.model.upsampler.get("image_size", 0))
    made = {
        "diffusion": lambda name: make_stage(
            config,
            name,
            _loss("glide", make_process(config), reader),
            trained("glide"),
            length,
            transform=caption_transform(config, length, share, tokenizer=reader),
            pictures=drawings(replace(FAMILY, draw=draw_small), config),
        ),
        "upsampler": lambda name: make_stage(
            larger,
            name,
            _loss(
                "upsampler",
                _process(config),
                reader,
                config.model.upsampler.image_size // config.data.image_size,
            ),
            trained("upsampler"),
            length,
            transform=caption_transform(larger, length, tokenizer=reader),
            pictures=drawings(FAMILY, config),
        ),
    }
    return [make(name) for name, make in made.items() if name in config.stages]


def text_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of GLIDE's texts.

    Raises:
        UserError: GLIDE is published, and its tokenizer is not given, or cannot be.
    """
    if found := given_tokenizer(config.glide_tokenizer):
        return found
    if config.pretrained.glide:
        raise UserError(
            f"pretrained.glide={config.pretrained.glide}: it reads texts by a tokenizer of its "
            "own; give --config.glide_tokenizer=vocab.bpe.gz, with encoder.json.gz beside it"
        )
    return make_tokenizer(config)


def _process(config: ConfigDict, steps: str = "") -> Process:
    """The upsampler's."""
    fields = {**config.diffusion, "schedule": config.upsampling.schedule}
    return make_process(ConfigDict({"diffusion": fields}), steps)


def _loss(part: str, process: Process, reader: Tokenizer, factor: int = 1) -> Any:
    """The loss of a network, which sees the picture `factor` times smaller where that is not 1."""
    timesteps = UniformTimesteps(len(process.schedule))
    of_each = named_loss("hybrid" if process.variance == "learned_range" else "simple")

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        glide: GLIDE = getattr(model, part)
        told = glide.tell(batch["tokens"], reader.real(batch["tokens"]))
        images = to_unit(batch["image"])
        small = average_pool(images, factor) if factor > 1 else None

        def denoiser(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return glide.denoise(x, t, told, small)

        keys = jax.random.split(key)
        return denoising_loss(process, denoiser, images, keys, timesteps, of_each)[0], {}

    return loss


@functools.partial(jax.jit, static_argnames=("side", "sampler"))
def draw_batch(
    glide: GLIDE,
    process: Process,
    tokens: Int[Array, "2b n"],
    real: Bool[Array, "2b n"],
    guidance_scale: Float[Array, ""],
    keys: Key[Array, " b"],
    progress: Progress | None = None,
    judged: tuple[CLIP, Process, Int[Array, "b m"], Float[Array, ""]] | None = None,
    *,
    side: int,
    sampler: str,
) -> UInt8[Array, "b h w 3"]:
    """The pictures, one program for all texts, scales and seeds.

    Args:
        glide: Draws.
        process: Respaced.
        tokens: Of the texts; then of the negative prompt, or of the empty text, for each.
        real: Which of them are no padding.
        guidance_scale: w of cond + w·(cond − uncond).
        keys: One a picture.
        progress: Where to report steps.
        judged: Of guidance by CLIP: the CLIP, the process of training, the texts' tokens, and the
            factor on the gradient of its cosine with what a step predicts; None for none.
        side: Of the pictures.
        sampler: One of `vljax.diffusion.samplers.SAMPLERS`.
    """
    told = glide.tell(tokens, real)
    denoiser = guided(lambda x, t: glide.denoise(x, t, told), guidance_scale)
    noise = start_noise(keys, (side, side, 3))
    guidance = None
    if judged is not None:
        clip, training, words, scale = judged
        seen = on_predicted_x0(training, denoiser, lambda x: (clip.encode_image(x), ()))
        guidance = score_guidance(
            semantic_score(seen, [(scale, language(clip.encode_text(words)))])
        )
    x = sample(
        sampler, process, denoiser, noise, keys, clip=True, guidance=guidance, progress=progress
    )
    return to_pixels(x)


@jax.jit
def enlarge(
    upsampler: GLIDE,
    process: Process,
    tokens: Int[Array, "b n"],
    real: Bool[Array, "b n"],
    small: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    progress: Progress | None = None,
) -> UInt8[Array, "b h2 w2 3"]:
    """Pictures at the upsampler's size, by ancestral steps without guidance; as `draw_batch`."""
    told, seen = upsampler.tell(tokens, real), to_unit(small)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _SECOND)
    noise = start_noise(keys, (upsampler.image_size, upsampler.image_size, 3))

    def denoiser(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
        return upsampler.denoise(x, t, told, seen)

    return to_pixels(ddpm(process, denoiser, noise, keys, clip=True, progress=progress))


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a filled wish.

    Raises:
        UserError: as `draw_small`.
    """
    small = draw_small(model, config, wish, progress)
    if model.upsampler is None:
        return small
    reader = text_tokenizer(config)
    tokens = reader(wish.texts, model.upsampler.text_length)
    return enlarge(
        model.upsampler,
        _process(config, config.upsampling.steps),
        jnp.asarray(tokens),
        jnp.asarray(reader.real(tokens)),
        small,
        wish.keys(),
        progress,
    )


def draw_small(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The first network's pictures.

    Raises:
        UserError: the sampler is none, or there is no CLIP that could guide.
    """
    reader, without = text_tokenizer(config), [wish.negative] * len(wish.texts)
    tokens = reader([*wish.texts, *without], model.glide.text_length)
    judged = None
    if wish.clip_scale:
        if model.clip is None:
            raise UserError(
                f"--clip_scale={wish.clip_scale}: there is no CLIP that could guide; give "
                "--config.pretrained.clip, or leave it out"
            )
        words = make_tokenizer(config)(wish.texts, model.clip.context_length)
        scale = jnp.float32(wish.clip_scale)
        judged = (model.clip, make_process(config), jnp.asarray(words), scale)
    return draw_batch(
        model.glide,
        make_process(config, wish.steps or ""),
        jnp.asarray(tokens),
        jnp.asarray(reader.real(tokens)),
        jnp.float32(wish.guidance_scale),
        wish.keys(),
        progress,
        judged,
        side=config.data.image_size,
        sampler=wish.sampler,
    )


@jax.jit
def _bound(
    glide: GLIDE,
    process: Process,
    images: UInt8[Array, "b h w 3"],
    tokens: Int[Array, "b n"],
    real: Bool[Array, "b n"],
    keys: Key[Array, " b"],
) -> Float[Array, " b"]:
    told = glide.tell(tokens, real)
    found = bits_per_dimension(
        process, lambda x, t: glide.denoise(x, t, told), to_unit(images), keys, clip=True
    )
    return found.total


def bits(
    model: Any, config: ConfigDict, examples: dict[str, Any], key: Key[Array, ""]
) -> Float[Array, " b"]:
    """The variational bound in bits per dimension, of a process of 50 steps (thus a loose one).

    Of the first network, at its size.
    """
    keys = jax.random.split(key, len(examples["image"]))
    process, tokens = make_process(config, _BITS_STEPS), np.asarray(examples["tokens"])
    real = jnp.asarray(text_tokenizer(config).real(tokens))
    return _bound(model.glide, process, examples["image"], jnp.asarray(tokens), real, keys)


FAMILY = Family(
    name="pixels",
    heeds=frozenset({"negative", "guidance_scale", "clip_scale", "sampler", "steps"}),
    stages=stages,
    draw=draw,
    bits=bits,
)
