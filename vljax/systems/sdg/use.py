"""`python -m vljax.generate` for SDG: pictures for a text, a picture, a structure, a style."""

import argparse
import math
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.images import (
    contact_sheet,
    image_grid,
    read_image,
    resize_and_crop,
    write_png,
)
from vljax.errors import UserError
from vljax.systems.sdg.model import (
    ASPECTS,
    ENCODERS,
    SAMPLERS,
    SDG,
    Drawing,
    Request,
    is_guided,
    make_tokenizer,
)


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.generate` for this system."""
    parser.add_argument("--prompt", help="a text that the pictures should fit")
    for aspect, what in (
        ("image", "whose content the pictures should have"),
        ("structure_image", "whose content they should have, place by place"),
        ("style_image", "whose style they should have"),
        ("ilvr_image", "whose low frequencies they take over (ILVR, for comparison)"),
    ):
        parser.add_argument(f"--{aspect}", metavar="FILE", help=f"a picture {what}")
    for aspect in ASPECTS:
        parser.add_argument(
            f"--{aspect}_scale", type=float, help=f"strength of {aspect} guidance (config.guidance)"
        )
    parser.add_argument("--ilvr_factor", type=int, default=8, help="the larger, the freer")
    parser.add_argument(
        "--scale_schedule",
        choices=("constant", "linear", "cosine"),
        default="constant",
        help="how scales fall from noise to picture",
    )
    parser.add_argument(
        "--max_ratio",
        type=float,
        help="longest gradient, as a share of the noise's score; 0 for no limit (config.guidance)",
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="noisy_clip", help="what guides")
    parser.add_argument("--num_images", type=int, default=16, help="how many pictures")
    parser.add_argument("--batch_size", type=int, default=16, help="how many at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture's noise")
    add_sampler_flags(parser)
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM: share of DDPM's noise")


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """How to draw; `check_flags` fills in what the config says."""
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: config.samples.sampler")
    parser.add_argument(
        "--steps", help="denoising steps: 100, ddim50, trailing25 … (default: config.samples.steps)"
    )


def generate(model: SDG, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """Pictures: `samples.png`, a sheet with references and labels, and `0000.png`, `0001.png`, ….

    Every file carries its settings as PNG text.

    Raises:
        UserError: a flag cannot be.
    """
    check_flags(args, config)
    request, references = read_request(config, args)
    ilvr = None
    if args.ilvr_image:
        references["ilvr_image"] = _reference(args.ilvr_image, config)
        ilvr = (references["ilvr_image"], args.ilvr_factor)
    shown = ["sampler", "steps", "eta", "seed"]
    shown += [name for name in ("scale_schedule", "max_ratio", "encoder") if request]
    shown += [f for f in ("prompt", *references) if getattr(args, f)]
    settings = {name: str(getattr(args, name)) for name in shown}
    settings |= {f"{aspect}_scale": str(scale) for aspect, (_, scale) in request.items()}
    if ilvr:
        settings["ilvr_factor"] = str(args.ilvr_factor)
    drawing = Drawing(
        config,
        args.sampler,
        args.steps,
        eta=args.eta,
        encoder=args.encoder,
        scale_schedule=args.scale_schedule,
        max_ratio=args.max_ratio,
    )
    pictures: list[np.ndarray] = []
    for batch in drawing.batches(model, args.seed, args.num_images, args.batch_size, request, ilvr):
        for picture in batch:
            index = len(pictures)
            write_png(out / f"{index:04d}.png", picture, {**settings, "index": str(index)})
            pictures.append(picture)
    if not (request or ilvr):
        write_png(out / "samples.png", image_grid(np.stack(pictures)), settings)
        return
    rows = [(name.replace("_", " "), picture) for name, picture in references.items()]
    label = ", ".join(
        [f'"{args.prompt}"'] * bool(args.prompt)
        + [f"{aspect} scale {scale:g}" for aspect, (_, scale) in request.items()]
        + [f"ILVR N={args.ilvr_factor}"] * bool(ilvr)
    )
    columns = math.ceil(math.sqrt(len(pictures)))
    parts = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    rows += [("" if i else label, np.stack(part)) for i, part in enumerate(parts)]
    write_png(out / "samples.png", contact_sheet(rows), settings)


def read_request(
    config: ConfigDict, args: argparse.Namespace
) -> tuple[Request, dict[str, UInt8[np.ndarray, "1 s s 3"]]]:
    """What the flags of `generate` ask for, and the reference pictures by flag.

    Raises:
        UserError: a picture cannot be read, or the model has no CLIP to be guided by.
    """
    targets: dict[str, np.ndarray] = {}
    references = {}
    if args.prompt is not None:
        if is_guided(config):
            length = config.model.clip.context_length
            targets["text"] = make_tokenizer(config)([args.prompt], length)
        else:
            targets["text"] = np.empty(0)
    for aspect in ASPECTS[1:]:
        flag = aspect if aspect == "image" else f"{aspect}_image"
        if file := getattr(args, flag):
            references[flag] = targets[aspect] = _reference(file, config)
    if targets and not is_guided(config):
        raise UserError(
            "this run has no CLIP to be guided by: train with --config.guided=True, on real "
            "pictures with --config.pretrained.clip=FILE"
        )
    scales = {a: getattr(args, f"{a}_scale") for a in ASPECTS}
    if unused := [a for a in ASPECTS if scales[a] is not None and a not in targets]:
        flag = {"text": "prompt", "image": "image"}.get(unused[0], f"{unused[0]}_image")
        raise UserError(f"--{unused[0]}_scale scales nothing: give --{flag} as well")
    request = {
        a: (target, config.guidance[a] if scales[a] is None else scales[a])
        for a, target in targets.items()
    }
    return request, references


def _reference(file: str, config: ConfigDict) -> UInt8[np.ndarray, "1 s s 3"]:
    return resize_and_crop(read_image(file), config.data.image_size)[None]


def check_flags(args: argparse.Namespace, config: ConfigDict) -> None:
    """Fill in what the config says; refuse counts below 1 and flags that are not finite.

    Raises:
        UserError: there is such a flag.
    """
    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}: give 1 or more")
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: give a finite number")
    if getattr(args, "max_ratio", 0.0) is None:
        args.max_ratio = config.guidance.max_ratio
    args.sampler = args.sampler or config.samples.sampler
    args.steps = args.steps or config.samples.steps
