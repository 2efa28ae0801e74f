"""Semantic alignment: which entity of a picture a word names, and where.

Phase one of SeMani (Wang et al., *Entity-Level Text-Guided Image Manipulation*, 2023): eq. 1, of a
picture's entities take the one that is most similar to the word. Who tells the similarity:

- `by_tokens` (section 3.2.3, SeMani-Trans): CLIP's patch tokens, as FILIP trains them, against the
  word's own pieces; an entity's similarity is the mean over its tokens.
- `by_masked_crops` (section 3.3.3, SeMani-Diff): each entity alone, cropped to its box, the rest
  filled, through a CLIP with a mask prompt (OVSeg, Liang et al. 2023).
- `word_patches` (figure 9): no entities, every token over the threshold by itself.

`choose` is eq. 1; `choose_in_line` the published code's rule for several words and several
entities. `mask_to_grid` brings masks to tokens, `grid_to_mask` tokens to pixels.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.clip_towers import PIXEL_MEAN
from vljax.ops.interpolation import interpolate
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import normalise

Picture = UInt8[np.ndarray, "h w 3"]
Masks = Bool[np.ndarray, "n h w"]
#: Texts and a length to tokens, each row padded by the end token, which is the largest.
Tokenizer = Callable[[Sequence[str], int], Int[np.ndarray, "b n"]]

FILIP_THRESHOLD = 0.163
"""The published code's least cosine of an entity to be edited; of FILIP-large's scale only."""

LEAST_TOKENS = 4
"""The published code passes over an entity of fewer tokens."""

PROMPT = "a photo of a {}."
"""What the published code of SeMani-Trans asks with."""


def _vild_templates() -> tuple[str, ...]:
    sized = [f"{size} {{}}" for size in ("small", "medium", "large")]
    plain = [*("a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene")]
    plain += ["There is the {} in the scene", "a photo of a {} in the scene"]
    for template in ("a photo of a {}.", "This is a photo of a {}.", "There is a {} in the scene."):
        plain += [template.format(one) for one in sized]
    return tuple(plain)


VILD_TEMPLATES = _vild_templates()
"""The 14 sentences over which OVSeg's demonstration averages a word's embedding."""

# Crops that go through CLIP at once: pictures have different numbers of entities, and another
# number would be another program.
_CROPS = 8


class Choice(NamedTuple):
    """What a word chose.

    Attributes:
        entities: Which entities, the most similar first; none where nothing may be edited.
        scores: The similarity of every entity.
        fits: Whether the most similar reaches the threshold.
    """

    entities: tuple[int, ...]
    scores: Float[np.ndarray, " n"]
    fits: bool


# Masks and tokens --------------------------------------------------------------------------------


def mask_to_grid(
    masks: Bool[np.ndarray, "*n h w"],
    grid: tuple[int, int],
    method: Literal["bilinear", "max"] = "bilinear",
) -> Bool[np.ndarray, "*n g g"]:
    """Which tokens of a grid belong to each mask.

    Args:
        masks: At the picture's size.
        grid: Rows and columns of tokens.
        method: `"bilinear"`, without antialias, and more than zero (the paper's choice: only the
            middle pixels of a cell decide), or `"max"`, any pixel of the cell (which dilates).

    Raises:
        UserError: the method is unknown.
    """
    if method == "bilinear":
        return interpolate(masks.astype(np.float32), grid) > 0
    if method != "max":
        raise UserError(f"mask_resize={method!r}: choose 'bilinear' or 'max'")
    for axis, cells in zip((-2, -1), grid, strict=True):
        side = masks.shape[axis]
        bounds = [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        parts = [masks.take(range(*bound), axis).any(axis, keepdims=True) for bound in bounds]
        masks = np.concatenate(parts, axis)
    return masks


def grid_to_mask(grid: Bool[np.ndarray, "g g2"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels that tokens stand for: each is its cell's, as its middle lies.

    Args:
        grid: Tokens of a picture.
        size: The picture's height and width, of which the grid need not be a divisor.
    """
    rows, columns = (
        (2 * np.arange(side) + 1) * cells // (2 * side)
        for side, cells in zip(size, grid.shape, strict=True)
    )
    return grid[rows][:, columns]


# Similarities ------------------------------------------------------------------------------------


def own_pieces(
    tokenizer: Tokenizer, word: str, length: int, prompt: str = PROMPT
) -> tuple[Int[np.ndarray, "1 n"], Bool[np.ndarray, "1 n"]]:
    """The tokens of a word's prompt, and which of them are the word's own pieces.

    Raises:
        UserError: the word is empty, or too long for the context.
    """
    before, _, after = prompt.partition("{}")
    counts = [
        int(tokenizer([text], 4 * len(text) + 8).argmax()) - 1
        for text in (before.strip(), word, after.strip())
    ]
    if not counts[1] or sum(counts) > length - 2:
        raise UserError(
            f"entity {word!r} has {counts[1]} tokens: give a word of 1 to "
            f"{length - 2 - counts[0] - counts[2]}"
        )
    place = np.arange(length)[None]
    own = (place > counts[0]) & (place <= counts[0] + counts[1])
    return tokenizer([prompt.format(word)], length), own


def inner_tokens(tokens: Int[Array, "b n"]) -> Bool[Array, "b n"]:
    """Which tokens are a text's own, after its start and before its end: what FILIP compares."""
    place = jnp.arange(tokens.shape[1])
    return (place > 0) & (place < tokens.argmax(-1)[:, None])


@jax.jit
def token_similarity(
    clip: CLIP,
    images: Float[Array, "b s s 3"],
    tokens: Int[Array, "b n"],
    own: Bool[Array, "b n"],
) -> Float[Array, "b t"]:
    """The similarity of every patch token with a word: the greatest over the word's own pieces.

    Args:
        clip: With a ViT.
        images: In [-1, 1].
        tokens: Of the word's prompt, see `own_pieces`.
        own: Which are the word's.
    """
    seen = normalise(clip.image_tokens(images))
    told = normalise(clip.text_tokens(tokens))
    cosines = jnp.einsum("btd,bnd->btn", seen, told)
    return jnp.where(own[:, None], cosines, -jnp.inf).max(-1)


def by_tokens(
    clip: CLIP,
    tokenizer: Tokenizer,
    picture: Picture,
    masks: Masks,
    word: str,
    *,
    prompt: str = PROMPT,
    method: Literal["bilinear", "max"] = "bilinear",
) -> Float[np.ndarray, " n"]:
    """The similarity of each entity with a word: the mean over its tokens; -inf where it has none.

    Args:
        clip: Whose tokens are aligned with words, as FILIP's.
        tokenizer: CLIP's.
        picture: Of any size; it is shown stretched to the tower's square.
        masks: Its entities.
        word: For what is looked for.
        prompt: With what is asked.
        method: How masks come to tokens, see `mask_to_grid`.
    """
    similarity = similarity_map(clip, tokenizer, picture, word, prompt)
    grids = mask_to_grid(masks, (similarity.shape[0], similarity.shape[1]), method)
    return np.array([similarity[grid].mean() if grid.any() else -np.inf for grid in grids])


def similarity_map(
    clip: CLIP, tokenizer: Tokenizer, picture: Picture, word: str, prompt: str = PROMPT
) -> Float[np.ndarray, "g g"]:
    """`token_similarity` of one picture of any size, as a grid."""
    tokens, own = own_pieces(tokenizer, word, clip.context_length, prompt)
    image = _square(picture, clip.visual.image_size)
    flat = np.asarray(token_similarity(clip, image[None], tokens, own))[0]
    side = int(len(flat) ** 0.5)
    return flat.reshape(side, side)


def word_patches(similarity: Float[np.ndarray, "g g"], threshold: float) -> Bool[np.ndarray, "g g"]:
    """The tokens that a word chooses one by one, without entities (figure 9)."""
    return similarity >= threshold


@jax.jit
def crop_embeddings(
    clip: CLIP, crops: Float[Array, "b s s 3"], masks: Float[Array, "b s s"]
) -> Float[Array, "b e"]:
    """What CLIP makes of masked crops, with the mask prompt where it has one; unit length."""
    prompted = getattr(clip.visual, "mask_embedding", None) is not None
    return normalise(clip.encode_image(crops, mask=masks if prompted else None))


@jax.jit
def word_embedding(clip: CLIP, tokens: Int[Array, "t n"]) -> Float[Array, " e"]:
    """The mean of a word's embeddings under several templates, unit length."""
    return normalise(normalise(clip.encode_text(tokens)).mean(0))


def by_masked_crops(
    clip: CLIP,
    tokenizer: Tokenizer,
    picture: Picture,
    masks: Masks,
    word: str,
    *,
    templates: Sequence[str] = VILD_TEMPLATES,
    others: str = "",
) -> Float[np.ndarray, " n"]:
    """The similarity of each entity with a word, every entity seen alone (OVSeg); -inf if empty.

    Args:
        clip: That knows masked crops, by a mask prompt or by its training.
        tokenizer: CLIP's.
        picture: Of any size.
        masks: Its entities.
        word: For what is looked for.
        templates: Sentences around the word, whose embeddings are averaged.
        others: A word for all else ("others" in OVSeg's demonstration), whose similarity is taken
            off: more than zero then means that the word is more probable. Empty for the cosine.
    """
    crops, small = masked_crops(picture, masks, clip.visual.image_size)
    found = []
    for first in range(0, len(crops), _CROPS):
        part = [a[first : first + _CROPS] for a in (crops, small)]
        room = [(0, _CROPS - len(part[0]))]
        padded = (np.pad(a, room + [(0, 0)] * (a.ndim - 1)) for a in part)
        found.append(np.asarray(crop_embeddings(clip, *padded))[: len(part[0])])

    def similarity(name: str) -> Float[np.ndarray, " n"]:
        texts = [template.format(name) for template in templates]
        told = word_embedding(clip, tokenizer(texts, clip.context_length))
        return np.concatenate(found) @ np.asarray(told)

    scores = similarity(word) - (similarity(others) if others else 0.0)
    return np.where(masks.any((1, 2)), scores, -np.inf)


def masked_crops(
    picture: Picture, masks: Masks, side: int
) -> tuple[Float[np.ndarray, "n s s 3"], Float[np.ndarray, "n s s"]]:
    """Each entity alone: cut to its box, CLIP's mean around it, stretched to a square.

    As OVSeg's code does: pictures by the cubic without antialias, masks by their corner pixels.

    Args:
        picture: Of any size.
        masks: Its entities; an empty one gives a crop of the mean alone.
        side: Of the squares.

    Returns:
        The crops in about [-1, 1], and their masks, 0 or 1.
    """
    mean = np.asarray(PIXEL_MEAN, np.float32) * 2 - 1
    crops = np.tile(mean, (len(masks), side, side, 1))
    small = np.zeros((len(masks), side, side), np.float32)
    unit = to_unit(picture)
    for crop, kept, mask in zip(crops, small, masks, strict=True):
        if not mask.any():
            continue
        rows, columns = (slice(*(np.flatnonzero(mask.any(a))[[0, -1]] + (0, 1))) for a in (1, 0))
        cut, inside = unit[rows, columns], mask[rows, columns]
        filled = np.where(inside[..., None], cut, mean)
        square = interpolate(np.moveaxis(filled, -1, 0), (side, side), "cubic")
        crop[...] = np.moveaxis(square, 0, -1)
        picked = [np.arange(side) * length // side for length in inside.shape]
        kept[...] = inside[picked[0]][:, picked[1]]
    return crops, small


# Choice ------------------------------------------------------------------------------------------


def choose(scores: Float[np.ndarray, " n"], threshold: float, *, anyway: bool = False) -> Choice:
    """Eq. 1: the entity of greatest similarity.

    Args:
        scores: Of every entity; -inf of what cannot be chosen.
        threshold: The least similarity of what fits.
        anyway: Whether the first is chosen even where it does not fit, as in the published code.
    """
    if not len(scores) or not np.isfinite(scores.max()):
        return Choice((), scores, False)
    best = int(scores.argmax())
    fits = bool(scores[best] >= threshold)
    return Choice((best,) * (fits or anyway), scores, fits)


def choose_in_line(
    words: Sequence[str],
    scores: Sequence[Float[np.ndarray, " n"]],
    sizes: Int[np.ndarray, " n"],
    threshold: float = FILIP_THRESHOLD,
    *,
    least: int = LEAST_TOKENS,
    anyway: bool = True,
) -> list[Choice]:
    """The published code's choice for the words of one line, in their order.

    Entities come by falling similarity. The first is always edited, whatever its score; the next
    ones where they reach the threshold and the same word is not asked for again later in the line.
    An entity of too few tokens is passed over, and so is one that an earlier word took, unless the
    new score is no lower and the words differ.

    Args:
        words: The entities' words.
        scores: For each word, of every entity.
        sizes: Tokens of every entity.
        threshold: The least similarity of the others than the first.
        least: The fewest tokens of an entity.
        anyway: Whether the first needs no threshold; else it does as well.
    """
    taken: dict[int, tuple[str, float]] = {}
    choices = []
    for place, word in enumerate(words):
        own = scores[place]
        chosen: list[int] = []
        for entity in np.argsort(-own, kind="stable"):
            score = float(own[entity])
            needs = chosen or not anyway
            if (needs and score < threshold) or (chosen and word in words[place + 1 :]):
                break
            before = taken.get(int(entity))
            if before and (before[0] == word or before[1] > score):
                continue
            if sizes[entity] < least or not np.isfinite(score):
                continue
            taken[int(entity)] = (word, score)
            chosen.append(int(entity))
        fits = bool(chosen) and float(own[chosen[0]]) >= threshold
        choices.append(Choice(tuple(chosen), own, fits))
    return choices


def _square(picture: Picture, side: int) -> Float[np.ndarray, "s s 3"]:
    """A picture in [-1, 1] stretched to a square on the host, so that no size is a new program."""
    if picture.shape[:2] == (side, side):
        return to_unit(picture)
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    return to_unit(np.asarray(image))
