"""Shape-Guided Diffusion's parts, and the methods by which they edit a batch of pictures.

Each method is one or two compiled programs over a `Request`, of which everything is traced:
another prompt, mask, picture, seed or guidance scale compiles nothing.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from vljax.data.scenes import VOCABULARY
from vljax.data.text.tokenizers import Tokenizer, open_tokenizer, train_tokenizer
from vljax.diffusion import shape_guided
from vljax.diffusion.editing import (
    blended_diffusion,
    guided,
    keep_from,
    noised_trajectory,
    sdedit,
)
from vljax.diffusion.noise import start_noise
from vljax.diffusion.process import Guidance, Process, p_mean_variance
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.prompt_to_prompt import (
    TokenMap,
    prompt_to_prompt,
    refinement,
    replacement,
    reweighted,
)
from vljax.diffusion.samplers import ddim
from vljax.diffusion.schedules import named_schedule, parse_timesteps, respace
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.clipseg import CLIPSeg
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders import inpainting_arguments, predicts, stable_diffusion_arguments
from vljax.models.stable_diffusion import StableDiffusion, inpainting_network
from vljax.ops.inside_outside import Schedule as StrengthSchedule
from vljax.ops.inside_outside import join_prompts, resize_nearest
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine

METHODS = ("shape_guided", "without_ioa", "prompt_to_prompt", "sdedit", "inpaint", "blended")
"""Ours, ours without Inside-Outside Attention, and the baselines of table 5.2."""

OURS = ("shape_guided", "without_ioa")
"""Those of them whose scale is `samples.guidance_scale`, not that of the baselines."""

INVERTING = (*OURS, "prompt_to_prompt")
"""Those that begin with the noise of the picture."""

#: Blended Diffusion's factor on the gradient of CLIP's cosine.
BLENDED_GUIDANCE = 300.0
#: SDEdit's share of the steps (Stable Diffusion's img2img).
SDEDIT_STRENGTH = 0.8


class ShapeGuided(nnx.Module):
    """The model: `sd`, and where the config asks for them `inpaint` and `segmenter`.

    With `config.pretrained.sd` the folder says how its networks are built; of `config.model` only
    their dtypes and remat count, and what else is there is published as well: `inpaint` from
    `config.pretrained.inpaint`, a segmenter from the flag of that name.

    Raises:
        UserError: a published folder cannot be used here.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        parts = {name: dict(config.model[name]) for name in ("vae", "unet", "text_encoder")}
        inpaint, segmenter = config.model.inpaint, dict(config.model.segmenter)
        if folder := config.pretrained.sd:
            published = _published(folder, config.diffusion.prediction)
            kept = ("dtype", "remat")
            parts = {
                name: {**arguments, **{k: v for k, v in parts[name].items() if k in kept}}
                for name, arguments in published.items()
            }
            inpaint, segmenter = False, {}
        self.sd = StableDiffusion(**parts, rngs=rngs)
        # Noisy latents, the mask, and the latents of what is around it.
        latents = self.sd.unet.conv_in.weight.shape[2]
        network = {**parts["unet"], "in_channels": 2 * latents + 1}
        if folder := config.pretrained.inpaint:
            inpaint, network = True, inpainting_arguments(folder, network)
        self.inpaint = ConditionalUNet(**network, rngs=rngs) if inpaint else None
        self.segmenter = CLIPSeg(**segmenter, rngs=rngs) if segmenter else None


def _published(folder: str, prediction: str) -> dict[str, dict[str, Any]]:
    """The arguments of a pipeline that draws from text, where it predicts as asked."""
    published = stable_diffusion_arguments(folder)
    taken, given = published["unet"]["in_channels"], published["vae"]["latent_channels"]
    if taken != given:
        raise UserError(
            f"--config.pretrained.sd={folder}: its U-Net takes {taken} channels and the "
            f"autoencoder gives {given}, so it inpaints: give Stable Diffusion itself, and this "
            f"one with --config.pretrained.inpaint={folder}/unet"
        )
    if (told := predicts(folder)) not in (None, prediction):
        raise UserError(
            f"--config.pretrained.sd={folder}: its scheduler says prediction_type={told!r}, but "
            f"config.diffusion.prediction={prediction!r}: give --config.diffusion.prediction={told}"
        )
    return published


def make_model(config: ConfigDict) -> ShapeGuided:
    """The model at its random start."""
    return ShapeGuided(config, rngs=nnx.Rngs(config.seed))


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer in the published folder, or one whose tokens are the words of scenes."""
    if config.pretrained.sd:
        return open_tokenizer(Path(config.pretrained.sd))
    return train_tokenizer(VOCABULARY, config.model.text_encoder.vocabulary_size)


def make_process(
    config: ConfigDict, steps: str = "", strength: float = 1.0, *, clean_end: bool = True
) -> Process:
    """The diffusion process.

    Args:
        config: `diffusion`.
        steps: Respaced so (`"leading50"`), or not at all.
        strength: Only the first share of these steps, counted from the clean end.
        clean_end: See `respace`.
    """
    fields = config.diffusion
    schedule = named_schedule(fields.schedule, fields.num_steps)
    if steps:
        times = parse_timesteps(fields.num_steps, steps)
        kept = times[: max(1, round(strength * len(times)))]
        schedule = respace(schedule, kept, clean_end=clean_end)
    return Process(schedule, fields.prediction)


# Edits -----------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """The tokens of an edit's prompts, for the inside of the shape and for the outside."""

    source: Int[Array, "b n"]
    source_outside: Int[Array, "b n"]
    edit: Int[Array, "b n"]
    edit_outside: Int[Array, "b n"]
    empty: Int[Array, "1 n"]


class Request(NamedTuple):
    """A batch of edits; all of it is traced.

    Attributes:
        image: The pictures at the working size.
        shape: 1 inside the object.
        keep: 1 where the picture stays.
        tokens: The prompts.
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
    tokens: Tokens
    source_scale: Float[Array, "b n"]
    edit_scale: Float[Array, "b n"]
    guidance_scale: Float[Array, ""]
    noise_mixing: Float[Array, ""]
    shape_until: Float[Array, ""]
    seeds: Int[Array, " b"]
    mapping: TokenMap


class Wish(NamedTuple):
    """One edit as a person words it: the prompts of both sides before and after."""

    source: str
    edit: str
    source_outside: str = "background"
    edit_outside: str = "background"


# By which flags `generate` asks for the fields of a wish.
_FLAGS = {
    "source": "--source_prompt",
    "edit": "--edit_prompt",
    "source_outside": "--source_background",
    "edit_outside": "--edit_background",
}

Keep = Literal["outside", "inside", "nothing"]


def one_sided(
    wish: Wish, shape: Bool[np.ndarray, "H W"], keep: Keep
) -> tuple[Wish, Bool[np.ndarray, "H W"], Keep]:
    """An edit as methods need it that know one prompt: what changes is the inside.

    All methods but `shape_guided` do. An edit of the surroundings is turned inside out.

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


@dataclass(frozen=True)
class Settings:
    """How an edit is made; of these, another choice is another program.

    Attributes:
        steps: Of inversion and generation, see `parse_timesteps`.
        self_schedule: How the mask on self-attention fades.
        published_levels: Whether the trajectory is that of the published code, which takes the
            picture for the first noise level and copies the level that a step has left.
    """

    steps: str = "leading50"
    self_schedule: StrengthSchedule = "constant"
    published_levels: bool = False


def default_scale(config: ConfigDict, method: str) -> float:
    """The guidance scale of a method where none is given."""
    samples = config.samples
    return samples.guidance_scale if method in OURS else samples.baseline_guidance_scale


def make_request(
    tokenizer: Tokenizer,
    length: int,
    image: UInt8[np.ndarray, "b H W 3"],
    shape: Bool[np.ndarray, "b H W"],
    wishes: Sequence[Wish],
    *,
    keep: Keep = "outside",
    token_scale: float = 1.0,
    guidance_scale: float = shape_guided.GUIDANCE_SCALE,
    noise_mixing: float = 0.0,
    shape_until: float = 1.0,
    seeds: Sequence[int] | None = None,
    reweight: Mapping[str, float] | None = None,
) -> Request:
    """A request from pictures, shapes and words.

    Args:
        tokenizer: The model's.
        length: Length of the context.
        image: The pictures at the working size.
        shape: Their shapes, of the same size.
        wishes: What to change.
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
            reweight is not in its prompt, or a seed does not fit 32 bits.
    """
    seeds = range(len(wishes)) if seeds is None else seeds
    if bad := [seed for seed in seeds if not -(2**31) <= seed < 2**31]:
        raise UserError(f"seed={bad[0]} does not fit 32 bits: give 0 to {2**31 - 1}")
    source, edit, source_outside, edit_outside = (
        tokenize_side(tokenizer, [getattr(wish, side) for wish in wishes], length, side)
        for side in Wish._fields
    )
    sides = zip(source, source_outside, edit, edit_outside, strict=True)
    scales = [
        shape_guided.published_scale((inner, outer), (new_inner, new_outer), token_scale)
        for inner, outer, new_inner, new_outer in sides
    ]
    maps = [_mapping(tokenizer, wish, length, reweight or {}) for wish in wishes]
    inside = shape.astype(np.float32)
    stays = {"outside": 1 - inside, "inside": inside, "nothing": np.zeros_like(inside)}[keep]
    texts = (source, source_outside, edit, edit_outside, tokenizer([""], length))
    return Request(
        image=jnp.asarray(image),
        shape=jnp.asarray(inside),
        keep=jnp.asarray(stays),
        tokens=Tokens(*map(jnp.asarray, texts)),
        source_scale=jnp.full((len(wishes), length), token_scale, jnp.float32),
        edit_scale=jnp.asarray(np.stack(scales)),
        guidance_scale=jnp.float32(guidance_scale),
        noise_mixing=jnp.float32(noise_mixing),
        shape_until=jnp.float32(shape_until),
        seeds=jnp.asarray(seeds, jnp.int32),
        mapping=TokenMap(*(jnp.asarray(np.stack(parts)) for parts in zip(*maps, strict=True))),
    )


def tokenize_side(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, name: str
) -> Int[np.ndarray, "b n"]:
    """Tokens of prompts that describe one side of a shape.

    Raises:
        UserError: one is too long for its half of the context.
    """
    room = shape_guided.token_split(length)[0]
    # Long enough for any prompt: what does not fit is refused, not cut.
    wide = tokenizer(texts, max(length, *(4 * len(text) + 2 for text in texts)))
    for text, row in zip(texts, wide, strict=True):
        if (count := int(row.argmax()) - 1) > room:
            shown = text if len(text) <= 60 else f"{text[:59]}…"
            raise UserError(
                f"{_FLAGS[name]} {shown!r} has {count} tokens, but a side of the shape takes "
                f"{room}: shorten it"
            )
    return wide[:, :length]


def _mapping(
    tokenizer: Tokenizer, wish: Wish, length: int, reweight: Mapping[str, float]
) -> TokenMap:
    """Prompt-to-Prompt's correspondence: word for word where there are as many, else aligned."""
    same = len(wish.source.split()) == len(wish.edit.split())
    make = replacement if same else refinement
    mapping = make(tokenizer, wish.source, wish.edit, length)
    return reweighted(mapping, tokenizer, wish.edit, reweight) if reweight else mapping


def invert(
    model: ShapeGuided,
    config: ConfigDict,
    request: Request,
    settings: Settings,
    *,
    attention: bool = True,
) -> Float[Array, "n+1 b h w c"]:
    """Lines 4 and 5 of algorithm 4: the latents of the pictures by noise level, one program."""
    process = make_process(config, settings.steps, clean_end=not settings.published_levels)
    evaluate_at = "current" if settings.published_levels else "next"
    with progress_bar("inversion") as bar:
        return _invert(
            model.sd, process, request, bar, attention=attention, evaluate_at=evaluate_at
        )


@functools.partial(jax.jit, static_argnames=("attention", "evaluate_at"))
def _invert(
    sd: StableDiffusion,
    process: Process,
    request: Request,
    progress: Progress,
    *,
    attention: bool,
    evaluate_at: Literal["next", "current"],
) -> Float[Array, "n+1 b h w c"]:
    source, _, _ = _contexts(sd, request.tokens, split=attention)
    return shape_guided.invert(
        process,
        sd.unet,
        sd.encode(to_unit(request.image)),
        source,
        request.shape,
        attention=attention,
        token_scale=request.source_scale,
        evaluate_at=evaluate_at,
        progress=progress,
    )


def edit(
    model: ShapeGuided,
    config: ConfigDict,
    method: str,
    request: Request,
    settings: Settings,
    inverted: Float[Array, "n+1 b h w c"] | None = None,
    clip: CLIP | None = None,
) -> UInt8[np.ndarray, "b H W 3"]:
    """The edited pictures of a method.

    Args:
        model: The model.
        config: `diffusion`.
        method: One of `METHODS`.
        request: What to edit.
        settings: How.
        inverted: What `invert` gave for this request; made if left out, where it is needed.
        clip: For Blended Diffusion.

    Raises:
        UserError: the model has no part that the method needs.
    """
    if inverted is None and method in INVERTING:
        attention = method == "shape_guided"
        inverted = invert(model, config, request, settings, attention=attention)
    process = make_process(config, settings.steps)
    with progress_bar(method.replace("_", " ")) as bar:
        match method:
            case "shape_guided" | "without_ioa":
                assert inverted is not None
                made = generate(
                    model,
                    config,
                    request,
                    settings,
                    inverted,
                    attention=method == "shape_guided",
                    progress=bar,
                )[0]
            case "prompt_to_prompt":
                made = _prompt_to_prompt(model.sd, process, request, inverted, bar)
            case "sdedit":
                process = make_process(config, settings.steps, SDEDIT_STRENGTH)
                made = _sdedit(model.sd, process, request, bar)
            case "inpaint":
                if model.inpaint is None:
                    raise UserError(
                        "the model cannot inpaint: give --config.pretrained.inpaint=FOLDER/unet"
                    )
                made = _inpaint(model, process, request, bar)
            case "blended":
                if clip is None:
                    raise UserError(
                        "Blended Diffusion needs CLIP's image tower, which a Stable Diffusion "
                        "folder does not hold: give one with --clip=FOLDER"
                    )
                process = make_process(config, settings.steps, SDEDIT_STRENGTH)
                made = _blended(model.sd, clip, process, request, bar)
            case unknown:
                raise UserError(f"method={unknown!r}: choose one of {', '.join(METHODS)}")
    return np.asarray(made)


def generate(
    model: ShapeGuided,
    config: ConfigDict,
    request: Request,
    settings: Settings,
    inverted: Float[Array, "n+1 b h w c"],
    *,
    attention: bool = True,
    progress: Progress,
) -> tuple[UInt8[Array, "b H W 3"], Float[Array, "n+1 b h w c"]]:
    """Lines 6 to 13 of algorithm 4: the pictures, and their latents by noise level, one program."""
    process = make_process(config, settings.steps)
    copied = "left" if settings.published_levels else "reached"
    return _generate(
        model.sd,
        process,
        request,
        inverted,
        progress,
        attention=attention,
        self_schedule=settings.self_schedule,
        copied=copied,
    )


@functools.partial(jax.jit, static_argnames=("attention", "self_schedule", "copied"))
def _generate(
    sd: StableDiffusion,
    process: Process,
    request: Request,
    inverted: Float[Array, "n+1 b h w c"],
    progress: Progress,
    *,
    attention: bool,
    self_schedule: StrengthSchedule,
    copied: Literal["reached", "left"],
) -> tuple[UInt8[Array, "b H W 3"], Float[Array, "n+1 b h w c"]]:
    _, context, empty = _contexts(sd, request.tokens, split=attention)
    latents = shape_guided.generate(
        process,
        sd.unet,
        inverted,
        context,
        empty,
        request.shape,
        request.keep,
        guidance_scale=request.guidance_scale,
        attention=attention,
        token_scale=request.edit_scale,
        self_schedule=self_schedule,
        shape_until=request.shape_until,
        copied=copied,
        noise=_noise(request, inverted.shape[2:]),
        noise_mixing=request.noise_mixing,
        progress=progress,
        trajectory=True,
    )
    return to_pixels(sd.decode(latents[0])), latents


@jax.jit
def _prompt_to_prompt(
    sd: StableDiffusion,
    process: Process,
    request: Request,
    inverted: Float[Array, "n+1 b h w c"],
    progress: Progress,
) -> UInt8[Array, "b H W 3"]:
    source, context, empty = _contexts(sd, request.tokens, split=False)
    latents = prompt_to_prompt(
        process,
        sd.unet,
        inverted,
        source,
        context,
        empty,
        request.mapping,
        request.keep,
        guidance_scale=request.guidance_scale,
        progress=progress,
    )
    return to_pixels(sd.decode(latents))


@jax.jit
def _sdedit(
    sd: StableDiffusion, process: Process, request: Request, progress: Progress
) -> UInt8[Array, "b H W 3"]:
    _, context, empty = _contexts(sd, request.tokens, split=False)
    z0 = sd.encode(to_unit(request.image))
    latents = sdedit(
        process,
        guided(sd.unet, context, empty, request.guidance_scale),
        z0,
        _noise(request, z0.shape[1:]),
        _small(request.keep, z0),
        progress=progress,
    )
    return to_pixels(sd.decode(latents))


@jax.jit
def _inpaint(
    model: ShapeGuided, process: Process, request: Request, progress: Progress
) -> UInt8[Array, "b H W 3"]:
    assert model.inpaint is not None
    _, context, empty = _contexts(model.sd, request.tokens, split=False)
    images = to_unit(request.image)
    network = inpainting_network(model.sd, model.inpaint, images, request.shape)
    z0 = model.sd.encode(images)
    noise = _noise(request, z0.shape[1:])
    latents = ddim(
        process,
        guided(network, context, empty, request.guidance_scale),
        noise,
        clip=False,
        after_step=keep_from(
            noised_trajectory(process.schedule, z0, noise), _small(request.keep, z0)
        ),
        progress=progress,
    )
    return to_pixels(model.sd.decode(latents))


@jax.jit
def _blended(
    sd: StableDiffusion, clip: CLIP, process: Process, request: Request, progress: Progress
) -> UInt8[Array, "b H W 3"]:
    """Blended Diffusion in latents: the U-Net without text, guided by CLIP's view of its guess."""
    empty = sd.embed(request.tokens.empty)
    z0 = sd.encode(to_unit(request.image))
    nothing = jnp.broadcast_to(empty, (len(z0), *empty.shape[1:]))
    wanted = clip.encode_text(request.tokens.edit)
    last = len(process.schedule) - 1

    def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        return sd.unet(z, t, nothing)

    def agreement(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, ""]:
        step = jnp.minimum(jnp.searchsorted(jnp.asarray(process.schedule.timesteps), t), last)
        guess = sd.decode(p_mean_variance(process, denoiser, z, step).x0)
        # CLIP looks at the object alone.
        seen = clip.encode_image(jnp.where(request.keep[..., None] == 1, 0.0, guess))
        return cosine(seen, wanted).sum()

    def guidance(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w c"]:
        return BLENDED_GUIDANCE * jax.grad(agreement)(z, t)

    small = _small(request.keep, z0)
    keys = jax.vmap(jax.random.key)(request.seeds)
    score: Guidance = guidance
    latents = blended_diffusion(
        process, denoiser, z0, small, keys, guidance=score, clip=False, progress=progress
    )
    return to_pixels(sd.decode(latents))


def _contexts(
    sd: StableDiffusion, tokens: Tokens, split: bool
) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"], Float[Array, "1 n d"]]:
    """What the U-Net reads: source, edit, empty. Without `split`, the inside prompts alone."""
    empty = sd.embed(tokens.empty)
    source, edit = (sd.embed(t) for t in (tokens.source, tokens.edit))
    if not split:
        return source, edit, empty
    halves = shape_guided.token_split(sd.tokens)
    outside, edit_outside = (sd.embed(t) for t in (tokens.source_outside, tokens.edit_outside))
    return (
        join_prompts(source, outside, empty, split=halves),
        join_prompts(edit, edit_outside, empty, split=halves),
        empty,
    )


def _noise(request: Request, shape: Sequence[int]) -> Float[Array, "b h w c"]:
    return start_noise(jax.vmap(jax.random.key)(request.seeds), tuple(shape[-3:]))


def _small(mask: Float[Array, "b H W"], latents: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """A mask at the latents' resolution."""
    return resize_nearest(mask, (latents.shape[1], latents.shape[2]), rule="centre")


@functools.partial(jax.jit, static_argnames=("attention", "self_schedule"))
def attention_maps(
    sd: StableDiffusion,
    process: Process,
    request: Request,
    latents: Float[Array, "n+1 b h w c"],
    *,
    attention: bool = True,
    self_schedule: StrengthSchedule = "constant",
) -> Float[Array, "b n h w"]:
    """The edit prompts' mean cross-attention maps along a generation (figure 5.4)."""
    _, context, _ = _contexts(sd, request.tokens, split=attention)
    return shape_guided.attention_maps(
        process,
        sd.unet.observed,
        latents,
        context,
        request.shape,
        attention=attention,
        token_scale=request.edit_scale,
        self_schedule=self_schedule,
        shape_until=request.shape_until,
    )
