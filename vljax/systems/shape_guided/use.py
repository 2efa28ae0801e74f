"""What a person asks of Shape-Guided Diffusion: edit a photograph by a mask and words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from vljax import pretrained
from vljax.data.pictures.images import contact_sheet, read_image
from vljax.data.pictures.maps import heat_colours
from vljax.data.pictures.photographs import (
    covers_a_latent,
    read_mask,
    to_photo_size,
    to_working_size,
    working_size,
)
from vljax.data.text.tokenizers import Tokenizer, open_tokenizer
from vljax.errors import UserError
from vljax.metrics.shape import Segmenter
from vljax.models.clip import CLIP, PUBLISHED
from vljax.models.clipseg import CLIPSeg
from vljax.models.folders import clipseg_arguments
from vljax.models.parameters import copied
from vljax.ops.inside_outside import StrengthSchedule
from vljax.ops.pixels import to_unit
from vljax.pretrained.concepts import read_concepts, with_concepts
from vljax.request import File, Picture, is_given, option
from vljax.systems import Result
from vljax.systems.shape_guided.batch import Batch, Keep, Wish, make_batch, token_split
from vljax.systems.shape_guided.methods import METHODS, Settings
from vljax.systems.shape_guided.model import ShapeGuided, make_tokenizer

# Whose text tower Stable Diffusion 1 reads.
_CLIP = "ViT-L/14"

CLIP_HELP = f"a CLIP {_CLIP}, for Blended Diffusion and where pictures are judged"
TOKEN_SCALE_HELP = "factor on new tokens: 1 as in the paper, 2.5 in the published code"
STEPS_HELP = "of inversion and generation (default: config.samples)"


@dataclass(frozen=True)
class Request:
    """An edit of a photograph. Which fields a method heeds, `METHODS` knows."""

    image: Picture | None = option(None, help="the photograph to edit")
    mask: Picture | None = option(
        None, help="the object's shape: white inside; left out, it is inferred from --source_prompt"
    )
    source_prompt: str | None = option(None, help='what is inside the shape, such as "dog"')
    edit_prompt: str | None = option(None, help="what shall be there (default: --source_prompt)")
    source_background: str = option("background", help="what is outside of it")
    edit_background: str | None = option(None, help="what shall be (default: --source_background)")
    keep: str | None = option(
        None,
        choices=get_args(Keep),
        help="which side of the shape stays (default: the one whose prompt does not change)",
    )
    invert_mask: bool = option(False, help="black is inside")
    method: str = option("shape_guided", choices=tuple(METHODS), help="who edits")
    guidance_scale: float | None = option(None, help="w_g (default: config.samples)")
    steps: str | None = option(None, help=STEPS_HELP)
    seed: int = option(0, seed=True, help="of the noise, where there is any")
    token_scale: float = option(1.0, help=TOKEN_SCALE_HELP)
    self_schedule: str = option(
        "constant",
        choices=get_args(StrengthSchedule),
        help="how the constraint on self-attention fades",
    )
    noise_mixing: float = option(0.0, low=0, high=1, help="fresh noise inside, 0 to 1")
    shape_until: float = option(
        1.0,
        low=0,
        high=1,
        help="share of the steps in which the shape guides, 0 to 1 (figure 5.7: 0.5)",
    )
    published_levels: bool = option(False, help="copy the levels that the code copies")
    reweight: tuple[str, ...] | None = option(
        None,
        metavar="WORD=FACTOR",
        help="Prompt-to-Prompt: attend so much more to words of --edit_prompt",
    )
    concept: tuple[File, ...] = option(
        (), help="textual inversion: files of words that the prompts may hold"
    )
    segmenter: File | None = option(None, metavar="FOLDER", help="a CLIPSeg that infers the shape")
    clip: File | None = option(None, metavar="FOLDER", help=CLIP_HELP)
    attention_maps: bool = option(False, help="draw where tokens attend")


def generate(model: ShapeGuided, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`edited.png` at the photograph's size, `sheet.png`, and `attention.png` where asked for.

    Raises:
        UserError: a field, the photograph or the mask cannot be.
    """
    if not is_given(request.image) or not request.source_prompt:
        name = "source_prompt" if is_given(request.image) else "image"
        raise UserError(f"--{name} is missing: give the photograph and what is in the shape")
    method = METHODS[request.method]
    method.check(request)
    if request.invert_mask and not is_given(request.mask):
        raise UserError("--invert_mask turns a mask around: give one with --mask=FILE")
    if request.segmenter and is_given(request.mask):
        raise UserError(
            f"--segmenter={request.segmenter}: --mask tells what it would find; leave one of them "
            "out"
        )

    # What is to change, and where.
    source, around = request.source_prompt, request.source_background
    wish = Wish(
        source,
        source if request.edit_prompt is None else request.edit_prompt,
        around,
        around if request.edit_background is None else request.edit_background,
    )
    keep: Keep = request.keep or wish.side_that_stays()  # type: ignore[assignment]
    photo = read_image(request.image)
    height, width = photo.shape[:2]
    if is_given(request.mask):
        shape = read_mask(request.mask, (height, width), invert=request.invert_mask)
    else:
        shape = _inferred(photo, find_segmenter(model, config, request.segmenter), source)
    size = working_size(height, width, config.data.image_size, model.sd.multiple)
    image, small = to_working_size(photo, shape, size)
    if not covers_a_latent(small, model.sd.shrink, rule="centre"):
        raise UserError(
            f"the shape is so small that it covers no latent of the picture at {size[0]}×"
            f"{size[1]}: crop the photograph around the object"
        )

    # The edit.
    if request.concept and method.name == "blended":
        raise UserError(
            "--concept: --method=blended is guided by CLIP, which did not learn the word; choose "
            "another method"
        )
    concepts = read_concepts(*request.concept)
    sd, tokenizer = with_concepts(model.sd, make_tokenizer(config), concepts)
    scale = request.guidance_scale
    if scale is None:
        scale = method.default_scale(config)
    batch = make_batch(
        tokenizer,
        sd.tokens,
        image[None],
        small[None],
        [wish],
        sides=method.sides,
        keep=keep,
        token_scale=request.token_scale,
        guidance_scale=scale,
        noise_mixing=request.noise_mixing,
        shape_until=request.shape_until,
        seeds=[request.seed],
        reweight=_factors(request.reweight or ()),
    )
    words = _words(tokenizer, batch)
    if request.attention_maps and not words:
        raise UserError("--attention_maps are of the words of --edit_prompt: give some")
    settings = Settings(
        request.steps or config.samples.steps,
        request.self_schedule,  # type: ignore[arg-type]
        request.published_levels,
    )
    clip = find_clip(model, request.clip)
    knowing = copied(model)
    knowing.sd = sd
    pictures, latents = method.edit(knowing, config, batch, settings, clip=clip)

    # What comes back.
    told = {"edit_prompt": wish.edit, "edit_background": wish.edit_outside, "keep": keep}
    told |= {"method": method.name, "seed": str(request.seed), "guidance_scale": str(scale)}
    # Where the shape guided for a while only, what lies beyond it may have changed as well.
    stays = keep if request.shape_until == 1 else "nothing"
    edited = to_photo_size(pictures[0], (height, width))
    if stays != "nothing":
        kept = shape if stays == "inside" else ~shape
        edited = np.where(kept[..., None], photo, edited)
    yield Result("edited.png", edited, wish.edit, told)
    mask = np.broadcast_to(np.uint8(255) * small[..., None], image.shape)
    sheet = contact_sheet([("before, shape, after", np.stack([image, mask, pictures[0]]))])
    yield Result("sheet.png", sheet, "before, shape, after", told)
    if request.attention_maps and latents is not None:
        maps = method.attention_maps(knowing, config, batch, settings, latents)[0]
        rows = [(word, maps[place]) for place, word in words.items()]
        yield Result("attention.png", _paint(rows, size), "where tokens attend", told)


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


# Algorithm 4, lines 1 to 3: InferShape ---------------------------------------------------------


def find_segmenter(model: ShapeGuided, config: ConfigDict, folder: str | None) -> Segmenter:
    """InferShape: the CLIPSeg in a `transformers` folder, or the model's own.

    Raises:
        UserError: there is none, or the folder does not hold one.
    """
    network, tokenizer = model.segmenter, None
    if folder:
        arguments = clipseg_arguments(folder)
        skeleton = jax.eval_shape(lambda: CLIPSeg(**arguments, rngs=nnx.Rngs(0)))
        network = jax.tree.map(jax.numpy.asarray, pretrained.load(skeleton, folder))
        tokenizer = open_tokenizer(folder)
    if network is None:
        raise UserError(
            "no shape is given and the model cannot infer one: give --mask=FILE, or "
            "--segmenter=FOLDER with a CLIPSeg"
        )
    tokenizer = tokenizer or make_tokenizer(config)
    return lambda picture, text: infer_shape(network, tokenizer, picture, text)


def infer_shape(
    model: CLIPSeg,
    tokenizer: Tokenizer,
    picture: UInt8[np.ndarray, "h w 3"],
    text: str,
) -> Bool[np.ndarray, "h w"]:
    """InferShape: the pixels of a picture that a text names, at the picture's own size.

    As published, the picture is shown stretched to a square of `model.input_size`.

    Args:
        model: The model.
        tokenizer: Texts and a length to tokens, see `vljax.data.text.tokenizers`.
        picture: Any size.
        text: What to look for, such as the source prompt.

    Returns:
        True where it is more probable than not.
    """
    size = (model.input_size, model.input_size)
    shown = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    images = to_unit(np.asarray(shown))[None]
    logits = jax.jit(CLIPSeg.__call__)(model, images, tokenizer([text], model.clip.context_length))
    height, width = picture.shape[:2]
    full = Image.fromarray(np.asarray(logits[0])).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(full) > 0


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


def _words(tokenizer: Tokenizer, batch: Batch) -> dict[int, str]:
    """The tokens of the first picture's edit prompts by their place in the context."""
    offset = token_split(batch.edit.shape[2])[0]
    found = {}
    for side, tokens in enumerate(np.asarray(batch.edit[0])):
        for place in range(1, int(tokenizer.real(tokens[None]).sum()) - 1):
            found[side * offset + place] = tokenizer.decode(tokens[None, place : place + 1])[0]
    return found


def _paint(
    rows: Sequence[tuple[str, Float[np.ndarray, "h w"]]], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W 3"]:
    """A sheet with a labelled picture for each map, each in its own range."""
    sheet = []
    for word, weights in rows:
        shown = heat_colours(weights / max(float(weights.max()), 1e-12))
        picture = Image.fromarray(np.uint8(255 * shown)).resize((size[1], size[0]))
        sheet.append((f"{word} (up to {weights.max():.3f})", np.asarray(picture)[None]))
    return contact_sheet(sheet, min_side=96)
