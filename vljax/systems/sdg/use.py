"""What a person asks of SDG: pictures for a text, a picture, a structure, a style."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.images import contact_sheet, image_grid, read_image, resize_and_crop
from vljax.diffusion.guidance import SCALE_SCHEDULES
from vljax.diffusion.samplers import SAMPLERS
from vljax.errors import UserError
from vljax.request import Picture, changed, option
from vljax.systems import Result
from vljax.systems.sdg.method import ASPECTS, ENCODERS, Drawing, Ilvr, Targets
from vljax.systems.sdg.model import SDG, is_guided, make_tokenizer


@dataclass(frozen=True)
class Request:
    """Pictures of the free model, or pulled to all that is given of text and pictures."""

    prompt: str | None = option(None, help="a text that the pictures should fit")
    image: Picture | None = option(None, help="a picture whose content the pictures should have")
    structure_image: Picture | None = option(
        None, help="a picture whose content they should have, place by place"
    )
    style_image: Picture | None = option(None, help="a picture whose style they should have")
    ilvr_image: Picture | None = option(
        None, help="a picture whose low frequencies they take over (ILVR, for comparison)"
    )
    text_scale: float | None = option(None, help="strength of text guidance (config.guidance)")
    image_scale: float | None = option(None, help="strength of image guidance (config.guidance)")
    structure_scale: float | None = option(
        None, help="strength of structure guidance (config.guidance)"
    )
    style_scale: float | None = option(None, help="strength of style guidance (config.guidance)")
    ilvr_factor: int = option(8, low=1, help="the larger, the freer")
    scale_schedule: str = option(
        "constant", choices=SCALE_SCHEDULES, help="how scales fall from noise to picture"
    )
    max_ratio: float | None = option(
        None,
        help="longest gradient, as a share of the noise's score; 0 for no limit (config.guidance)",
    )
    encoder: str = option("noisy_clip", choices=ENCODERS, help="what guides")
    num_images: int = option(16, low=1, help="how many pictures")
    batch_size: int = option(16, low=1, help="how many at a time")
    seed: int = option(0, seed=True, help="of the first picture's noise")
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples.sampler")
    steps: str | None = option(
        None, help="denoising steps: 100, ddim50, trailing25 … (default: config.samples.steps)"
    )
    eta: float = option(0.0, low=0.0, high=1.0, help="DDIM: share of DDPM's noise")


# The field that gives the target of each aspect.
_GIVEN = dict(zip(ASPECTS, ("prompt", "image", "structure_image", "style_image"), strict=True))


def generate(model: SDG, config: ConfigDict, request: Request) -> Iterator[Result]:
    """Pictures `0000.png`, `0001.png`, …; then `samples.png`, all of them with references.

    Each carries what it was made with.

    Raises:
        UserError: the request cannot be.
    """
    references = read_references(config, request)
    targets = read_targets(config, request, references)
    ilvr: Ilvr | None = None
    if request.ilvr_image is not None:
        ilvr = (references["ilvr_image"], request.ilvr_factor)
    drawing = Drawing(
        config,
        request.sampler,
        request.steps,
        eta=request.eta,
        encoder=request.encoder,
        scale_schedule=request.scale_schedule,
        max_ratio=request.max_ratio,
    )
    _check_heeded(request, drawing, targets)
    settings = _settings(request, drawing, targets, references)
    label = _label(request, targets)
    drawn = drawing.batches(
        model, request.seed, request.num_images, request.batch_size, targets, ilvr
    )
    pictures: list[np.ndarray] = []
    for batch in drawn:
        for picture in batch:
            index = len(pictures)
            pictures.append(picture)
            yield Result(f"{index:04d}.png", picture, label, {**settings, "index": str(index)})
    yield Result("samples.png", _sheet(pictures, references, label), label, settings)


def read_references(
    config: ConfigDict, request: Request
) -> dict[str, UInt8[np.ndarray, "1 s s 3"]]:
    """The pictures of a request by the names of their fields, at the model's size.

    Raises:
        UserError: one cannot be read.
    """
    fields = (*list(_GIVEN.values())[1:], "ilvr_image")
    given = {field: getattr(request, field) for field in fields}
    size = config.data.image_size
    return {
        field: resize_and_crop(read_image(picture), size)[None]
        for field, picture in given.items()
        if picture is not None
    }


def read_targets(
    config: ConfigDict, request: Request, references: dict[str, UInt8[np.ndarray, "1 s s 3"]]
) -> Targets:
    """What guides, with its scales.

    Raises:
        UserError: a scale scales nothing, or the model has no CLIP to be guided by.
    """
    asked = [aspect for aspect in ASPECTS if getattr(request, _GIVEN[aspect]) is not None]
    if asked and not is_guided(config):
        raise UserError(
            "this run has no CLIP to be guided by: train with --config.guided=True, on real "
            "pictures with --config.pretrained.clip=FILE"
        )
    targets: dict[str, tuple[np.ndarray, float]] = {}
    for aspect in ASPECTS:
        scale = getattr(request, f"{aspect}_scale")
        if aspect not in asked:
            if scale is not None:
                raise UserError(
                    f"--{aspect}_scale={scale:g}: scales nothing; give --{_GIVEN[aspect]} as well"
                )
            continue
        if aspect == "text":
            length = config.model.clip.context_length
            target = make_tokenizer(config)([request.prompt or ""], length)
        else:
            target = references[_GIVEN[aspect]]
        targets[aspect] = (target, config.guidance[aspect] if scale is None else scale)
    return targets


def _check_heeded(request: Request, drawing: Drawing, targets: Targets) -> None:
    """Refuse what says how to do that which is not done."""
    given = changed(request)
    for name in ("encoder", "scale_schedule", "max_ratio"):
        if name in given and not targets:
            raise UserError(
                f"--{name}={given[name]}: nothing guides; give --prompt or a picture that does as "
                "well, or leave it out"
            )
    if "ilvr_factor" in given and request.ilvr_image is None:
        raise UserError(
            f"--ilvr_factor={request.ilvr_factor}: no low frequencies are taken over; give "
            "--ilvr_image as well"
        )


def _settings(
    request: Request,
    drawing: Drawing,
    targets: Targets,
    references: dict[str, UInt8[np.ndarray, "1 s s 3"]],
) -> dict[str, str]:
    """What the pictures are made with, as far as it counts."""
    told = {"sampler": drawing.sampler, "steps": drawing.steps, "seed": str(request.seed)}
    if drawing.sampler == "ddim":
        told["eta"] = str(request.eta)
    if targets:
        told |= {"scale_schedule": request.scale_schedule, "max_ratio": str(drawing.max_ratio)}
        told["encoder"] = request.encoder
    if request.prompt is not None:
        told["prompt"] = request.prompt
    for field in references:
        picture = getattr(request, field)
        told[field] = "given as pixels" if isinstance(picture, np.ndarray) else str(picture)
    told |= {f"{aspect}_scale": str(scale) for aspect, (_, scale) in targets.items()}
    if request.ilvr_image is not None:
        told["ilvr_factor"] = str(request.ilvr_factor)
    return told


def _label(request: Request, targets: Targets) -> str:
    """What a person reads beside the pictures; nothing of the free model's."""
    return ", ".join(
        [f'"{request.prompt}"'] * (request.prompt is not None)
        + [f"{aspect} scale {scale:g}" for aspect, (_, scale) in targets.items()]
        + [f"ILVR N={request.ilvr_factor}"] * (request.ilvr_image is not None)
    )


def _sheet(
    pictures: list[np.ndarray], references: dict[str, UInt8[np.ndarray, "1 s s 3"]], label: str
) -> UInt8[np.ndarray, "H W 3"]:
    """A grid of the pictures; of guided ones under their references and the label."""
    if not label:
        return image_grid(np.stack(pictures))
    rows = [(field.replace("_", " "), picture) for field, picture in references.items()]
    columns = math.ceil(math.sqrt(len(pictures)))
    parts = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    rows += [("" if i else label, np.stack(part)) for i, part in enumerate(parts)]
    return contact_sheet(rows)
