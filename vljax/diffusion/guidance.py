"""Guidance by scores: a sampler is pulled to where noisy pictures agree with what is asked.

A **score** is a function `F(x_t, t) -> [b]`, the higher the better x_t fits. Its gradient bends the
steps of any sampler (`guidance=` in `vljax.diffusion.samplers`): the mean of an ancestral step
moves by s·Σ·∇F, a DDIM step's noise by -√(1-ᾱ)·s·∇F. Semantic Diffusion Guidance reads its scores
off one encoding of x_t by a noise-aware CLIP:

    encode = lambda x, t: noisy_clip.encode_image(x, t, features=True)
    photo_t = noised_reference(encode, schedule, photo, keys)
    score = semantic_score(encode, [(160.0, language(text)), (100.0, content(photo_t))])
    pictures = ddpm(process, denoiser, x_T, keys, clip=True, guidance=score_guidance(score))

Everything a person changes (texts, references, scales) is traced.

Sources: Park, *Vision and Language Understanding Through Generative Modeling* (2023), sections
4.3.2 to 4.3.4, algorithm 2; Dhariwal & Nichol, "Diffusion Models Beat GANs" (2021), section 4
(classifier guidance); Choi et al., "ILVR" (2021), algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vljax.diffusion.noise import step_noise
from vljax.diffusion.process import Denoiser, Guidance, Process, at, p_mean_variance, q_sample
from vljax.diffusion.samplers import AfterStep
from vljax.diffusion.schedules import Schedule
from vljax.errors import UserError
from vljax.ops.similarity import cosine


class Encoding(NamedTuple):
    """What an image tower makes of pictures.

    Attributes:
        embedding: In the space that pictures and texts share, of any length but zero.
        maps: Feature maps, from fine to coarse.
    """

    embedding: Float[Array, "b e"]
    maps: Sequence[Float[Array, "b h w c"]]


Times = Int[Array, " b"]
#: From x_t at original times t.
Encoder = Callable[[Float[Array, "b h w c"], Times], Any]
Score = Callable[[Float[Array, "b h w c"], Times], Float[Array, " b"]]
#: A part of a score: from the encoding of x_t, and t.
Term = Callable[[Encoding, Times], Float[Array, " b"]]
#: The encoding of a reference with the noise of time t.
Reference = Callable[[Times], Encoding]


# What is asked ---------------------------------------------------------------------------------


def language(text: Float[Array, " e"] | Float[Array, "b e"]) -> Term:
    """Agreement with a text: the cosine of the two embeddings (equation 4.6).

    Args:
        text: Embedding of one text, or of one for each picture.
    """
    return lambda seen, t: cosine(seen.embedding, text)


def content(reference: Reference) -> Term:
    """Agreement with what a picture shows, wherever it shows it (equation 4.7).

    Args:
        reference: `reference(step)`: the encoding that counts as the best, see `noised_reference`.
    """
    return lambda seen, t: cosine(seen.embedding, reference(t).embedding)


def structure(reference: Reference) -> Term:
    """Agreement of feature maps place by place: what, and where (equation 4.8).

    Args:
        reference: `reference(step)`: the encoding that counts as the best, see `noised_reference`.
    """

    def term(seen: Encoding, t: Times) -> Float[Array, " b"]:
        pairs = zip(seen.maps, reference(t).maps, strict=True)
        return -sum(
            (jnp.square(_float(ours) - _float(theirs)).mean((1, 2, 3)) for ours, theirs in pairs),
            start=jnp.float32(0),
        )

    return term


def style(reference: Reference) -> Term:
    """Agreement of feature statistics, wherever they lie (equation 4.9).

    The Gram matrices are divided by the number of their map's entries, as in the published code.

    Args:
        reference: `reference(step)`: the encoding that counts as the best, see `noised_reference`.
    """

    def term(seen: Encoding, t: Times) -> Float[Array, " b"]:
        pairs = zip(seen.maps, reference(t).maps, strict=True)
        return -sum(
            (jnp.square(_gram(ours) - _gram(theirs)).sum((1, 2)) for ours, theirs in pairs),
            start=jnp.float32(0),
        )

    return term


def noised_reference(
    encode: Encoder,
    schedule: Schedule,
    x0: Float[Array, "1 h w c"] | Float[Array, "b h w c"],
    keys: Key[Array, " b"],
) -> Reference:
    """A reference picture as the encoder sees it at time t: under the noise of that time.

    Args:
        encode: The encoder that also sees x_t.
        schedule: The schedule of training, with a step for every t: not a respaced one.
        x0: The reference, one for all pictures or one for each.
        keys: One per generated picture; the noise of a time depends on its picture's key only.
    """

    def reference(t: Times) -> Encoding:
        noise = jax.vmap(lambda key, t: step_noise(key[None], t, x0.shape[1:])[0])(keys, t)
        clean = jnp.broadcast_to(x0, noise.shape)
        return Encoding(*jax.lax.stop_gradient(encode(q_sample(schedule, clean, t, noise), t)))

    return reference


# From scores to guidance -----------------------------------------------------------------------


def semantic_score(
    encode: Encoder, terms: Sequence[tuple[float | Float[Array, ""] | Float[Array, " b"], Term]]
) -> Score:
    """The weighted sum of terms, all read off one encoding of x_t (equation 4.10).

    Args:
        encode: `(x_t, t) -> (embedding, maps)`.
        terms: Each with its scale s.
    """

    def score(x_t: Float[Array, "b h w c"], t: Times) -> Float[Array, " b"]:
        seen = Encoding(*encode(x_t, t))
        parts = (scale * term(seen, t) for scale, term in terms)
        return sum(parts, start=jnp.zeros(len(x_t)))

    return score


def weighted_sum(scores: Sequence[tuple[float | Array, Score]]) -> Score:
    """The weighted sum of scores, each with an encoder or a classifier of its own.

    Args:
        scores: Pairs of weight and score; weights may be traced.
    """

    def score(x_t: Float[Array, "b h w c"], t: Times) -> Float[Array, " b"]:
        return sum((scale * one(x_t, t) for scale, one in scores), start=jnp.zeros(len(x_t)))

    return score


def classifier_score(
    logits: Callable[[Float[Array, "b h w c"], Times], Float[Array, "b k"]],
    label: Int[Array, ""] | Int[Array, " b"],
) -> Score:
    """The log-probability of a class: classifier guidance (Dhariwal & Nichol, section 4).

    Args:
        logits: A classifier of noisy pictures.
        label: The class wanted, of all pictures or of each.
    """

    def score(x_t: Float[Array, "b h w c"], t: Times) -> Float[Array, " b"]:
        log_probabilities = jax.nn.log_softmax(_float(logits(x_t, t)))
        wanted = jnp.broadcast_to(label, t.shape)
        return jnp.take_along_axis(log_probabilities, wanted[:, None], axis=1)[:, 0]

    return score


def on_predicted_x0(
    process: Process, denoiser: Denoiser, encode: Callable[[Float[Array, "b h w c"]], Any]
) -> Encoder:
    """An encoder of noisy pictures from one of clean ones: it sees the denoiser's guess at x_0.

    The guidance of a CLIP that was never shown noise. Its gradient runs through the denoiser.

    Args:
        process: With the schedule of training, not a respaced one.
        denoiser: The one being guided.
        encode: `x_0 -> (embedding, maps)`.
    """
    return lambda x_t, t: encode(p_mean_variance(process, denoiser, x_t, t, clip=True).x0)


#: How the scale of guidance may change from the noise to the picture.
SCALE_SCHEDULES = ("constant", "linear", "cosine")


def score_guidance(
    score: Score,
    *,
    num_steps: int = 1000,
    schedule: str = "constant",
    max_rms: float | Float[Array, ""] | Float[Array, " t"] | None = None,
) -> Guidance:
    """The gradient of a score, as samplers take it.

    Args:
        score: Its value for an example must depend on that example of x_t alone.
        num_steps: Steps of the schedule of training: where the scale schedule begins.
        schedule: How the scale changes from the noise to the picture: not at all, or falling from
            1 to 0 on a line or on half a cosine wave.
        max_rms: Largest root mean square of an example's gradient over its pixels, one for all
            times or one for each of `num_steps`; larger gradients are shortened to it. The score
            of noisy data itself has 1 / √(1-ᾱ).

    Raises:
        UserError: `schedule` is unknown.
    """
    if schedule not in SCALE_SCHEDULES:
        known = ", ".join(SCALE_SCHEDULES)
        raise UserError(f"scale_schedule={schedule!r}: choose one of {known}")

    def guidance(x_t: Float[Array, "b h w c"], t: Times) -> Float[Array, "b h w c"]:
        gradient = jax.grad(lambda x: score(x, t).sum())(_float(x_t))
        if schedule != "constant":
            left = t / (num_steps - 1)
            factor = left if schedule == "linear" else jnp.sin(0.5 * jnp.pi * left) ** 2
            gradient *= factor[:, None, None, None]
        if max_rms is not None:
            largest = at(jnp.broadcast_to(max_rms, (num_steps,)), t, gradient)
            rms = jnp.sqrt(jnp.square(gradient).mean((1, 2, 3), keepdims=True))
            gradient *= jnp.minimum(1.0, largest / jnp.maximum(rms, 1e-12))
        return gradient

    return guidance


# Iterative latent variable refinement ----------------------------------------------------------


def ilvr(
    schedule: Schedule,
    reference: Float[Array, "1 h w c"] | Float[Array, "b h w c"],
    factor: int,
    keys: Key[Array, " b"],
) -> AfterStep:
    """ILVR: after each step the low frequencies are the reference's (Choi et al., algorithm 1).

    Args:
        schedule: The sampler's own (respaced) schedule.
        reference: Clean pictures, one for all or one for each.
        factor: N, by which the low-pass filter shrinks pictures and enlarges them again; divides
            their sides. The larger, the freer the result.
        keys: One per generated picture. Not the sampler's own keys: with those the reference would
            get the very noise that the sampler adds.

    Raises:
        UserError: `factor` does not divide the side of the pictures.
    """
    height, width, channels = reference.shape[1:]
    if factor < 1 or height % factor or width % factor:
        raise UserError(
            f"ilvr_factor={factor}: choose a number that divides the picture's {height} × {width}"
        )

    def low_pass(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        small = (len(x), height // factor, width // factor, channels)
        return jax.image.resize(jax.image.resize(x, small, "cubic"), x.shape, "cubic")

    def after_step(step: Int[Array, ""], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        noise = step_noise(keys, step, x.shape[1:])
        index = jnp.full(len(x), step)
        signal, spread = (
            at(f, index, x) for f in (schedule.signal_previous, schedule.noise_previous)
        )
        return x + low_pass(signal * reference + spread * noise - x)

    return after_step


def _float(x: Array) -> Array:
    return x.astype(jnp.float32)


def _gram(x: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
    x = _float(x)
    return jnp.einsum("bhwc,bhwd->bcd", x, x) / (x.shape[1] * x.shape[2] * x.shape[3])
