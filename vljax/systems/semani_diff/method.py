"""The method: SeMani-Diff (section 3.3).

Wang et al., *Entity-Level Text-Guided Image Manipulation* (2023).

| paper                                                    | here                             |
|----------------------------------------------------------|----------------------------------|
| eq. 1, 3.3.3: the entity most similar to the word        | `Alignment`                      |
| eq. 12, 13, 15: reverse steps under picture and text     | `draw`                           |
| table I, Blended LDM                                     | `blend`                          |
| 3.2.3 and figure 9: tokens and patches instead of crops  | `Alignment`, `config.alignment`  |

The paper says that the mask conditions the generation and nothing more. What is outside of it
passes through the autoencoder and comes back changed; `finish` pastes it back, which is not
published (`paste=False`).

`draw` and `blend` are one compiled program each; of their arguments only the sampler and the number
of steps make another.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.entities import Masks, Picture, feather, grow, paste
from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.latent import draw_latents
from vljax.diffusion.process import Process
from vljax.diffusion.progress import Progress
from vljax.errors import UserError
from vljax.models.alignment import (
    VILD_TEMPLATES,
    Choice,
    by_masked_crops,
    by_tokens,
    choose,
    grid_to_mask,
    similarity_map,
    word_patches,
)
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.stable_diffusion import StableDiffusion, inpainting_network
from vljax.ops.inside_outside import resize_nearest
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.semani_diff.model import SemaniDiff

# Phase one: where ------------------------------------------------------------------------------

ALIGNMENTS = ("crops", "tokens", "patches")


class Found(NamedTuple):
    """Where a word's entity is.

    Attributes:
        mask: Its pixels; none where nothing fits.
        choice: Which entities, and how similar each was; of patches, which knows none, the
            greatest similarity of any.
    """

    mask: Bool[np.ndarray, "h w"]
    choice: Choice


class Alignment:
    """Finds entities by words, as `config.alignment` says.

    Args:
        model: With a CLIP.
        config: `alignment`.
        tokenizer: CLIP's.
        by: Of `ALIGNMENTS`, instead of the config's.
        resize: Instead of the config's.

    Raises:
        UserError: there is no CLIP, or no such way.
    """

    def __init__(
        self,
        model: SemaniDiff,
        config: ConfigDict,
        tokenizer: Tokenizer,
        *,
        by: str = "",
        resize: str = "",
    ) -> None:
        fields = config.alignment
        self.by = by or fields.by
        if self.by not in ALIGNMENTS:
            raise UserError(
                f"--config.alignment.by={self.by}: choose one of {', '.join(ALIGNMENTS)}"
            )
        if model.clip is None:
            raise UserError(
                "the model has no CLIP to find entities with: give --config.pretrained.clip=FILE, "
                "or --mask=FILE"
            )
        self.clip, self.tokenizer = model.clip, tokenizer
        self.threshold = float(fields.thresholds[self.by])
        self.templates = tuple(fields.templates) or VILD_TEMPLATES
        self.others, self.prompt = fields.others, fields.prompt
        self.resize = resize or fields.resize

    def scores(self, picture: Picture, masks: Masks, word: str) -> Float[np.ndarray, " n"]:
        """How similar each entity is to a word; -inf of what cannot be seen."""
        given = (self.clip, self.tokenizer, picture, masks, word)
        if self.by == "crops":
            return by_masked_crops(*given, templates=self.templates, others=self.others)
        method: Literal["bilinear", "max"] = self.resize  # type: ignore[assignment]
        return by_tokens(*given, prompt=self.prompt, method=method)

    def __call__(self, picture: Picture, masks: Masks, word: str, *, anyway: bool = False) -> Found:
        """Where the word's entity is.

        Args:
            picture: Of any size.
            masks: Its entities.
            word: For what is looked for.
            anyway: Whether the most similar is taken even where it does not fit.
        """
        if self.by == "patches":
            seen = similarity_map(self.clip, self.tokenizer, picture, word, self.prompt)
            least = min(self.threshold, float(seen.max())) if anyway else self.threshold
            height, width = picture.shape[:2]
            mask = grid_to_mask(word_patches(seen, least), (height, width))
            fits = bool(seen.max() >= self.threshold)
            return Found(mask, Choice((), seen.max(keepdims=True)[0], fits))
        choice = choose(self.scores(picture, masks, word), self.threshold, anyway=anyway)
        return Found(np.asarray(masks[list(choice.entities)].any(0)), choice)


# Phase two: what -------------------------------------------------------------------------------

SAMPLERS = ("ddim", "dpm_solver")


class Batch(NamedTuple):
    """A batch of manipulations; all of it is traced.

    Attributes:
        image: The pictures at the working size.
        mask: 1 where the text shall be drawn.
        tokens: Of the texts.
        empty: Of the empty text.
        guidance_scale: w of cond + w·(cond − uncond).
        seeds: One per picture.
    """

    image: UInt8[Array, "b H W 3"]
    mask: Float[Array, "b H W"]
    tokens: Int[Array, "b n"]
    empty: Int[Array, "1 n"]
    guidance_scale: Float[Array, ""]
    seeds: Int[Array, " b"]


@functools.partial(jax.jit, static_argnames=("sampler",))
def draw(
    sd: StableDiffusion,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
    *,
    sampler: str = "ddim",
) -> UInt8[Array, "b H W 3"]:
    """The texts drawn under the masks, from noise (equations 13 and 15).

    The network sees the mask and the picture without what is under it in both halves of guidance;
    only the text is left out of one.

    Args:
        sd: Whose U-Net inpaints.
        process: Its process, respaced.
        batch: What to draw where.
        progress: Where to report steps.
        sampler: Of `SAMPLERS`.
    """
    images = to_unit(batch.image)
    network = inpainting_network(sd, sd.unet, images, batch.mask)
    return to_pixels(sd.decode(_sample(sd, network, process, batch, progress, sampler)))


@functools.partial(jax.jit, static_argnames=("sampler",))
def blend(
    sd: StableDiffusion,
    base: ConditionalUNet | None,
    process: Process,
    batch: Batch,
    progress: Progress | None = None,
    *,
    sampler: str = "ddim",
) -> UInt8[Array, "b H W 3"]:
    """Blended Latent Diffusion (Avrahami et al. 2023): outside, the picture noised after each step.

    Args:
        sd: Gives the latents.
        base: A U-Net of text alone. Without, the one that inpaints under a mask of everything,
            which is what it was trained with where the picture was dropped.
        process: As in `draw`.
        batch: As in `draw`.
        progress: As in `draw`.
        sampler: As in `draw`.
    """
    images = to_unit(batch.image)
    if base is None:
        network = inpainting_network(sd, sd.unet, images, jnp.ones_like(batch.mask))
    else:
        network = base
    return to_pixels(sd.decode(_sample(sd, network, process, batch, progress, sampler, keep=True)))


def _sample(
    sd: StableDiffusion,
    network: Callable[..., Array],
    process: Process,
    batch: Batch,
    progress: Progress | None,
    sampler: str,
    keep: bool = False,
) -> Float[Array, "b h w c"]:
    height, width = (batch.image.shape[1] // sd.shrink, batch.image.shape[2] // sd.shrink)
    kept: dict[str, Any] = {}
    if keep:
        outside = 1.0 - resize_nearest(batch.mask, (height, width), rule="corner")
        kept = {"start": sd.encode(to_unit(batch.image)), "keep": outside, "from_noise": True}
    return draw_latents(
        network,
        process,
        sd.embed(batch.tokens),
        sd.embed(batch.empty),
        batch.guidance_scale,
        jax.vmap(jax.random.key)(batch.seeds),
        size=(height, width, sd.unet.conv_out.weight.shape[-1]),
        sampler=sampler,
        progress=progress,
        **kept,
    )


@jax.jit
def reconstruct(sd: StableDiffusion, image: UInt8[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
    """The pictures through the autoencoder: what of them comes back with nothing changed."""
    return to_pixels(sd.decode(sd.encode(to_unit(image))))


def make_batch(
    tokenizer: Tokenizer,
    length: int,
    image: UInt8[np.ndarray, "b H W 3"],
    mask: Bool[np.ndarray, "b H W"],
    texts: list[str],
    *,
    guidance_scale: float,
    seeds: list[int],
) -> Batch:
    """A batch from pictures, masks and texts.

    Raises:
        UserError: a text is too long, or a seed does not fit 32 bits.
    """
    for text in texts:
        if (count := tokenizer.count(text)) > length - 2:
            shown = text if len(text) <= 60 else f"{text[:59]}…"
            raise UserError(
                f"--text {shown!r} has {count} tokens, but the model takes {length - 2}: shorten it"
            )
    if bad := [seed for seed in seeds if not -(2**31) <= seed < 2**31]:
        raise UserError(f"seed={bad[0]} does not fit 32 bits: give 0 to {2**31 - 1}")
    return Batch(
        jnp.asarray(image),
        jnp.asarray(mask, jnp.float32),
        jnp.asarray(tokenizer(texts, length)),
        jnp.asarray(tokenizer([""], length)),
        jnp.float32(guidance_scale),
        jnp.asarray(seeds, jnp.int32),
    )


# What comes back -------------------------------------------------------------------------------


def widen(mask: Bool[np.ndarray, "h w"], pixels: float) -> Bool[np.ndarray, "h w"]:
    """The mask to draw in: what was found, grown by so many pixels."""
    return grow(mask, pixels)


def finish(before: Picture, drawn: Picture, mask: Bool[np.ndarray, "h w"], seam: float) -> Picture:
    """What is drawn inside of the mask, what was there outside, bit for bit, and a soft seam."""
    return paste(before, drawn, feather(mask, seam))
