"""What a person asks of SeMani-Trans: entities of a picture changed by texts."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.entities import Masks, feather, grow, paste, read_entities
from vljax.data.pictures.images import contact_sheet, read_image, resize_and_crop
from vljax.data.pictures.photographs import read_mask
from vljax.diffusion.progress import in_steps
from vljax.errors import UserError
from vljax.models.alignment import (
    Choice,
    choose_in_line,
    grid_to_mask,
    mask_to_grid,
    similarity_map,
    word_patches,
)
from vljax.ops.parts import equal_parts
from vljax.request import File, Picture, is_given, option
from vljax.systems import Result
from vljax.systems.semani_trans.method import (
    Drawing,
    Network,
    Read,
    aligning_clip,
    edited_codes,
    find_entities,
    make_drawing,
    read,
    show,
    similarities,
    squared,
)
from vljax.systems.semani_trans.model import SeManiTrans, make_tokenizer

DECODING: dict[str, Network] = {"raster": "transformer", "parallel": "parallel"}


@dataclass(frozen=True)
class Request:
    """A manipulation: words for entities of a picture, and what shall be there.

    The mask that is found is written as well: corrected by hand it can be given with `--mask`.
    """

    image: Picture | None = option(None, help="the picture; its middle square is used")
    entity: tuple[str, ...] = option(
        (), repeat=True, help='the word for an entity, such as "horse"; repeat for more'
    )
    text: tuple[str, ...] = option(
        (), repeat=True, help='what shall be there, such as "a brown horse"; one for each --entity'
    )
    mask: Picture | None = option(None, help="the entity in white, instead of finding it")
    entities: File | None = option(
        None, help="the picture's entities: COCO run lengths, a PNG of patches, a folder of PNGs"
    )
    alignment: str = option(
        "entities",
        choices=("entities", "patches"),
        help="whole entities, or each patch that is similar to the word (figure 9)",
    )
    threshold: float | None = option(
        None, help="least similarity of what a word names (config.alignment)"
    )
    anyway: bool = option(
        False, help="edit the most similar entity or patch even if it does not fit"
    )
    grow: float | None = option(
        None, help="pixels of the square to add around the mask (config.samples)"
    )
    keep_shape: bool = option(False, help="keep the entity's shape: guide by its gray picture")
    decoding: str = option(
        "raster",
        choices=tuple(DECODING),
        help="code by code as published, or all codes in a few passes",
    )
    passes: int | None = option(None, low=1, help="of --decoding parallel (config.samples)")
    temperature: float | None = option(None, low=0.0, help="of drawing codes (config.samples)")
    top_k: int | None = option(None, low=0, high=65536, help="draw among so many codes, 0 for all")
    samples: int = option(1, low=1, high=64, help="how many pictures to draw")
    seed: int = option(0, seed=True, help="of the first picture")
    paste: bool = option(
        False, help="lay what is drawn over the picture itself, all else as it was"
    )
    feather: float = option(
        2.0, low=0.0, help="of --paste: pixels of the square over which it fades"
    )


class Wish(NamedTuple):
    """Something to draw: what shall be there, where, and what is told of it."""

    text: str
    mask: Bool[np.ndarray, "s s"]
    edited: Bool[np.ndarray, " n"]
    told: str


def generate(model: SeManiTrans, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`mask.png`, `edited.png` (of several samples `edited_0.png`, …) and `sheet.png`.

    Several entities are changed one after the other; each goes on from the codes before.

    Raises:
        UserError: the request cannot be, or no entity fits a word.
    """
    if not is_given(request.image):
        raise UserError("--image is missing: give the picture to change")
    _check(request)
    photo = read_image(request.image)
    side = config.data.image_size
    square = resize_and_crop(photo, side)
    wishes = _wishes(model, config, request, photo, square)

    # Drawing.
    drawing = make_drawing(
        config,
        DECODING[request.decoding],
        request.passes,
        request.temperature,
        request.top_k,
    )
    pictures = draw_wishes(model, config, request, drawing, square, wishes)
    region = np.any([wish.mask for wish in wishes], axis=0)
    if request.paste:
        weight = feather(region, request.feather)
        pictures = np.stack([paste(square, picture, weight) for picture in pictures])

    # What comes back.
    told = "; ".join(wish.told for wish in wishes)
    settings = {
        "text": " | ".join(request.text),
        "entity": " | ".join(request.entity),
        "decoding": request.decoding,
        "keep_shape": str(request.keep_shape),
        "temperature": f"{drawing.temperature:g}",
        "top_k": str(drawing.top_k),
        "paste": str(request.paste),
    }
    mask = np.broadcast_to(np.uint8(255) * region[..., None], square.shape)
    yield Result("mask.png", np.ascontiguousarray(mask), told, settings)
    for i, picture in enumerate(pictures):
        name = "edited.png" if request.samples == 1 else f"edited_{i}.png"
        own = {**settings, "seed": str(request.seed + i)}
        yield Result(name, picture, " | ".join(request.text), own)
    sheet = contact_sheet([(f"before, mask, after: {told}", np.stack([square, mask, *pictures]))])
    yield Result("sheet.png", sheet, told, settings)


def _check(request: Request) -> None:
    """Refuse words without texts, masks for several texts, and the like."""
    if not request.text or any(not text.strip() for text in request.text):
        raise UserError('--text is missing: say what shall be there, such as "a brown horse"')
    if is_given(request.mask):
        finding = {
            "entities": bool(request.entities),
            "alignment=patches": request.alignment == "patches",
            "threshold": request.threshold is not None,
            "anyway": request.anyway,
        }
        if flag := next((name for name, given in finding.items() if given), None):
            raise UserError(f"--{flag}: --mask tells what would be found; leave one of them out")
        if len(request.text) > 1 or len(request.entity) > 1:
            raise UserError(
                f"--mask is of one entity, but there are {len(request.text)} texts: ask for one "
                "after the other"
            )
        return
    if request.entities and request.alignment == "patches":
        raise UserError(
            f"--entities={request.entities}: --alignment=patches knows no entities; leave one of "
            "them out"
        )
    if not request.entity or any(not word.strip() for word in request.entity):
        raise UserError('--entity is missing: name what to change, such as "horse", or give --mask')
    if len(request.entity) != len(request.text):
        raise UserError(
            f"{len(request.entity)} --entity and {len(request.text)} --text: give one text for "
            "each entity, in the same order"
        )


# Where -------------------------------------------------------------------------------------------


def _wishes(
    model: SeManiTrans,
    config: ConfigDict,
    request: Request,
    photo: UInt8[np.ndarray, "h w 3"],
    square: UInt8[np.ndarray, "s s 3"],
) -> list[Wish]:
    """Each text with the mask it goes to.

    Raises:
        UserError: no entity fits a word, or a mask marks no code.
    """
    grid = model.transformer.grid
    if is_given(request.mask):
        mask = squared(read_mask(request.mask, photo.shape[:2])[None], config.data.image_size)[0]
        return [_wish(config, request, request.text[0], mask, grid, "the mask given")]
    if request.alignment == "patches":
        return _by_patches(model, config, request, square)
    masks = _entities(config, request, photo, square)
    tokenizer = make_tokenizer(config)
    scores = [
        similarities(model, config, tokenizer, square, masks, word) for word in request.entity
    ]
    sizes = mask_to_grid(masks, (grid, grid), config.alignment.resize).sum((1, 2))
    threshold = _threshold(config, request)
    choices = choose_in_line(
        request.entity,
        scores,
        sizes,
        threshold,
        least=config.alignment.least,
        anyway=request.anyway,
    )
    found = []
    for place, (word, text) in enumerate(zip(request.entity, request.text, strict=True)):
        choice = choices[place]
        if not choice.entities:
            needed = -np.inf if request.anyway else threshold
            why = _why_none(config, choices[:place], choice.scores, sizes, needed)
            raise UserError(f"--entity={word!r}: {why}")
        mask = np.any(masks[list(choice.entities)], axis=0)
        told = _told(word, float(choice.scores[choice.entities[0]]), choice.fits)
        found.append(_wish(config, request, text, mask, grid, told))
    return found


def _told(word: str, similarity: float, fits: bool) -> str:
    return f"{word} (similarity {similarity:.3f}{'' if fits else ', does not fit'})"


def _why_none(
    config: ConfigDict,
    before: Sequence[Choice],
    scores: Float[np.ndarray, " n"],
    sizes: Int[np.ndarray, " n"],
    threshold: float,
) -> str:
    """Why a word chose nothing, and what helps, by the entity that is most similar to it."""
    best = float(np.max(scores, initial=-np.inf))
    if not np.isfinite(best):
        return f"none of the {len(scores)} entities is large enough for CLIP: give --mask"
    if best < threshold:
        return (
            f"none of the {len(scores)} entities fits (the most similar has {best:.3f}, needed is "
            f"{threshold:g}): word it otherwise, give --mask, or --anyway to edit the most similar "
            "one"
        )
    most = int(scores.argmax())
    if any(most in earlier.entities for earlier in before):
        return (
            f"the most similar entity ({best:.3f}) is an earlier --entity's: change one after the "
            "other, each in the picture that the last one left, or give --mask"
        )
    return (
        f"the most similar entity ({best:.3f}) has {sizes[most]} codes, fewer than "
        f"config.alignment.least={config.alignment.least}: lower that, or give --mask, with --grow "
        "to make it larger"
    )


def _by_patches(
    model: SeManiTrans,
    config: ConfigDict,
    request: Request,
    square: UInt8[np.ndarray, "s s 3"],
) -> list[Wish]:
    """Without entities: every patch that reaches the threshold (figure 9)."""
    tokenizer, grid, found = make_tokenizer(config), model.transformer.grid, []
    for word, text in zip(request.entity, request.text, strict=True):
        similarity = similarity_map(
            aligning_clip(model), tokenizer, square, word, config.alignment.prompt
        )
        best, threshold = float(similarity.max()), _threshold(config, request)
        if best < threshold and not request.anyway:
            raise UserError(
                f"--entity={word!r}: no patch fits (the most similar has {best:.3f}, needed is "
                f"{threshold:g}): word it otherwise, lower --threshold, or give --anyway to edit "
                "the most similar one"
            )
        patches = word_patches(similarity, min(best, threshold))
        mask = grid_to_mask(patches, (config.data.image_size,) * 2)
        told = _told(word, best, best >= threshold)
        found.append(_wish(config, request, text, mask, grid, told))
    return found


def _threshold(config: ConfigDict, request: Request) -> float:
    return config.alignment.threshold if request.threshold is None else request.threshold


def _entities(
    config: ConfigDict,
    request: Request,
    photo: UInt8[np.ndarray, "h w 3"],
    square: UInt8[np.ndarray, "s s 3"],
) -> Masks:
    """The masks of the square's entities, from the file given or as the oracle finds them."""
    if request.entities:
        image = request.image
        name = "" if isinstance(image, np.ndarray) else Path(os.fspath(image or "")).name
        height, width = photo.shape[:2]
        masks = read_entities(request.entities, (height, width), name)
        masks = squared(masks, config.data.image_size)
        if not masks.any():
            raise UserError(
                f"--entities={request.entities} marks nothing in the picture's middle square: "
                "crop the picture around them"
            )
        return masks[masks.any((1, 2))]
    divide = find_entities(config)
    if divide is None:
        raise UserError(
            "nothing divides this picture into entities: give --entities=FILE, or --mask=FILE, or "
            "--alignment=patches"
        )
    return divide(square)


def _wish(
    config: ConfigDict,
    request: Request,
    text: str,
    mask: Bool[np.ndarray, "s s"],
    grid: int,
    told: str,
) -> Wish:
    edited = edited_codes(config, mask[None], grid, request.grow)[0]
    if not edited.any():
        raise UserError(
            f"{told}: it is so small that it marks none of the {grid}×{grid} codes: give --grow, "
            "or crop the picture around it"
        )
    pixels = config.samples.grow if request.grow is None else request.grow
    return Wish(text, grow(mask, pixels), edited, told)


# What --------------------------------------------------------------------------------------------


# Pictures drawn at a time, so that memory does not grow with how many are asked for.
_TOGETHER = 8


def draw_wishes(
    model: SeManiTrans,
    config: ConfigDict,
    request: Request,
    drawing: Drawing,
    square: UInt8[np.ndarray, "s s 3"],
    wishes: Sequence[Wish],
) -> UInt8[np.ndarray, "n s s 3"]:
    """The pictures after all wishes, one for each sample."""
    tokenizer, count = make_tokenizer(config), request.samples
    length = config.model.transformer.text_length
    parts = equal_parts(count, _TOGETHER)
    size = len(parts[0])
    before = Read(
        *(jnp.asarray(np.repeat(np.asarray(one), size, 0)) for one in read(model, square[None]))
    )
    told = [
        (np.repeat(tokenizer.plain([wish.text], length), size, 0), np.tile(wish.edited, (size, 1)))
        for wish in wishes
    ]
    keeps = np.full(size, request.keep_shape)
    made, known = [], before
    turns = [(part, place) for part in parts for place in range(len(told))]
    for part, place in in_steps("drawing", turns):
        seeds = [request.seed + i for i in part.tolist()]
        known = known if place else before
        codes = drawing(model, known, *told[place], seeds, keeps)
        known = known._replace(codes=jax.block_until_ready(codes))
        if place == len(told) - 1:
            made.append(np.asarray(show(model, known.codes)))
    return np.concatenate(made)[:count]
