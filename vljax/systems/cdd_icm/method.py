"""A dialogue is a sampler that carries the picture from turn to turn (section 2.6).

At each turn:

1. The image encoder sees the reference picture, the text encoder the instruction; the gated fusion
   composes them to c (`read`), and the U-Net's attention projects their places once.
2. Noise becomes a picture under c. At each step classifier-free guidance pushes the predicted noise
   away from what is predicted without c (equation 15): ε̂ = φ ε(c) + (1 − φ) ε(0); the variance
   stays that of ε(c). ICM guidance then bends the step towards pictures that the noisy encoder
   finds near c. Equation 14 adds the gradient of the loss, which climbs; and over one picture the
   loss is a constant. What is right is to climb the example's own term, cos(c, x_t) / τ. Where a
   step has no variance (DDIM, DPM-Solver++) the gradient corrects ε̂ (Dhariwal & Nichol 2021,
   algorithm 2). With equation 8 the mean rests on ε̂; equation 7's √(ᾱ β) is √ᾱ · β there.
3. The picture, as pixels, is the next turn's reference.

All of a turn is one program, whatever the text, picture, seed and scales.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import resize_and_crop
from vljax.diffusion import guidance as guiding
from vljax.diffusion.noise import example_keys, start_noise
from vljax.diffusion.process import Denoiser as Denoising
from vljax.diffusion.process import Guidance, Process, make_process, split_output
from vljax.diffusion.progress import Progress, progress_bar
from vljax.diffusion.samplers import check_sampler, sample
from vljax.errors import UserError
from vljax.models.unet import KeyValue
from vljax.ops.parts import equal_parts, filled_batches
from vljax.ops.pixels import to_pixels, to_unit
from vljax.ops.similarity import cosine
from vljax.systems.cdd_icm.model import (
    CDDICM,
    Condition,
    encode_image,
    has_noisy,
    icm_scale,
    make_tokenizer,
    matching,
    read,
    without,
)


def denoiser(model: CDDICM, condition: Condition, context: list[KeyValue] | None) -> Denoising:
    """The U-Net under a condition; `context` is from `attend_to`."""
    return lambda x, t: model.diffusion(x, t, condition, context)


def classifier_free(process: Process, both: Denoising, phi: float | Float[Array, ""]) -> Denoising:
    """φ ε(c) + (1 − φ) ε(0) (equation 15); a learned variance is that under c.

    The prediction may be v or x_0 as well, which are affine in ε at a given x_t.

    Args:
        process: How predictions are to be read.
        both: Denoises a batch twice over, the first half under c, the second without.
        phi: φ.
    """

    def denoise(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, "b h w k"]:
        output = both(jnp.concatenate([x, x]), jnp.concatenate([t, t])).astype(jnp.float32)
        (with_c, variance), (without_c, _) = (
            split_output(process, half) for half in jnp.split(output, 2)
        )
        blended = phi * with_c + (1 - phi) * without_c
        return blended if variance is None else jnp.concatenate([blended, variance], axis=-1)

    return denoise


def icm_guidance(
    model: CDDICM,
    process: Process,
    vector: Float[Array, "b d"],
    psi: float | Float[Array, ""],
    max_ratio: float | Float[Array, ""],
) -> Guidance:
    """ψ ∇ cos(c, noisy(x_t)) / τ, for each example by itself (equation 14 as it should be).

    Args:
        model: With a noisy encoder.
        process: With the schedule of training.
        vector: c as ICM composes it (`matching`).
        psi: ψ.
        max_ratio: Longest gradient, as a ratio to the score that noise of x_t has, and that x_0
            would need to move by one. τ can learn to be so small that ψ / τ is hundreds; and at the
            noisiest times, where √ᾱ is next to nothing, a small change of ε is a huge one of x_0.
    """
    noisy = model.noisy
    assert noisy is not None
    factor = psi * icm_scale(noisy)

    def score(x: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Float[Array, " b"]:
        return factor * cosine(noisy(x, t), vector)

    noise, signal = (jnp.asarray(x) for x in (process.schedule.noise, process.schedule.signal))
    longest = max_ratio / noise * jnp.minimum(1.0, signal / noise)
    return guiding.score_guidance(score, num_steps=len(process.schedule), max_rms=longest)


def keep_unchanged(
    reference: UInt8[Array, "b h w 3"],
    picture: UInt8[Array, "b h w 3"],
    levels: float | Float[Array, ""],
) -> UInt8[Array, "b h w 3"]:
    """The picture with its reference's pixels where no channel moved by more than `levels`.

    A pixel beside one that moved stays as drawn, so that outlines stay whole. What is copied does
    not drift, however many turns follow; 0 copies nothing that differs.
    """
    moved = jnp.abs(picture.astype(jnp.float32) - reference.astype(jnp.float32)).max(-1) > levels
    near = jax.lax.reduce_window(moved, False, jax.lax.bitwise_or, (1, 3, 3), (1, 1, 1), "SAME")
    return jnp.where(near[..., None], picture, reference)


class Drawn(NamedTuple):
    """What a turn drew; on the host where `Drawing.turn` gives it.

    Attributes:
        pictures: Of each example the candidate that fits best.
        scores: Of every candidate, the cosine between c and its embedding, both by `matching`.
    """

    pictures: UInt8[Array | np.ndarray, "b h w 3"]
    scores: Float[Array | np.ndarray, "b n"]


# Pictures drawn at a time, so that memory does not grow with the candidates asked for.
_TOGETHER = 16


class _Fixed(NamedTuple):
    """What makes another program."""

    sampler: str
    classifier_free: bool
    icm: bool
    drops: tuple[str, ...]


@functools.partial(jax.jit, static_argnames="fixed")
def _draw(
    model: CDDICM,
    process: Process,
    trained: Process,
    keys: Key[Array, " b"],
    number: Int[Array, ""],
    which: Int[Array, " n"],
    reference: UInt8[Array, "b h w 3"],
    tokens: Int[Array, "b l"],
    progress: Progress | None,
    *,
    fixed: _Fixed,
    phi: float,
    psi: float,
    eta: float,
    max_ratio: float,
    keep: float,
) -> Drawn:
    condition = read(model.clip, model.composer, to_unit(reference), tokens)
    # What ICM guides and chooses by.
    matcher = matching(model)
    asked = read(model.clip, matcher, to_unit(reference), tokens).vector
    context = model.diffusion.attend_to(condition)
    free = without(condition, fixed.drops)
    free_context = context if fixed.drops == ("condition",) else model.diffusion.attend_to(free)

    # Candidates of an example stand together.
    count = len(which)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, which))(keys)
    keys = keys.reshape(-1)
    many = functools.partial(jax.tree.map, lambda x: jnp.repeat(x, count, axis=0))
    under, attended = many(condition), many(context)
    if fixed.classifier_free:
        twice = functools.partial(jax.tree.map, lambda one, other: jnp.concatenate([one, other]))
        both = denoiser(model, twice(under, many(free)), twice(attended, many(free_context)))
        denoise = classifier_free(process, both, phi)
    else:
        denoise = denoiser(model, under, attended)
    guidance = None
    if fixed.icm:
        guidance = icm_guidance(model, trained, many(asked), psi, max_ratio)
    x = sample(
        fixed.sampler,
        process,
        denoise,
        start_noise(keys, reference.shape[1:]),
        keys,
        clip=True,
        eta=eta,
        guidance=guidance,
        progress=progress,
    )
    pictures = keep_unchanged(many(reference), to_pixels(x), keep)
    found = encode_image(model.clip, matcher, to_unit(pictures)).summary
    scores = cosine(many(asked), found).reshape(-1, count)
    best = jnp.arange(len(scores)) * count + scores.argmax(1)
    return Drawn(pictures[best], scores)


class Dialogues(NamedTuple):
    """Dialogues of a benchmark as arrays; shorter ones are filled up with their last turn.

    Attributes:
        canvas: The pictures before the first turns.
        tokens: Of every instruction.
        pictures: The true picture after every turn.
        lengths: How many turns each has.
        instructions: Their texts.
        examples: The dialogues as their source gives them.
    """

    canvas: UInt8[np.ndarray, "m h w 3"]
    tokens: Int[np.ndarray, "m n l"]
    pictures: UInt8[np.ndarray, "m n h w 3"]
    lengths: Int[np.ndarray, " m"]
    instructions: list[list[str]]
    examples: list[dict[str, Any]]


def read_dialogues(config: ConfigDict, count: int, split: str = "test") -> Dialogues:
    """The first `count` dialogues of a split, at the model's size.

    Raises:
        UserError: the data is not there.
    """
    source = open_benchmark(config.data).dialogues(split)
    size, length = config.data.image_size, config.model.clip.context_length
    examples = [source[i] for i in range(min(count, len(source)))]
    most = max(len(one["instructions"]) for one in examples)
    tokenizer = make_tokenizer(config)

    def filled(values: Any) -> np.ndarray:
        return np.stack([values[min(i, len(values) - 1)] for i in range(most)])

    return Dialogues(
        np.stack([resize_and_crop(one["canvas"], size) for one in examples]),
        np.stack([filled(tokenizer(one["instructions"], length, warn=False)) for one in examples]),
        np.stack(
            [filled([resize_and_crop(p, size) for p in one["turn_images"]]) for one in examples]
        ),
        np.array([len(one["instructions"]) for one in examples]),
        [one["instructions"] for one in examples],
        examples,
    )


class Drawing:
    """Draws turns and dialogues of a model.

    One program serves for all seeds, turns, texts, references and scales; whether there is guidance
    at all, the number of candidates and the number of steps make others. A picture depends on its
    own key, turn, text and reference only.

    Args:
        config: The run's config.
        sampler: One of `SAMPLERS`; None for `config.samples.sampler`.
        steps: Denoising steps (see `parse_timesteps`); None for `config.samples.steps`.
        eta: DDIM's share of DDPM's noise.
        phi: φ; None for `config.guidance.classifier_free`, 1 for none.
        icm: ψ; None for `config.guidance.icm`, 0 for none.
        candidates: Pictures drawn for each turn, of which the best by ICM stays.
        keep: See `keep_unchanged`; in levels of 255.

    Raises:
        UserError: there is no such sampler, steps cannot be, or nothing was trained for ICM
            guidance.
    """

    def __init__(
        self,
        config: ConfigDict,
        sampler: str | None = None,
        steps: str | None = None,
        *,
        eta: float = 0.0,
        phi: float | None = None,
        icm: float | None = None,
        candidates: int = 1,
        keep: float = 0.0,
    ) -> None:
        self.sampler, self.steps = sampler or config.samples.sampler, steps or config.samples.steps
        check_sampler(self.sampler, "samples.sampler", eta)
        if icm and not has_noisy(config):
            raise UserError(
                f"--icm_scale={icm:g}: this run learnt no ICM guidance; give 0, or train with "
                "--config.with_icm_guidance=True"
            )
        scales = config.guidance
        self.phi = scales.classifier_free if phi is None else phi
        self.psi = (scales.icm if icm is None else icm) if has_noisy(config) else 0.0
        self.candidates, self.keep, self.eta = candidates, keep, eta
        self.process, self.trained = make_process(config, self.steps), make_process(config)
        self.traced = {
            "phi": self.phi,
            "psi": self.psi,
            "eta": eta,
            "max_ratio": scales.max_ratio,
            "keep": keep,
        }
        drops = tuple(config.dropped.what)
        self.fixed = _Fixed(self.sampler, self.phi != 1, self.psi != 0, drops)

    def turn(
        self,
        model: CDDICM,
        keys: Key[Array, " b"],
        number: int,
        reference: UInt8[np.ndarray, "b h w 3"],
        tokens: Int[np.ndarray, "b n"],
        progress: Progress | None = None,
    ) -> Drawn:
        """Turn `number` of a batch of dialogues, counted from 1."""
        pictures, scores = None, np.empty((len(reference), 0), np.float32)
        for part in equal_parts(self.candidates, max(1, _TOGETHER // len(reference))):
            made = _draw(
                model,
                self.process,
                self.trained,
                keys,
                np.int32(number),
                part,
                reference,
                tokens,
                progress,
                fixed=self.fixed,
                **{name: np.float32(value) for name, value in self.traced.items()},
            )
            drawn, fits = np.asarray(made.pictures), np.asarray(made.scores)
            if pictures is not None:
                better = fits.max(axis=1) > scores.max(axis=1)
                drawn = np.where(better[:, None, None, None], drawn, pictures)
            pictures, scores = drawn, np.concatenate([scores, fits], axis=1)
        assert pictures is not None
        return Drawn(pictures, scores[:, : self.candidates])

    def dialogues(
        self,
        model: CDDICM,
        seed: int,
        given: Dialogues,
        batch_size: int,
        *,
        true_references: bool = False,
        label: str = "dialogues",
    ) -> UInt8[np.ndarray, "m n h w 3"]:
        """Every turn of dialogues, each on the picture that the turn before drew.

        Args:
            model: The model.
            seed: Of the first dialogue's noise.
            given: The dialogues.
            batch_size: How many at a time.
            true_references: Draw each turn on the true picture before it instead (table 2, "w/o
                iterative setting").
            label: What the progress bar says.
        """
        total, turns = given.tokens.shape[:2]
        drawn = np.empty_like(given.pictures)
        for places in filled_batches(total, batch_size):
            first = places[0]
            keys = example_keys(jax.random.key(seed), batch_size, first)
            reference = given.canvas[places]
            for i in range(turns):
                if true_references and i:
                    reference = given.pictures[places, i - 1]
                told = f"{label} {first + 1} to {places[-1] + 1} of {total}, turn {i + 1}"
                with progress_bar(told) as bar:
                    made = self.turn(model, keys, i + 1, reference, given.tokens[places, i], bar)
                    reference = made.pictures
                drawn[first : first + batch_size, i] = reference[: total - first]
        return drawn
