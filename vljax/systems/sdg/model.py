"""SDG's parts, and how they draw pictures under guidance (algorithm 2)."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.scenes import Scenes
from vljax.data.text.tokenizers import Tokenizer, open_tokenizer, train_tokenizer
from vljax.diffusion import guidance as guiding
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Guidance, Process
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.samplers import AfterStep, ddim, ddpm, dpm_solver_pp_2m
from vljax.diffusion.schedules import named_schedule, parse_timesteps, respace
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.noisy_clip import from_clip
from vljax.models.unet import UNet
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine

SAMPLERS = ("ddpm", "ddim", "dpm_solver")
# What can guide: a text (equation 4.6), or a picture's content (4.7), structure (4.8), style (4.9).
ASPECTS = ("text", "image", "structure", "style")
# What looks at x_t to tell how well it fits: the noise-aware CLIP; for comparison the clean one, on
# x_t itself or on the denoiser's guess at x_0.
ENCODERS = ("noisy_clip", "clip", "clip_on_x0")
# Scenes whose captions train the tokenizer: many times what shows every word.
_TOKENIZER_SCENES = 500
#: Of each aspect asked for, the target (tokens [b n], or pixels [b h w 3]; b may be 1) and its
#: scale. All of it is traced; only which aspects there are makes another program. For comparison
#: there is also classifier guidance, "class": tokens [b k n] of k texts, the first of which should
#: win against the others, CLIP being the classifier.
Request = Mapping[str, tuple[Any, Array | float]]


class SDG(nnx.Module):
    """The model: the denoiser `diffusion`; where it is guided, a `clip` and its `noisy_clip`."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        channels = 6 if config.diffusion.variance == "learned_range" else 3
        self.diffusion = UNet(
            image_size=config.data.image_size,
            out_channels=channels,
            rngs=rngs,
            **config.model.diffusion,
        )
        if is_guided(config):
            self.clip = CLIP(**config.model.clip, rngs=rngs)
            self.noisy_clip = from_clip(self.clip, config.model.noisy_clip.image_size, rngs=rngs)


def is_guided(config: ConfigDict) -> bool:
    """Whether the model has a CLIP: trained here on scenes, published with real pictures."""
    has_clip = config.data.name == "scenes" or bool(config.pretrained.clip)
    return config.guided and has_clip


def make_model(config: ConfigDict) -> SDG:
    """The model at its random start."""
    return SDG(config, rngs=nnx.Rngs(config.seed))


def make_process(config: ConfigDict, steps: str = "") -> Process:
    """The diffusion process, respaced to `steps` where given (`"100"`, `"ddim50"`)."""
    fields = config.diffusion
    schedule = named_schedule(fields.schedule, fields.num_steps)
    if steps:
        schedule = respace(schedule, parse_timesteps(fields.num_steps, steps))
    return Process(schedule, fields.prediction, fields.variance)


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of the model's CLIP; on scenes one that is trained on captions, always alike.

    Raises:
        UserError: none is given for a published CLIP, or it is not CLIP's.
    """
    if config.tokenizer:
        return open_tokenizer(config.tokenizer)
    if config.pretrained.clip and Path(config.pretrained.clip).is_dir():
        return open_tokenizer(config.pretrained.clip)
    if config.data.name != "scenes":
        raise UserError(
            "tokenizer is empty: give the one of the published CLIP, "
            "--config.tokenizer=bpe_simple_vocab_16e6.txt.gz"
        )
    fields = {**config.data.scenes, "size": _TOKENIZER_SCENES}
    scenes = Scenes(fields=("captions",), **fields)
    return train_tokenizer(
        (caption for scene in scenes for caption in scene["captions"]),
        config.model.clip.vocabulary_size,
    )


def make_guidance(
    model: SDG,
    process: Process,
    keys: Key[Array, " b"],
    request: Request,
    *,
    encoder: str = "noisy_clip",
    scale_schedule: guiding.ScaleSchedule = "constant",
    max_ratio: float | Array | None = None,
) -> Guidance | None:
    """What pulls the samples to what is asked (algorithm 2); None if nothing is.

    Args:
        model: The model.
        process: With the schedule of training, not a respaced one.
        keys: One per picture, for the noise on reference pictures.
        request: Targets and scales by aspect.
        encoder: One of `ENCODERS`; static.
        scale_schedule: How scales change on the way; see `score_guidance`.
        max_ratio: Longest gradient, as a ratio to the length that the score of noise has. One
            length for all times would be too weak near the picture or tear it apart near the noise.
    """
    if not request:
        return None

    def clean(x: Array) -> Any:
        return model.clip.encode_image(x, features=True)

    encode: guiding.Encoder
    match encoder:
        case "noisy_clip":

            def encode(x: Array, t: Array) -> Any:
                return model.noisy_clip.encode_image(x, t, features=True)

        case "clip":

            def encode(x: Array, t: Array) -> Any:
                return clean(x)

        case "clip_on_x0":
            encode = guiding.on_predicted_x0(process, model.diffusion, clean)
        case unknown:
            raise ValueError(f"encoder {unknown!r} is none of {', '.join(ENCODERS)}")

    def reference(pixels: Array) -> guiding.Reference:
        x0 = to_unit(pixels)
        if encoder == "clip_on_x0":  # its x_0 is known
            return lambda t: guiding.Encoding(*clean(x0))
        return guiding.noised_reference(encode, process.schedule, x0, _other(keys))

    kinds = {"image": guiding.content, "structure": guiding.structure, "style": guiding.style}
    terms = [
        (scale, kinds[aspect](reference(target)))
        for aspect, (target, scale) in request.items()
        if aspect in kinds
    ]
    if "text" in request:
        target, scale = request["text"]
        terms.append((scale, guiding.language(model.clip.encode_text(target))))
    scores: list[tuple[float | Array, guiding.Score]] = []
    if terms:
        scores.append((1.0, guiding.semantic_score(encode, terms)))
    if "class" in request:
        target, scale = request["class"]
        texts = jax.vmap(model.clip.encode_text)(target)

        def logits(x: Array, t: Array) -> Float[Array, "b k"]:
            return 100.0 * cosine(encode(x, t)[0][:, None], texts)

        scores.append((scale, guiding.classifier_score(logits, jnp.int32(0))))
    return guiding.score_guidance(
        guiding.weighted_sum(scores),
        num_steps=len(process.schedule),
        schedule=scale_schedule,
        max_rms=None if max_ratio is None else max_ratio / jnp.asarray(process.schedule.noise),
    )


def _other(keys: Key[Array, " b"]) -> Key[Array, " b"]:
    """Keys beside the sampler's, for noise that must not be the sampler's."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31)


def sample(
    model: SDG,
    process: Process,
    keys: Key[Array, " b"],
    sampler: str,
    image_size: int,
    *,
    eta: float | Float[Array, ""] = 0.0,
    guidance: Guidance | None = None,
    after_step: AfterStep | None = None,
    progress: Progress | None = None,
) -> UInt8[Array, "b h w 3"]:
    """Samples, one for each key; a picture depends on its own key (and what guides it) only.

    Args:
        model: The model.
        process: The process, respaced to the steps to take.
        keys: One per picture.
        sampler: `"ddpm"`, `"ddim"` or `"dpm_solver"`; static.
        image_size: Side in pixels; static.
        eta: DDIM's share of DDPM's noise.
        guidance: See `make_guidance`.
        after_step: See `vljax.diffusion.samplers`.
        progress: Where to report steps.
    """
    x_T = start_noise(keys, (image_size, image_size, 3))
    bent: dict[str, Any] = {
        "clip": True,
        "guidance": guidance,
        "after_step": after_step,
        "progress": progress,
    }
    match sampler:
        case "ddpm":
            x0 = ddpm(process, model.diffusion, x_T, keys, **bent)
        case "ddim":
            x0 = ddim(process, model.diffusion, x_T, eta=eta, keys=keys, **bent)
        case "dpm_solver":
            x0 = dpm_solver_pp_2m(process, model.diffusion, x_T, **bent)
        case unknown:
            raise ValueError(f"sampler {unknown!r} is none of {', '.join(SAMPLERS)}")
    return to_pixels(x0)


class Drawing:
    """Draws pictures of a model in batches of one size, with a progress bar.

    One program serves for all seeds, numbers of pictures, texts, references and scales; another
    set of aspects makes another.

    Args:
        config: The run's config.
        sampler: One of `SAMPLERS`.
        steps: Denoising steps (see `parse_timesteps`).
        eta: DDIM's share of DDPM's noise.
        encoder: One of `ENCODERS`.
        scale_schedule: See `make_guidance`.
        max_ratio: See `make_guidance`; 0 for no limit, None for that of `config.guidance`.
    """

    def __init__(
        self,
        config: ConfigDict,
        sampler: str,
        steps: str,
        *,
        eta: float = 0.0,
        encoder: str = "noisy_clip",
        scale_schedule: guiding.ScaleSchedule = "constant",
        max_ratio: float | None = None,
    ) -> None:
        self.process, self.trained = make_process(config, steps), make_process(config)
        limit = config.guidance.max_ratio if max_ratio is None else max_ratio
        self.traced = {"eta": eta, "max_ratio": limit or None}
        self.static = (sampler, config.data.image_size, encoder, scale_schedule)

    def __call__(
        self,
        model: SDG,
        keys: Key[Array, " b"],
        request: Request,
        ilvr: tuple[Array, int] | None = None,
        progress: Progress | None = None,
    ) -> UInt8[Array, "b h w 3"]:
        """One batch: a picture for each key; `ilvr` is a reference [b h w 3] and its factor N."""
        reference, factor = ilvr or (None, 0)
        return _draw(
            model,
            self.process,
            self.trained,
            keys,
            dict(request),
            reference,
            factor,
            *self.static,
            progress=progress,
            **self.traced,
        )

    def batches(
        self,
        model: SDG,
        seed: int,
        count: int,
        batch_size: int,
        request: Request | None = None,
        ilvr: tuple[np.ndarray, int] | None = None,
        label: str = "pictures",
    ) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """`count` pictures. Targets are one for all, or `count` of them."""

        def part(target: Any, places: np.ndarray) -> Any:
            return target if len(target) == 1 else np.asarray(target)[places]

        for first in range(0, count, batch_size):
            last = min(first + batch_size, count)
            keys = example_keys(jax.random.key(seed), batch_size, first)
            # The last batch is filled up, so that it is one program.
            places = np.minimum(np.arange(first, first + batch_size), count - 1)
            now = {a: (part(target, places), s) for a, (target, s) in (request or {}).items()}
            mixed = (part(ilvr[0], places), ilvr[1]) if ilvr else None
            with progress_bar(f"{label} {first + 1} to {last} of {count}") as bar:
                pixels = np.asarray(self(model, keys, now, mixed, bar))
            yield pixels[: last - first]


@functools.partial(
    jax.jit,
    static_argnames=("factor", "sampler", "image_size", "encoder", "scale_schedule"),
)
def _draw(
    model: SDG,
    process: Process,
    trained: Process,
    keys: Key[Array, " b"],
    request: Request,
    reference: Array | None,
    factor: int,
    sampler: str,
    image_size: int,
    encoder: str,
    scale_schedule: guiding.ScaleSchedule,
    *,
    eta: float,
    max_ratio: float | None,
    progress: Progress | None,
) -> UInt8[Array, "b h w 3"]:
    guidance = make_guidance(
        model,
        trained,
        keys,
        request,
        encoder=encoder,
        scale_schedule=scale_schedule,
        max_ratio=max_ratio,
    )
    after_step = None
    if reference is not None:
        after_step = guiding.ilvr(process.schedule, to_unit(reference), factor, _other(keys))
    return sample(
        model,
        process,
        keys,
        sampler,
        image_size,
        eta=eta,
        guidance=guidance,
        after_step=after_step,
        progress=progress,
    )
