"""What a person asks of SeMani-Diff: change what a word names in a photograph to what a text says.

Several entities are changed one after the other, each on what the one before left; where they are
is always found in the photograph as it was.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.manipulations import Wish, read_examples
from vljax.data.pictures.entities import Masks, Picture, read_entities, scene_entities
from vljax.data.pictures.images import contact_sheet, read_image
from vljax.data.pictures.photographs import (
    covers_a_latent,
    read_mask,
    to_photo_size,
    to_working_size,
    working_size,
)
from vljax.diffusion.process import make_process
from vljax.diffusion.progress import progress_bar
from vljax.errors import UserError
from vljax.pretrained.concepts import read_concepts, with_concepts
from vljax.request import File, is_given, option
from vljax.request import Picture as Given
from vljax.systems import Result
from vljax.systems.semani_diff.method import (
    SAMPLERS,
    Alignment,
    draw,
    finish,
    make_batch,
    widen,
)
from vljax.systems.semani_diff.model import SemaniDiff, make_tokenizer


@dataclass(frozen=True)
class Request:
    """Entities of a photograph, and what shall become of them."""

    image: Given | None = option(None, help="the photograph")
    entity: tuple[str, ...] | None = option(
        None, repeat=True, metavar="WORD", help='what to change, such as "horse"; may be repeated'
    )
    text: tuple[str, ...] | None = option(
        None, repeat=True, metavar="TEXT", help="what shall be there, one for each --entity"
    )
    mask: Given | None = option(
        None, help="where, white inside, instead of finding --entity (of one entity)"
    )
    entities: File | None = option(
        None,
        help="all entities of the photograph: a folder of PNG masks, a PNG of coloured patches, or "
        "COCO's run lengths in JSON",
    )
    examples: File | None = option(
        None,
        metavar="FOLDER",
        help="instead of --image: a folder with example_filenames.txt and 'entity: text' files",
    )
    anyway: bool = option(False, help="change what fits the word best even where it does not fit")
    grow: float | None = option(
        None, low=-256, high=256, help="pixels by which the mask grows (default: config.samples)"
    )
    feather: float | None = option(
        None, low=0, high=256, help="pixels over which the seam fades (default: config.samples)"
    )
    no_paste: bool = option(
        False, help="do not paste back what is outside of the mask, as published"
    )
    concept: tuple[File, ...] = option(
        (), help="textual inversion: files of words that --text may hold"
    )
    guidance_scale: float | None = option(None, help="w (default: config.samples)")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples")
    steps: str | None = option(
        None, help="denoising steps: leading50, trailing20 … (default: config.samples)"
    )
    seed: int = option(0, seed=True, help="of the noise")


def generate(model: SemaniDiff, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`edited.png` at the photograph's size, `mask.png`, where it was drawn, and `sheet.png`.

    Of several examples, all names begin with the picture's and the line's number.

    Raises:
        UserError: a field, the photograph or a mask cannot be, or nothing fits a word.
    """
    if request.examples:
        if is_given(request.image) or request.entity or request.text:
            raise UserError(
                "--examples tells pictures, entities and texts: leave out --image, --entity, --text"
            )
        for number, (path, wishes) in enumerate(read_examples(request.examples)):
            yield from _manipulated(
                model, config, request, path, wishes, f"{path.stem}_{number:02d}_"
            )
        return
    if not is_given(request.image):
        raise UserError("--image is missing: give the photograph")
    words, texts = request.entity or (), request.text or ()
    if not texts or not (words or is_given(request.mask)):
        raise UserError(
            f"--{'text' if words else 'entity'} is missing: say what to change, and to what"
        )
    if not words:
        words = ("what is masked",) * len(texts)
    if len(words) != len(texts):
        raise UserError(
            f"{len(words)} --entity and {len(texts)} --text: give one text for each entity"
        )
    wishes = [Wish(*pair) for pair in zip(words, texts, strict=True)]
    yield from _manipulated(model, config, request, request.image, wishes, "")


def _manipulated(
    model: SemaniDiff,
    config: ConfigDict,
    request: Request,
    given: Given,
    wishes: list[Wish],
    prefix: str,
) -> Iterator[Result]:
    """The results of one photograph's wishes."""
    photo = read_image(given)
    height, width = photo.shape[:2]
    size = working_size(height, width, config.data.image_size, model.sd.multiple)
    places = find_places(model, config, request, photo, wishes, _name(given))
    scale = size[0] / height
    grown = config.samples.grow / scale if request.grow is None else request.grow
    seam = config.samples.feather / scale if request.feather is None else request.feather

    fields = config.samples
    steps = request.steps or fields.steps
    process = make_process(config, steps, clean_end=config.diffusion.clean_end)
    guidance = fields.guidance_scale if request.guidance_scale is None else request.guidance_scale
    concepts = read_concepts(*request.concept)
    sd, tokenizer = with_concepts(model.sd, make_tokenizer(config), concepts)
    told = {"seed": str(request.seed), "guidance_scale": str(guidance), "steps": steps}
    told |= {"sampler": request.sampler or fields.sampler, "pasted": str(not request.no_paste)}

    told["similarity"] = "; ".join(place.told for place in places)

    current, anywhere = photo, np.zeros(photo.shape[:2], bool)
    sheet = [("before", to_working_size(photo, anywhere, size)[0][None])]
    for wish, place in zip(wishes, places, strict=True):
        mask = widen(place.mask, grown)
        if not mask.any():
            raise UserError(f"--grow={grown:g} leaves nothing of the mask: give more")
        image, small = to_working_size(current, mask, size)
        if not covers_a_latent(small, model.sd.shrink, rule="corner"):
            raise UserError(
                f"the mask of {wish.entity!r} is so small that it covers no latent of the picture "
                f"at {size[0]}×{size[1]}: grow it with --grow, or crop the photograph"
            )
        batch = make_batch(
            tokenizer,
            sd.tokens,
            image[None],
            small[None],
            [wish.text],
            guidance_scale=guidance,
            seeds=[request.seed],
        )
        with progress_bar("drawing") as bar:
            drawn = draw(sd, process, batch, bar, sampler=told["sampler"])
        made = to_photo_size(np.asarray(drawn)[0], (height, width))
        current = made if request.no_paste else finish(current, made, mask, seam)
        anywhere = anywhere | mask
        white = np.broadcast_to(np.uint8(255) * small[..., None], image.shape)
        after = to_working_size(current, mask, size)[0]
        sheet.append((f"{wish.entity}: {wish.text}", np.stack([white, after])))

    label = ", ".join(wish.text for wish in wishes)
    told |= {"wishes": " | ".join(f"{entity}: {text}" for entity, text in wishes)}
    yield Result(f"{prefix}edited.png", current, label, told)
    shown = np.repeat(np.uint8(255) * anywhere[..., None], 3, axis=-1)
    yield Result(f"{prefix}mask.png", shown, "where it was drawn", told)
    yield Result(f"{prefix}sheet.png", contact_sheet(sheet), "before; masks and after", told)


class Place(NamedTuple):
    """Where a wish is drawn, and in words how similar to its word what is there was."""

    mask: Bool[np.ndarray, "h w"]
    told: str


def find_places(
    model: SemaniDiff,
    config: ConfigDict,
    request: Request,
    photo: Picture,
    wishes: list[Wish],
    name: str = "",
) -> list[Place]:
    """Where each wish's entity is, in the photograph as it was.

    Args:
        model: The model.
        config: `alignment`.
        request: `mask`, `entities` and `anyway`.
        photo: The photograph.
        wishes: What is looked for.
        name: The photograph's file, for lists of entities of several.

    Raises:
        UserError: nothing can tell, or nothing fits a word.
    """
    height, width = photo.shape[:2]
    if is_given(request.mask):
        if request.entities or request.anyway:
            flag = "anyway" if request.anyway else "entities"
            raise UserError(f"--{flag}: --mask tells what would be found; leave one of them out")
        if len(wishes) > 1:
            raise UserError(
                "--mask is of one entity: give one --entity, or all of them with --entities=FILE"
            )
        return [Place(read_mask(request.mask, (height, width)), f"{wishes[0].entity}: mask given")]
    align = Alignment(model, config, make_tokenizer(config))
    entities = _entities(config, request, photo, name)
    places = []
    for wish in wishes:
        found = align(photo, entities, wish.entity, anyway=request.anyway)
        best = float(np.max(found.choice.scores, initial=-np.inf))
        if not found.mask.any():
            raise UserError(
                f"--entity {wish.entity!r}: nothing in the picture fits (the most similar "
                f"{'patch' if align.by == 'patches' else f'of {len(entities)} entities'} has "
                f"{best:.2f}, and {align.threshold:g} is the least): word it otherwise, add "
                "--anyway to change that one, or give --mask=FILE"
            )
        doubt = "" if found.choice.fits else f", less than {align.threshold:g}: it does not fit"
        places.append(Place(found.mask, f"{wish.entity}: {best:.2f}{doubt}"))
    return places


def _entities(config: ConfigDict, request: Request, photo: Picture, name: str) -> Masks:
    """What a photograph is divided into; nothing where each patch is by itself."""
    if config.alignment.by == "patches":
        if request.entities:
            raise UserError(
                f"--entities={request.entities}: config.alignment.by='patches' knows no entities; "
                "leave them out, or give --config.alignment.by=crops"
            )
        return np.zeros((0, *photo.shape[:2]), bool)
    if request.entities:
        return read_entities(request.entities, (photo.shape[0], photo.shape[1]), name)
    if open_benchmark(config.data).oracle is None:
        raise UserError(
            "what the photograph is divided into is not known: give its entities with "
            "--entities=FILE, or where to draw with --mask=FILE"
        )
    if min(photo.shape[:2]) < 32:
        raise UserError("the picture is smaller than 32×32 pixels: give a larger one, or --mask")
    return scene_entities(photo)


def _name(given: Given) -> str:
    return "" if isinstance(given, np.ndarray) else Path(os.fspath(given)).name
