"""`python -m vljax.generate` for Shape-Guided Diffusion: edit a photograph by a mask and words."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from vljax import pretrained
from vljax.data.pictures.images import contact_sheet, read_image, write_png
from vljax.data.text.tokenizers import Tokenizer, open_tokenizer
from vljax.diffusion.progress import progress_bar
from vljax.diffusion.shape_guided import token_split
from vljax.errors import UserError
from vljax.metrics.shape import Segmenter
from vljax.models.clip import CLIP, PUBLISHED
from vljax.models.clipseg import CLIPSeg, infer_shape
from vljax.models.folders import clipseg_arguments
from vljax.ops.inside_outside import Schedule as StrengthSchedule
from vljax.systems.shape_guided.model import (
    METHODS,
    OURS,
    Keep,
    Settings,
    ShapeGuided,
    Wish,
    attention_maps,
    default_scale,
    edit,
    invert,
    make_process,
    make_request,
    make_tokenizer,
    one_sided,
)
from vljax.systems.shape_guided.model import (
    generate as generate_pictures,
)

# Whose text tower Stable Diffusion 1 reads.
_CLIP = "ViT-L/14"

# Flags that not every method heeds: their default, and the methods that do.
_ONLY_FOR: dict[str, tuple[Any, tuple[str, ...]]] = {
    "guidance_scale": (None, tuple(method for method in METHODS if method != "blended")),
    "token_scale": (1.0, ("shape_guided",)),
    "self_schedule": ("constant", ("shape_guided",)),
    "noise_mixing": (0.0, OURS),
    "shape_until": (1.0, OURS),
    "published_levels": (False, OURS),
    "attention_maps": (False, OURS),
    "reweight": (None, ("prompt_to_prompt",)),
    "clip": (None, ("blended",)),
}

# A picture is at most so many times longer than wide while it is edited.
_MOST_ASPECT = 4


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m vljax.generate` for this system."""
    parser.add_argument("--image", metavar="FILE", help="the photograph to edit")
    parser.add_argument(
        "--mask",
        metavar="FILE",
        help="the object's shape: white inside; left out, it is inferred from --source_prompt",
    )
    parser.add_argument("--source_prompt", help='what is inside the shape, such as "dog"')
    parser.add_argument("--edit_prompt", help="what shall be there (default: --source_prompt)")
    parser.add_argument("--source_background", default="background", help="what is outside of it")
    parser.add_argument("--edit_background", help="what shall be (default: --source_background)")
    parser.add_argument(
        "--keep",
        choices=("outside", "inside", "nothing"),
        help="which side of the shape stays (default: the one whose prompt does not change)",
    )
    parser.add_argument("--invert_mask", action="store_true", help="black is inside")
    parser.add_argument("--method", choices=METHODS, default="shape_guided")
    parser.add_argument("--guidance_scale", type=float, help="w_g (default: config.samples)")
    parser.add_argument("--steps", help="of inversion and generation (default: config.samples)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, where there is any")
    parser.add_argument(
        "--token_scale",
        type=float,
        default=1.0,
        help="factor on new tokens: 1 as in the paper, 2.5 in the published code",
    )
    parser.add_argument(
        "--self_schedule",
        choices=get_args(StrengthSchedule),
        default="constant",
        help="how the constraint on self-attention fades",
    )
    parser.add_argument(
        "--noise_mixing", type=float, default=0.0, help="fresh noise inside, 0 to 1"
    )
    parser.add_argument(
        "--shape_until",
        type=float,
        default=1.0,
        help="share of the steps in which the shape guides, 0 to 1 (figure 5.7: 0.5)",
    )
    parser.add_argument(
        "--published_levels", action="store_true", help="copy the levels that the code copies"
    )
    parser.add_argument(
        "--reweight",
        nargs="+",
        metavar="WORD=FACTOR",
        help="Prompt-to-Prompt: attend so much more to words of --edit_prompt",
    )
    parser.add_argument("--segmenter", metavar="FOLDER", help="a CLIPSeg that infers the shape")
    add_clip_flag(parser)
    parser.add_argument("--attention_maps", action="store_true", help="draw where tokens attend")


def add_clip_flag(parser: argparse.ArgumentParser) -> None:
    """`--clip`, whose image tower Stable Diffusion's folder does not hold."""
    parser.add_argument(
        "--clip",
        metavar="FOLDER",
        help=f"a CLIP {_CLIP}, for Blended Diffusion and where pictures are judged",
    )


def generate(model: ShapeGuided, config: ConfigDict, args: argparse.Namespace, out: Path) -> None:
    """`edited.png` at the photograph's size, `sheet.png`, and `attention.png` where asked for.

    Raises:
        UserError: a flag, the photograph or the mask cannot be.
    """
    for flag in ("image", "source_prompt"):
        if not getattr(args, flag):
            raise UserError(f"--{flag} is missing: give the photograph and what is in the shape")
    for flag in ("noise_mixing", "shape_until"):
        if not 0 <= (share := getattr(args, flag)) <= 1:
            raise UserError(f"--{flag}={share}: give a share from 0 to 1")
    for flag, (default, methods) in _ONLY_FOR.items():
        if getattr(args, flag) != default and args.method not in methods:
            raise UserError(
                f"--{flag} does nothing with --method {args.method}: leave it out, or choose "
                f"{' or '.join(methods)}"
            )
    if args.invert_mask and not args.mask:
        raise UserError("--invert_mask turns a mask around: give one with --mask=FILE")
    attention, ours = args.method == "shape_guided", args.method in OURS
    wish = Wish(
        args.source_prompt,
        args.source_prompt if args.edit_prompt is None else args.edit_prompt,
        args.source_background,
        args.source_background if args.edit_background is None else args.edit_background,
    )
    photo = read_image(args.image)
    if args.mask:
        shape = read_mask(args.mask, (photo.shape[0], photo.shape[1]), invert=args.invert_mask)
    else:
        shape = _inferred(photo, find_segmenter(model, config, args.segmenter), wish.source)
    size = working_size(photo.shape[0], photo.shape[1], config.data.image_size, model.sd.multiple)
    image, small = to_working_size(photo, shape, size)
    if not small[_centres(size[0], model.sd.shrink)][:, _centres(size[1], model.sd.shrink)].any():
        raise UserError(
            f"the shape is so small that it covers no latent of the picture at {size[0]}×"
            f"{size[1]}: crop the photograph around the object"
        )
    keep = args.keep or _side_that_stays(wish)
    asked = (wish, small, keep) if attention else one_sided(wish, small, keep)
    if args.attention_maps and not asked[0].edit and not (attention and wish.edit_outside):
        raise UserError("--attention_maps are of the words of --edit_prompt: give some")
    tokenizer = make_tokenizer(config)
    scale = args.guidance_scale
    if scale is None:
        scale = default_scale(config, args.method)
    request = make_request(
        tokenizer,
        model.sd.tokens,
        image[None],
        asked[1][None],
        [asked[0]],
        keep=asked[2],
        token_scale=args.token_scale,
        guidance_scale=scale,
        noise_mixing=args.noise_mixing,
        shape_until=args.shape_until,
        seeds=[args.seed],
        reweight=_factors(args.reweight or ()),
    )
    settings = Settings(
        args.steps or config.samples.steps, args.self_schedule, args.published_levels
    )
    latents = None
    if ours:
        inverted = invert(model, config, request, settings, attention=attention)
        with progress_bar("generation") as bar:
            pictures, latents = generate_pictures(
                model, config, request, settings, inverted, attention=attention, progress=bar
            )
        edited = np.asarray(pictures)[0]
    else:
        clip = find_clip(model, args.clip)
        edited = edit(model, config, args.method, request, settings, clip=clip)[0]

    told = {"edit_prompt": wish.edit, "edit_background": wish.edit_outside, "keep": keep}
    told |= {"method": args.method, "seed": str(args.seed), "guidance_scale": str(scale)}
    # Where the shape guided for a while only, what lies beyond it may have changed as well.
    stays = keep if args.shape_until == 1 else "nothing"
    write_png(out / "edited.png", to_photo_size(photo, shape, edited, stays), told)
    mask = np.broadcast_to(np.uint8(255) * small[..., None], image.shape)
    sheet = contact_sheet([("before, shape, after", np.stack([image, mask, edited]))])
    write_png(out / "sheet.png", sheet, told)
    if args.attention_maps:
        process = make_process(config, settings.steps)
        maps = attention_maps(
            model.sd,
            process,
            request,
            latents,
            attention=attention,
            self_schedule=settings.self_schedule,
        )
        rows = _map_rows(tokenizer, request.tokens, np.asarray(maps)[0], size, both=attention)
        write_png(out / "attention.png", contact_sheet(rows, min_side=96), told)


def _factors(words: Sequence[str]) -> dict[str, float]:
    factors = {}
    for asked in words:
        word, _, factor = asked.rpartition("=")
        try:
            factors[word] = float(factor)
        except ValueError:
            word = ""
        if not word or not np.isfinite(factors[word]):
            raise UserError(f"--reweight {asked}: give a word and a number, such as shirt=2")
    return factors


def _side_that_stays(wish: Wish) -> Keep:
    if wish.source_outside == wish.edit_outside:
        return "outside"
    return "inside" if wish.source == wish.edit else "nothing"


def read_mask(
    path: str | Path, size: tuple[int, int], *, invert: bool = False
) -> Bool[np.ndarray, "h w"]:
    """The shape in a picture file: white is inside, and what is transparent is outside.

    A mask of another size than its photograph, but of its proportions, is resized to it by picking
    pixels; greys count as inside from the middle on.

    Args:
        path: A PNG, JPEG or WebP file.
        size: The photograph's height and width.
        invert: Whether black is inside instead; transparent stays outside.

    Raises:
        UserError: it cannot be read, has other proportions, or marks nothing.
    """
    path = Path(path)
    read_image(path)  # the same formats and the same complaints as for photographs
    with Image.open(path) as file:
        whole = ImageOps.exif_transpose(file)
        alpha = np.asarray(whole.convert("RGBA"))[..., 3] >= 128
    grey = read_image(path).mean(-1) >= 127.5
    mask = (grey != invert) & alpha
    height, width = size
    if abs(mask.shape[0] * width - mask.shape[1] * height) > max(height, width, *mask.shape):
        raise UserError(
            f"{path} is {mask.shape[1]}×{mask.shape[0]} and the photograph, as it is shown, "
            f"{width}×{height}: give a mask of the same proportions"
        )
    mask = _resize_mask(mask, size)
    if not mask.any():
        raise UserError(
            f"{path} marks nothing: paint the object white, or use --invert_mask if it is black"
        )
    return mask


def _resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, bool)


def _centres(side: int, shrink: int) -> np.ndarray:
    """The pixels that decide on which side each latent is."""
    return np.arange(side // shrink) * shrink + shrink // 2


def working_size(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The size at which a photograph is edited: of its proportions, about side × side pixels.

    Args:
        height: The photograph's.
        width: The photograph's.
        side: The side of the squares that the model was trained on.
        multiple: What both sides must divide by.
    """
    scale = side / (height * width) ** 0.5
    most = side * _MOST_ASPECT**0.5
    sides = (min(length * scale, most) for length in (height, width))
    rows, columns = (max(multiple, round(length / multiple) * multiple) for length in sides)
    return rows, columns


def to_working_size(
    photo: UInt8[np.ndarray, "h w 3"], shape: Bool[np.ndarray, "h w"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """A photograph and its shape at another size: filtered (Lanczos), and picked pixels."""
    image = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(image), _resize_mask(shape, size)


def to_photo_size(
    photo: UInt8[np.ndarray, "h w 3"],
    shape: Bool[np.ndarray, "h w"],
    edited: UInt8[np.ndarray, "H W 3"],
    keep: str,
) -> UInt8[np.ndarray, "h w 3"]:
    """The edited picture at the photograph's size, with its own pixels where it was to stay."""
    height, width = shape.shape
    resized = Image.fromarray(edited).resize((width, height), Image.Resampling.LANCZOS)
    if keep == "nothing":
        return np.asarray(resized)
    stays = shape if keep == "inside" else ~shape
    return np.where(stays[..., None], photo, np.asarray(resized))


def find_clip(model: ShapeGuided, path: str | None) -> CLIP | None:
    """The CLIP in a file or folder, or the model's own where its text tower is one.

    Raises:
        UserError: there is no such CLIP at the path.
    """
    if path:
        skeleton = jax.eval_shape(lambda: CLIP(**PUBLISHED[_CLIP], rngs=nnx.Rngs(0)))
        return jax.tree.map(jax.numpy.asarray, pretrained.load(skeleton, path))
    tower = model.sd.text_encoder
    return tower if isinstance(tower, CLIP) else None


# Inferred shapes -------------------------------------------------------------------------------


def find_segmenter(model: ShapeGuided, config: ConfigDict, folder: str | None) -> Segmenter:
    """InferShape: the CLIPSeg in a folder, or the model's own.

    Raises:
        UserError: there is none.
    """
    if folder:
        return open_segmenter(folder)
    if model.segmenter is None:
        raise UserError(
            "no shape is given and the model cannot infer one: give --mask=FILE, or "
            "--segmenter=FOLDER with a CLIPSeg"
        )
    return _segmenter(model.segmenter, make_tokenizer(config))


def open_segmenter(folder: str) -> Segmenter:
    """The CLIPSeg of a `transformers` folder as a segmenter.

    Raises:
        UserError: the folder does not hold one.
    """
    arguments = clipseg_arguments(folder)
    skeleton = jax.eval_shape(lambda: CLIPSeg(**arguments, rngs=nnx.Rngs(0)))
    network = pretrained.load(skeleton, folder)
    return _segmenter(jax.tree.map(jax.numpy.asarray, network), open_tokenizer(folder))


def _segmenter(network: CLIPSeg, tokenizer: Tokenizer) -> Segmenter:
    return lambda picture, text: infer_shape(network, tokenizer, picture, text)


def _inferred(
    photo: UInt8[np.ndarray, "h w 3"], segmenter: Segmenter, prompt: str
) -> Bool[np.ndarray, "h w"]:
    shape = segmenter(photo, prompt)
    if not shape.any():
        raise UserError(
            f"--source_prompt={prompt!r}: nothing of that kind was found in the photograph; word "
            "it otherwise, or give --mask=FILE"
        )
    return shape


# Attention maps --------------------------------------------------------------------------------


def _map_rows(
    tokenizer: Tokenizer,
    tokens: Any,
    maps: Float[np.ndarray, "n h w"],
    size: tuple[int, int],
    *,
    both: bool,
) -> list[tuple[str, UInt8[np.ndarray, "1 H W 3"]]]:
    """A labelled picture for each token of the edit prompts, each map in its own range."""
    paint: Callable = colormaps["viridis"]
    rows = []
    sides = [(tokens.edit[0], 0)]
    if both:
        sides.append((tokens.edit_outside[0], token_split(len(maps))[0]))
    for side, offset in sides:
        for place in range(1, int(side.argmax())):
            word = tokenizer.decode(side[None, place : place + 1])[0]
            weights = maps[offset + place]
            shown = paint(weights / max(float(weights.max()), 1e-12))[..., :3]
            picture = Image.fromarray(np.uint8(255 * shown)).resize((size[1], size[0]))
            rows.append((f"{word} (up to {weights.max():.3f})", np.asarray(picture)[None]))
    return rows
