"""What a person asks of text2image: pictures of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from vljax.data.pictures.images import contact_sheet, read_image
from vljax.data.pictures.photographs import read_mask, to_working_size, working_size
from vljax.diffusion.progress import progress_bar
from vljax.diffusion.samplers import SAMPLERS
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.ops.parts import equal_parts
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import cosine
from vljax.pretrained.concepts import Concept, read_concepts
from vljax.request import File, Picture, changed, is_given, option
from vljax.systems import Result
from vljax.systems.text2image.families import FAMILIES, Wish
from vljax.systems.text2image.families.personal import with_noun
from vljax.systems.text2image.model import Text2Image, clip_of, make_tokenizer


@dataclass(frozen=True)
class Request:
    """Pictures of texts. Which fields beside the first four a family heeds, its file tells."""

    prompt: tuple[str, ...] | None = option(
        None, repeat=True, metavar="TEXT", help="what shall be shown; may be repeated"
    )
    count: int = option(4, low=1, high=256, help="pictures of each text")
    candidates: int = option(
        1, low=1, high=512, help="draw so many for each picture, and keep what CLIP finds best"
    )
    seed: int = option(0, seed=True, help="of the first picture; each has the next one")
    negative: str = option("", help="what guidance turns away from")
    guidance_scale: float | None = option(
        None,
        help="w of cond + w·(cond − uncond), one less than the usual (default: config.samples)",
    )
    clip_scale: float | None = option(
        None, low=0, help="factor on the gradient of CLIP's cosine; 0 for none"
    )
    sampler: str | None = option(None, choices=SAMPLERS, help="default: config.samples")
    steps: str | None = option(
        None, help="denoising steps: leading50, trailing20 … (default: config.samples)"
    )
    temperature: float | None = option(
        None, low=0, help="of drawing codes; 0: the most probable ones (default: config.samples)"
    )
    top_k: int | None = option(
        None,
        low=0,
        high=65536,
        help="draw among so many codes; 0 for all (default: config.samples)",
    )
    height: int | None = option(
        None, low=8, high=4096, help="of the pictures (default: config.data)"
    )
    width: int | None = option(
        None, low=8, high=4096, help="of the pictures (default: config.data)"
    )
    image: Picture | None = option(None, help="begin with this picture")
    mask: Picture | None = option(None, help="draw in --image only here: white inside")
    concept: tuple[File, ...] = option(
        (),
        help="textual inversion: files of words that --prompt may hold; CLIP, which ranks "
        "--candidates, reads <cat-toy> as cat toy",
    )
    strength: float = option(
        0.8,
        low=0.01,
        high=1,
        help="how far --image is noised; under a --mask everything is new at 1",
    )


def generate(model: Text2Image, config: ConfigDict, request: Request) -> Iterator[Result]:
    """`picture_00_00.png`, … of each text and picture, and `sheet.png`.

    Raises:
        UserError: a field cannot be, or the family does not heed it.
    """
    wish, texts = read(model, config, request), tuple(request.prompt or ())
    rows, settings = [], _settings(request, wish, config)
    for number, text in enumerate(texts):
        label = f"drawing {number + 1} of {len(texts)}" if len(texts) > 1 else "drawing"
        made, scores = draw_best(model, config, wish, text, request, label)
        for i, picture in enumerate(made):
            told = {"prompt": text, "seed": str(request.seed + i), **settings}
            if scores is not None:
                told["CLIP cosine"] = f"{scores[i]:.3f}"
            yield Result(f"picture_{number:02d}_{i:02d}.png", picture, text, told)
        rows.append((text, made))
    yield Result("sheet.png", contact_sheet(rows), "a row a text", settings)


def read(model: Text2Image, config: ConfigDict, request: Request) -> Wish:
    """What a request asks, but for texts and seeds.

    Raises:
        UserError: as `generate`.
    """
    if not request.prompt:
        raise UserError('--prompt is missing: say what shall be shown, --prompt "a red circle"')
    if request.candidates > 1 and clip_of(model) is None:
        # It can be given where the config tells its sizes.
        give = "give the one of config.model.clip with --config.pretrained.clip=FILE, or "
        raise UserError(
            f"--candidates={request.candidates}: there is no CLIP that could choose; "
            f"{give if config.model.clip else ''}leave it out"
        )
    heeded = FAMILIES[config.family].heeds
    of_all = [field.name for field in fields(Request)[:4]]
    for name in changed(request):
        if name not in of_all and name not in heeded:
            raise UserError(
                f"--{name}: pictures of the family {config.family!r} have none; leave it "
                f"out, or choose among {', '.join(sorted(heeded)) or 'none'}"
            )
    image, mask = _picture_and_mask(model, config, request)
    side, size = config.data.image_size, None
    if request.height or request.width:
        if image is not None:
            raise UserError("--height, --width: --image has a size of its own; leave them out")
        size = (request.height or side, request.width or side)
    return Wish(
        texts=(),
        seeds=(),
        negative=request.negative,
        guidance_scale=request.guidance_scale,
        clip_scale=request.clip_scale,
        sampler=request.sampler,
        steps=request.steps,
        temperature=request.temperature,
        top_k=request.top_k,
        size=size,
        image=image,
        mask=mask,
        strength=request.strength,
        concept=tuple(read_concepts(*request.concept)),
    )


def _picture_and_mask(
    model: Text2Image, config: ConfigDict, request: Request
) -> tuple[UInt8[np.ndarray, "h w 3"] | None, Bool[np.ndarray, "h w"] | None]:
    """At the size at which the model draws, of the picture's proportions."""
    if not is_given(request.image):
        if is_given(request.mask):
            raise UserError("--mask is of a picture: give it with --image=FILE")
        return None, None
    photo = read_image(request.image)
    height, width = photo.shape[:2]
    multiple = model.sd.multiple  # type: ignore[attr-defined]
    size = working_size(height, width, config.data.image_size, multiple)
    if is_given(request.mask):
        return to_working_size(photo, read_mask(request.mask, (height, width)), size)
    return to_working_size(photo, np.ones((height, width), bool), size)[0], None


# Pictures drawn at a time, so that memory does not grow with how many are asked for.
_TOGETHER = 8


def draw_best(
    model: Text2Image,
    config: ConfigDict,
    wish: Wish,
    text: str,
    request: Request,
    label: str = "drawing",
) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"] | None]:
    """`count` pictures of a text, each the best of its candidates, and their cosines with it.

    Candidate k of picture i has the seed `seed + i + k·count`, so that the first candidates are
    the pictures that are drawn without any.
    """
    count, clip = request.count, clip_of(model)
    found = []
    for part in equal_parts(count, _TOGETHER):
        places, size = part.tolist(), len(part)
        told = f"{label}, {places[0] + 1} to {places[-1] + 1} of {count}" if size < count else label
        best: np.ndarray | None = None
        scores: np.ndarray | None = None
        with progress_bar(told) as bar:
            for k in range(request.candidates):
                seeds = tuple(request.seed + i + k * count for i in places)
                one = replace(wish, texts=(text,) * size, seeds=seeds).filled(config)
                drawn = np.asarray(FAMILIES[config.family].draw(model, config, one, bar))
                fits = None if clip is None else fit(clip, config, drawn, text, wish.concept)
                if best is None or scores is None or fits is None:
                    best, scores = drawn, fits
                    continue
                better = fits > scores
                best = np.where(better[:, None, None, None], drawn, best)
                scores = np.maximum(fits, scores)
        found.append((best, scores))
    bests, fitting = zip(*found, strict=True)
    pictures = np.concatenate(bests)[:count]
    return pictures, None if clip is None else np.concatenate(fitting)[:count]


def fit(
    clip: CLIP,
    config: ConfigDict,
    pictures: UInt8[np.ndarray, "n h w 3"],
    text: str,
    concepts: Sequence[Concept] = (),
) -> Float[np.ndarray, " n"]:
    """CLIP's cosines of pictures and a text; of learnt words, which it does not know, the nouns."""
    known = [with_noun(config, text, concepts)] * len(pictures)
    tokens = make_tokenizer(config)(known, clip.context_length)
    return np.asarray(_cosines(clip, jnp.asarray(pictures), jnp.asarray(tokens)))


@jax.jit
def _cosines(clip: CLIP, pictures: jax.Array, tokens: jax.Array) -> Float[jax.Array, " n"]:
    return cosine(clip.encode_image(to_unit(pictures)), clip.encode_text(tokens))


def _settings(request: Request, wish: Wish, config: ConfigDict) -> dict[str, str]:
    """What the family heeds, as it was."""
    filled, heeded = wish.filled(config), FAMILIES[config.family].heeds
    named = {name: getattr(filled, name, None) for name in sorted(heeded)}
    told = {n: str(v) for n, v in named.items() if isinstance(v, str | int | float) and v != ""}
    return {"family": config.family, "candidates": str(request.candidates), **told}
