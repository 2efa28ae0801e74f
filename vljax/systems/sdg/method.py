"""The method of SDG: texts and pictures pull the samples of a free denoiser (algorithm 2).

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 4.3.

| thesis | here |
|---|---|
| equation 4.1, the forward process and its β | `vljax.diffusion.schedules.Schedule` |
| equation 4.2, x_t from x_0 | `vljax.diffusion.process.q_sample` |
| equation 4.3, the backward process p(x_{t-1} given x_t) | `vljax.diffusion.process.interpret` |
| equations 4.4 and 4.5, its mean shifted by Σ∇F | `vljax.diffusion.process.condition_mean` |
| equation 4.6, F of a text | `vljax.diffusion.guidance.language` |
| equations 4.7 to 4.9, F of a picture | `content`, `structure`, `style` of the same module |
| equation 4.10, their sum, each with its scale s | `semantic_score` of the same module |
| algorithm 2 | `vljax.diffusion.samplers.ddpm`, guided by what `make_guidance` makes |
| section 4.3.5, a CLIP that knows noise | `vljax.models.noisy_clip`, `training.noisy_clip_loss` |

x_t is encoded once a step, whatever is asked. `Drawing` runs all of it as one program.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion import guidance as guiding
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Guidance, Process, make_process
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.samplers import check_sampler, sample
from vljax.errors import UserError
from vljax.ops.parts import filled_batches
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine
from vljax.systems.sdg.model import SDG

#: What can guide: a text, or a picture's content, structure or style.
ASPECTS = ("text", "image", "structure", "style")
_OF_PICTURES = {
    "image": guiding.content,
    "structure": guiding.structure,
    "style": guiding.style,
}
#: What looks at x_t to tell how well it fits: the noise-aware CLIP; for comparison the clean one,
#: on x_t itself or on the denoiser's guess at x_0.
ENCODERS = ("noisy_clip", "clip", "clip_on_x0")
#: Of each aspect asked for, the target (tokens [b n], or pixels [b h w 3]; b may be 1) and its
#: scale. All of it is traced; only which aspects there are makes another program. For comparison
#: there is also classifier guidance, "class": tokens [b k n] of k texts, the first of which should
#: win against the others, CLIP being the classifier.
Targets = Mapping[str, tuple[Any, Array | float]]
#: For comparison, ILVR: reference pictures [b h w 3] (b may be 1) whose low frequencies the samples
#: take over, and its factor N.
Ilvr = tuple[Any, int]


def make_encoder(model: SDG, process: Process, name: str) -> guiding.Encoder:
    """What sees x_t: one of `ENCODERS`.

    Raises:
        UserError: there is no such encoder.
    """
    match name:
        case "noisy_clip":
            return lambda x, t: model.noisy_clip.encode_image(x, t, features=True)
        case "clip":
            return lambda x, t: model.clip.encode_image(x, features=True)
        case "clip_on_x0":
            clean = functools.partial(model.clip.encode_image, features=True)
            return guiding.on_predicted_x0(process, model.diffusion, clean)
    raise UserError(f"encoder={name!r}: choose one of {', '.join(ENCODERS)}")


def make_guidance(
    model: SDG,
    process: Process,
    keys: Key[Array, " b"],
    targets: Targets,
    *,
    encoder: str = "noisy_clip",
    scale_schedule: str = "constant",
    max_ratio: float | Array | None = None,
) -> Guidance | None:
    """What pulls the samples to what is asked (algorithm 2); None if nothing is.

    Args:
        model: The model.
        process: With the schedule of training, not a respaced one.
        keys: One per picture, for the noise on reference pictures.
        targets: What is asked, with scales.
        encoder: One of `ENCODERS`; static.
        scale_schedule: How scales change on the way; see `score_guidance`.
        max_ratio: Longest gradient, as a ratio to the length that the score of noise has. One
            length for all times would be too weak near the picture or tear it apart near the noise.
    """
    if not targets:
        return None
    encode = make_encoder(model, process, encoder)

    def reference(pixels: UInt8[Array, "b h w 3"]) -> guiding.Reference:
        x0 = to_unit(pixels)
        if encoder == "clip_on_x0":  # its x_0 is known
            known = model.clip.encode_image(x0, features=True)
            return lambda t: guiding.Encoding(*known)
        return guiding.noised_reference(encode, process.schedule, x0, _other(keys))

    terms = [
        (scale, _OF_PICTURES[aspect](reference(target)))
        for aspect, (target, scale) in targets.items()
        if aspect in _OF_PICTURES
    ]
    if "text" in targets:
        tokens, scale = targets["text"]
        terms.append((scale, guiding.language(model.clip.encode_text(tokens))))
    scores: list[tuple[float | Array, guiding.Score]] = []
    if terms:
        scores.append((1.0, guiding.semantic_score(encode, terms)))
    if "class" in targets:
        tokens, scale = targets["class"]
        texts = jax.vmap(model.clip.encode_text)(tokens)

        def logits(x: Float[Array, "b h w c"], t: guiding.Times) -> Float[Array, "b k"]:
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


class _Fixed(NamedTuple):
    """What makes another program."""

    sampler: str
    image_size: int
    encoder: str
    scale_schedule: str


class Drawing:
    """Draws pictures of a model in batches of one size, with a progress bar.

    One program serves for all seeds, numbers of pictures, texts, references and scales; another
    set of aspects makes another. A picture depends on its own key, and what guides it, only.

    Args:
        config: The run's config.
        sampler: One of `SAMPLERS`; None for `config.samples.sampler`.
        steps: Denoising steps (see `parse_timesteps`); None for `config.samples.steps`.
        eta: DDIM's share of DDPM's noise.
        encoder: One of `ENCODERS`.
        scale_schedule: See `make_guidance`.
        max_ratio: See `make_guidance`; 0 for no limit, None for `config.guidance.max_ratio`.

    Raises:
        UserError: there is no such sampler, or steps cannot be.
    """

    def __init__(
        self,
        config: ConfigDict,
        sampler: str | None = None,
        steps: str | None = None,
        *,
        eta: float = 0.0,
        encoder: str = "noisy_clip",
        scale_schedule: str = "constant",
        max_ratio: float | None = None,
    ) -> None:
        self.sampler, self.steps = sampler or config.samples.sampler, steps or config.samples.steps
        self.max_ratio = config.guidance.max_ratio if max_ratio is None else max_ratio
        check_sampler(self.sampler, "samples.sampler", eta)
        self.process, self.trained = make_process(config, self.steps), make_process(config)
        self.traced = {"eta": eta, "max_ratio": self.max_ratio or None}
        self.fixed = _Fixed(self.sampler, config.data.image_size, encoder, scale_schedule)

    def __call__(
        self,
        model: SDG,
        keys: Key[Array, " b"],
        targets: Targets | None = None,
        ilvr: Ilvr | None = None,
        progress: Progress | None = None,
    ) -> UInt8[Array, "b h w 3"]:
        """One batch: a picture for each key."""
        reference, factor = ilvr or (None, 0)
        return _draw(
            model,
            self.process,
            self.trained,
            keys,
            dict(targets or {}),
            reference,
            progress,
            factor=factor,
            fixed=self.fixed,
            **self.traced,
        )

    def batches(
        self,
        model: SDG,
        seed: int,
        count: int,
        batch_size: int,
        targets: Targets | None = None,
        ilvr: Ilvr | None = None,
        label: str = "pictures",
    ) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """`count` pictures. Targets are one for all, or `count` of them."""

        def part(target: Any, places: np.ndarray) -> Any:
            return target if len(target) == 1 else np.asarray(target)[places]

        for places in filled_batches(count, batch_size):
            first, last = places[0], places[-1] + 1
            keys = example_keys(jax.random.key(seed), batch_size, first)
            now = {a: (part(target, places), s) for a, (target, s) in (targets or {}).items()}
            mixed = (part(ilvr[0], places), ilvr[1]) if ilvr else None
            with progress_bar(f"{label} {first + 1} to {last} of {count}") as bar:
                pixels = np.asarray(self(model, keys, now, mixed, bar))
            yield pixels[: last - first]


@functools.partial(jax.jit, static_argnames=("factor", "fixed"))
def _draw(
    model: SDG,
    process: Process,
    trained: Process,
    keys: Key[Array, " b"],
    targets: Targets,
    reference: UInt8[Array, "b h w 3"] | None,
    progress: Progress | None,
    *,
    factor: int,
    fixed: _Fixed,
    eta: float,
    max_ratio: float | None,
) -> UInt8[Array, "b h w 3"]:
    guidance = make_guidance(
        model,
        trained,
        keys,
        targets,
        encoder=fixed.encoder,
        scale_schedule=fixed.scale_schedule,
        max_ratio=max_ratio,
    )
    after_step = None
    if reference is not None:
        after_step = guiding.ilvr(process.schedule, to_unit(reference), factor, _other(keys))
    x_T = start_noise(keys, (fixed.image_size, fixed.image_size, 3))
    x = sample(
        fixed.sampler,
        process,
        model.diffusion,
        x_T,
        keys,
        clip=True,
        eta=eta,
        guidance=guidance,
        after_step=after_step,
        progress=progress,
    )
    return to_pixels(x)
