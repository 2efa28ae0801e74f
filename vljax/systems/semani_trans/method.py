"""SeMani-Trans: which codes of a picture a word names, and how they are drawn anew (section 3.2.3).

A picture is a square map of codes. Alignment finds the entity that a word names and marks its
codes; these are drawn given a text and the other codes. "Kept" means the same codes: the whole
picture comes out of the decoder, so that pixels outside change as little as by reconstruction.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.entities import Entities, Masks, grow, scene_entities
from vljax.data.pictures.images import resize_and_crop
from vljax.data.text.tokenizers import Tokenizer
from vljax.errors import UserError
from vljax.models.alignment import by_tokens, mask_to_grid
from vljax.models.clip import CLIP
from vljax.models.completion import complete, complete_in_parallel
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.semani_trans.model import SeManiTrans

Picture = UInt8[np.ndarray, "s s 3"]
#: Who draws: the Transformer of section 3.2, the one that fills in masked codes, or the former
#: trained without the semantic loss.
Network = Literal["transformer", "parallel", "plain"]

# Red's, green's and blue's shares of luminance (ITU-R BT.601), as torchvision and Pillow have them.
_LUMINANCE = (0.299, 0.587, 0.114)


def to_gray(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Luminance in three channels: what vision guidance is given (section 3.2.2)."""
    gray = (images * jnp.array(_LUMINANCE, images.dtype)).sum(-1, keepdims=True)
    return jnp.broadcast_to(gray, images.shape)


def codes_of(model: SeManiTrans, images: Float[Array, "b h w 3"]) -> Int[Array, "b n"]:
    """The codes of pictures in [-1, 1], in raster order."""
    return model.vqgan.codes(images).reshape(len(images), -1)


# Drawing -----------------------------------------------------------------------------------------


class Read(NamedTuple):
    """Pictures as the networks know them: their codes, and those of their luminance."""

    codes: Int[Array, "b n"]
    gray: Int[Array, "b n"]


class How(NamedTuple):
    """What of a drawing may change without another program: see `vljax.models.completion`."""

    temperature: Array
    top_k: Array
    choice: Array


@jax.jit
def read(model: SeManiTrans, images: UInt8[Array, "b s s 3"]) -> Read:
    """The codes of pictures."""
    unit = to_unit(images)
    return Read(codes_of(model, unit), codes_of(model, to_gray(unit)))


@jax.jit
def show(model: SeManiTrans, codes: Int[Array, "b n"]) -> UInt8[Array, "b s s 3"]:
    """The pictures of codes."""
    side = model.transformer.grid
    vectors = model.vqgan.vectors(codes.reshape(-1, side, side))
    return to_pixels(model.vqgan.decode(vectors))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How codes are drawn.

    Attributes:
        network: Who draws.
        passes: Of the network that fills in masked codes.
        temperature: See `vljax.models.completion`.
        top_k: Likewise.
        choice: Likewise.
    """

    network: Network
    passes: int
    temperature: float
    top_k: int
    choice: float

    def __call__(
        self,
        model: SeManiTrans,
        known: Read,
        text: Int[np.ndarray, "b t"],
        edited: Bool[np.ndarray, "b n"],
        seeds: Sequence[int],
        keeps_shape: Bool[np.ndarray, " b"],
    ) -> Int[Array, "b n"]:
        """The codes with the edited ones drawn anew.

        Args:
            model: The model.
            known: The pictures; of codes that are edited nothing is used, of gray ones all.
            text: What shall be there, from `Tokenizer.plain`.
            edited: Which codes are drawn.
            seeds: One a row; what is drawn depends on its own only.
            keeps_shape: Which rows know what was there in shades of gray.

        Raises:
            UserError: the model has no such network.
        """
        if getattr(model, self.network) is None:
            raise UserError(
                f"this run has no network {self.network!r}: train one with config.parallel "
                "(or config.ablations), or choose another"
            )
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
        how = How(jnp.float32(self.temperature), jnp.int32(self.top_k), jnp.float32(self.choice))
        passes = self.passes if self.network == "parallel" else 0
        return draw(model, known, text, edited, keys, keeps_shape, how, self.network, passes)


def make_drawing(
    config: ConfigDict,
    network: Network = "transformer",
    passes: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
) -> Drawing:
    """As told, else as the config has it."""
    samples = config.samples
    return Drawing(
        network,
        samples.passes if passes is None else passes,
        samples.temperature if temperature is None else temperature,
        samples.top_k if top_k is None else top_k,
        samples.choice,
    )


@functools.partial(jax.jit, static_argnames=("network", "passes"))
def draw(
    model: SeManiTrans,
    known: Read,
    text: Int[Array, "b t"],
    edited: Bool[Array, "b n"],
    keys: Key[Array, " b"],
    keeps_shape: Bool[Array, " b"],
    how: How,
    network: Network,
    passes: int,
) -> Int[Array, "b n"]:
    """What `Drawing` does, one program for every picture, text, mask, seed and temperature."""
    given = (getattr(model, network), text, known.codes, edited, keys)
    if network == "parallel":
        return complete_in_parallel(
            *given, passes, gray=known.gray, uses_gray=keeps_shape, **how._asdict()
        ).codes
    return complete(
        *given,
        gray=known.gray,
        uses_gray=keeps_shape,
        temperature=how.temperature,
        top_k=how.top_k,
    ).codes


# Alignment ---------------------------------------------------------------------------------------


def aligning_clip(model: SeManiTrans) -> CLIP:
    """The CLIP that tells what a word names."""
    return model.clip if model.aligner is None else model.aligner


def edited_codes(
    config: ConfigDict,
    masks: Bool[np.ndarray, "n s s"],
    grid: int,
    grown: float | None = None,
    resize: str = "",
) -> Bool[np.ndarray, "n g*g"]:
    """The codes that masks mark (section 3.2.3).

    Args:
        config: `alignment.resize` and `samples.grow`.
        masks: At the size of the pictures.
        grid: Codes a side.
        grown: Pixels by which masks are grown first, instead of `samples.grow`.
        resize: How they come to the codes, instead of `alignment.resize`.
    """
    pixels = config.samples.grow if grown is None else grown
    larger = np.stack([grow(mask, pixels) if pixels else mask for mask in masks])
    how: Any = resize or config.alignment.resize
    return mask_to_grid(larger, (grid, grid), how).reshape(len(masks), -1)


def squared(masks: Masks, side: int) -> Bool[np.ndarray, "n s s"]:
    """Masks of a photograph as its middle square, brought to `side`, has them."""
    levels = np.repeat(np.uint8(255) * masks[..., None], 3, axis=-1)
    return np.stack([resize_and_crop(level, side)[..., 0] >= 128 for level in levels])


def find_entities(config: ConfigDict) -> Entities | None:
    """What divides the benchmark's pictures into entities where nobody else does: the oracle."""
    return scene_entities if open_benchmark(config.data).oracle else None


def similarities(
    model: SeManiTrans,
    config: ConfigDict,
    tokenizer: Tokenizer,
    picture: Picture,
    masks: Masks,
    word: str,
) -> Float[np.ndarray, " n"]:
    """How similar each entity of a picture is to a word, see `vljax.models.alignment.by_tokens`."""
    fields = config.alignment
    clip = aligning_clip(model)
    return by_tokens(
        clip, tokenizer, picture, masks, word, prompt=fields.prompt, method=fields.resize
    )
