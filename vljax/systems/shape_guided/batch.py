"""A batch of edits as the methods take it, and how one is made of pictures, shapes and words.

All of a `Batch` is traced: another prompt, mask, picture, seed or guidance scale compiles nothing.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.noise import start_noise
from vljax.errors import UserError
from vljax.models.stable_diffusion import StableDiffusion
from vljax.ops.inside_outside import join_prompts, resize_nearest
from vljax.systems.shape_guided.prompt_to_prompt import TokenMap, token_map

GUIDANCE_SCALE = 3.5
"""w_g of algorithm 4 (published code)."""

PUBLISHED_SCALE = 2.5
"""The published code's factor on the attention to new tokens."""

Keep = Literal["outside", "inside", "nothing"]
"""Which side of a shape stays as it is."""


class Batch(NamedTuple):
    """A batch of edits; all of it is traced.

    Attributes:
        image: The pictures at the working size.
        shape: 1 inside the object.
        keep: 1 where the picture stays ("copy background").
        source: Tokens of what is there: of the object, and for methods that know both sides of a
            shape (s = 2) of what is around it.
        edit: Tokens of what shall be there, likewise.
        empty: Tokens of the empty prompt.
        source_scale: Factor on the attention to each token in the inversion.
        edit_scale: The same in the generation.
        guidance_scale: w_g.
        noise_mixing: Share of fresh noise inside the shape.
        shape_until: The share of the steps in which the shape guides.
        seeds: One per picture.
        mapping: For Prompt-to-Prompt, how the tokens of the prompts correspond.
    """

    image: UInt8[Array, "b H W 3"]
    shape: Float[Array, "b H W"]
    keep: Float[Array, "b H W"]
    source: Int[Array, "b s n"]
    edit: Int[Array, "b s n"]
    empty: Int[Array, "1 n"]
    source_scale: Float[Array, "b n"]
    edit_scale: Float[Array, "b n"]
    guidance_scale: Float[Array, ""]
    noise_mixing: Float[Array, ""]
    shape_until: Float[Array, ""]
    seeds: Int[Array, " b"]
    mapping: TokenMap

    def noise(self, like: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Standard normal noise in the shape of latents; a picture's depends on its seed alone."""
        return start_noise(jax.vmap(jax.random.key)(self.seeds), like.shape[1:])


def at_latents(
    mask: Float[Array, "b H W"], latents: Float[Array, "b h w c"]
) -> Float[Array, "b h w"]:
    """A mask at the latents' resolution, by the pixel in the middle of each cell."""
    return resize_nearest(mask, (latents.shape[1], latents.shape[2]), rule="centre")


def token_split(tokens: int) -> tuple[int, int]:
    """How many tokens describe inside and outside: half each of all but the first (section 5.5)."""
    return (tokens - 1) // 2, (tokens - 1) // 2


def embed(
    sd: StableDiffusion, prompts: Int[Array, "b s n"], empty: Float[Array, "1 n d"]
) -> Float[Array, "b n d"]:
    """What the U-Net reads: one prompt, or those of both sides in halves of one context."""
    sides = [sd.embed(prompts[:, side]) for side in range(prompts.shape[1])]
    if len(sides) == 1:
        return sides[0]
    inside, outside = sides
    return join_prompts(inside, outside, empty, split=token_split(sd.tokens))


# From words ------------------------------------------------------------------------------------


class Wish(NamedTuple):
    """One edit as a person words it: the prompts of both sides before and after."""

    source: str
    edit: str
    source_outside: str = "background"
    edit_outside: str = "background"

    def side_that_stays(self) -> Keep:
        """The one whose prompt does not change, the surroundings before the object."""
        if self.source_outside == self.edit_outside:
            return "outside"
        return "inside" if self.source == self.edit else "nothing"


# By which flags `generate` asks for the fields of a wish.
_FLAGS = {
    "source": "--source_prompt",
    "edit": "--edit_prompt",
    "source_outside": "--source_background",
    "edit_outside": "--edit_background",
}


def one_sided(
    wish: Wish, shape: Bool[np.ndarray, "H W"], keep: Keep
) -> tuple[Wish, Bool[np.ndarray, "H W"], Keep]:
    """An edit as methods need it that know one prompt: what changes is the inside.

    An edit of the surroundings is turned inside out.

    Raises:
        UserError: both sides change.
    """
    outside_changes = wish.source_outside != wish.edit_outside
    if wish.source != wish.edit and outside_changes:
        raise UserError(
            "--edit_prompt and --edit_background: this method knows the prompt of one side only: "
            "change one of them, or use --method shape_guided"
        )
    if keep != "inside" and not outside_changes:
        return wish, shape, keep
    turned = Wish(wish.source_outside, wish.edit_outside, wish.source, wish.edit)
    turned_keep: dict[Keep, Keep] = {"inside": "outside", "outside": "inside", "nothing": "nothing"}
    return turned, ~shape, turned_keep[keep]


def make_batch(
    tokenizer: Tokenizer,
    length: int,
    image: UInt8[np.ndarray, "b H W 3"],
    shape: Bool[np.ndarray, "b H W"],
    wishes: Sequence[Wish],
    *,
    sides: int = 2,
    keep: Keep = "outside",
    token_scale: float = 1.0,
    guidance_scale: float = GUIDANCE_SCALE,
    noise_mixing: float = 0.0,
    shape_until: float = 1.0,
    seeds: Sequence[int] | None = None,
    reweight: Mapping[str, float] | None = None,
) -> Batch:
    """A batch from pictures, shapes and words.

    Args:
        tokenizer: The model's.
        length: Length of the context.
        image: The pictures at the working size.
        shape: Their shapes, of the same size.
        wishes: What to change.
        sides: Of how many sides of the shape the method knows the prompt: 2, or 1 (`one_sided`).
        keep: Which side of the shape stays as it is.
        token_scale: The published code's factor on new tokens; 1 follows the paper.
        guidance_scale: w_g.
        noise_mixing: Share of fresh noise inside the shape (published code).
        shape_until: The share of the steps, from the first on, in which the shape guides our
            method (figure 5.7).
        seeds: One per picture; 0, 1, … by default.
        reweight: For Prompt-to-Prompt, factors on the attention to words of the edit prompts.

    Raises:
        UserError: a prompt has more tokens than one side of the shape has room for, a word to
            reweight is not in its prompt, a seed does not fit 32 bits, or both sides change where
            the method knows one.
    """
    seeds = range(len(wishes)) if seeds is None else seeds
    if bad := [seed for seed in seeds if not -(2**31) <= seed < 2**31]:
        raise UserError(f"seed={bad[0]} does not fit 32 bits: give 0 to {2**31 - 1}")
    asked = [(wish, one, keep) for wish, one in zip(wishes, shape, strict=True)]
    if sides == 1:
        asked = [one_sided(*one) for one in asked]
    wishes, inside = [one[0] for one in asked], np.stack([one[1] for one in asked])
    texts = {
        side: tokenize_side(tokenizer, [getattr(wish, side) for wish in wishes], length, side)
        for side in Wish._fields
    }
    source, edit = (
        np.stack([texts[name], texts[f"{name}_outside"]], axis=1) for name in ("source", "edit")
    )
    scales = [
        published_scale(*pair, tokenizer.end, token_scale)
        for pair in zip(source, edit, strict=True)
    ]
    maps = [token_map(tokenizer, wish.source, wish.edit, length, reweight) for wish in wishes]
    kept = np.stack([_stays(one, side) for _, one, side in asked])
    return Batch(
        image=jnp.asarray(image),
        shape=jnp.asarray(inside, jnp.float32),
        keep=jnp.asarray(kept, jnp.float32),
        source=jnp.asarray(source[:, :sides]),
        edit=jnp.asarray(edit[:, :sides]),
        empty=jnp.asarray(tokenizer([""], length)),
        source_scale=jnp.full((len(wishes), length), token_scale, jnp.float32),
        edit_scale=jnp.asarray(np.stack(scales)),
        guidance_scale=jnp.float32(guidance_scale),
        noise_mixing=jnp.float32(noise_mixing),
        shape_until=jnp.float32(shape_until),
        seeds=jnp.asarray(seeds, jnp.int32),
        mapping=TokenMap(*(jnp.asarray(np.stack(parts)) for parts in zip(*maps, strict=True))),
    )


def _stays(inside: Bool[np.ndarray, "H W"], keep: Keep) -> Bool[np.ndarray, "H W"]:
    return {"outside": ~inside, "inside": inside, "nothing": np.zeros_like(inside)}[keep]


def tokenize_side(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, name: str
) -> Int[np.ndarray, "b n"]:
    """Tokens of prompts that describe one side of a shape.

    Raises:
        UserError: one is too long for its half of the context.
    """
    room = token_split(length)[0]
    for text in texts:
        if (count := tokenizer.count(text)) > room:
            shown = text if len(text) <= 60 else f"{text[:59]}…"
            raise UserError(
                f"{_FLAGS[name]} {shown!r} has {count} tokens, but a side of the shape takes "
                f"{room}: shorten it"
            )
    return tokenizer(texts, length)


def published_scale(
    source: Int[np.ndarray, "2 n"],
    edit: Int[np.ndarray, "2 n"],
    end_token: int,
    scale: float = PUBLISHED_SCALE,
) -> Float[np.ndarray, " n"]:
    """The published code's factors on the attention to each token during generation.

    Tokens of the edit prompt that stand in the source prompt as well keep 1, those that are new,
    and whatever follows the end of a changed prompt, get `scale`. As in the published code the
    last place of each side always counts as new.

    Args:
        source: Tokens of the two source prompts, for inside and outside, each with its start, its
            end and what pads it.
        edit: Tokens of the two edit prompts.
        end_token: What ends a text; learnt words have larger indices.
        scale: The factor on new tokens.
    """
    tokens = len(edit[0])
    split = token_split(tokens)
    factors = np.full(tokens, scale, np.float32)
    for before, after, count, offset in zip(source, edit, split, (0, split[0]), strict=True):
        old, new = list(map(int, before)), list(map(int, after))
        end = new.index(end_token)
        for kind, _, _, first, last in difflib.SequenceMatcher(None, old, new).get_opcodes():
            if kind == "equal" and first < end:
                shared = np.arange(max(first, 1), min(last, count))
                factors[offset + shared] = 1.0
    return factors
