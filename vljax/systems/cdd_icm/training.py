"""CDD-ICM's training stages and their losses (sections 2.4 to 2.6)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.dialogues import Turns, place_shares
from vljax.data.pictures.images import contact_sheet, resize_and_crop
from vljax.data.source import Transform
from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.losses import Loss, denoising_loss, hybrid_loss, simple_loss
from vljax.diffusion.process import make_process, q_sample
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.layers import Linear
from vljax.models.parameters import copied
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import contrastive_loss, normalise
from vljax.systems.cdd_icm.method import Drawing, read_dialogues
from vljax.systems.cdd_icm.model import (
    CDDICM,
    Composer,
    Condition,
    Encoded,
    NoisyEncoder,
    compose,
    encode_image,
    encode_text,
    has_localizer,
    has_matcher,
    has_noisy,
    icm_scale,
    make_tokenizer,
    matching,
    read,
    without,
)
from vljax.training.contrast import clip_loss
from vljax.training.mesh import gather
from vljax.training.stage import Stage

PROJECTIONS = ("clip", "random")
# Turns of a dialogue that teach CLIP where none is published. Pictures of one or two objects differ
# in the places and shapes that a text tells; of more objects colours alone tell them apart.
_TOLD_TURNS = 2


def stages(config: ConfigDict) -> list[Stage]:
    """`clip` where it is trained here; `icm`, `cdd`, `noisy_icm` (section 2.6); `localizer`.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    if config.model.projections not in PROJECTIONS:
        raise UserError(
            f"model.projections={config.model.projections!r}: choose one of "
            f"{', '.join(PROJECTIONS)}"
        )
    if unknown := set(config.dropped.what) - {"condition", "tokens"}:
        raise UserError(
            f"dropped.what={tuple(config.dropped.what)}: {min(unknown)!r} is none of condition, "
            "tokens"
        )
    if not 0 <= config.dropped.share <= 1:
        raise UserError(f"dropped.share={config.dropped.share}: give a share from 0 to 1")
    rate, benchmark = config.backbone_rate, open_benchmark(config.data)
    tokenizer, length = make_tokenizer(config), config.model.clip.context_length
    chosen = any(one.optimizer.schedule == "validation" for one in config.stages.values())
    validation = Turns(benchmark.dialogues("val")) if chosen else None
    turn = functools.partial(
        Stage,
        source=Turns(benchmark.dialogues()),
        validation=validation,
        transform=turn_transform(tokenizer, length, config.data.image_size),
    )
    # Of the backbone both encoders use all but CLIP's own projections; batch norms keep their
    # running statistics. The factor η is on the update: Adam would undo one on the gradient.
    backbone = [
        (r"clip\.(?!visual\.proj$|visual\.attnpool|text_projection|logit_scale|.*running_)", rate)
    ]
    encoders = [*(backbone if rate else ()), (r"composer\.", 1.0)]
    found = []
    if "clip" in config.stages:
        found.append(
            Stage(
                name="clip",
                loss=clip_loss(lambda model: model.clip, "target"),
                train=[(r"clip\.(?!.*running_)", 1.0)],
                source=Turns(benchmark.dialogues(), first=_TOLD_TURNS),
                transform=turn_transform(tokenizer, length, config.data.image_size),
                config=config.stages.clip,
            )
        )
    begin = functools.partial(start_projections, config=config)
    if config.with_icm:
        found.append(
            turn(
                name="icm",
                loss=icm_loss,
                train=encoders,
                config=config.stages.icm,
                start=begin,
            )
        )
    found.append(
        turn(
            name="cdd",
            loss=cdd_loss(config),
            train=[*encoders, (r"(matcher|diffusion)\.", 1.0)],
            config=config.stages.cdd,
            start=start_matcher if has_matcher(config) else None if config.with_icm else begin,
            pictures=drawn_dialogues(config),
        )
    )
    if has_noisy(config):
        noisy = [(r"noisy\.(timed\.)?visual\.(?!.*running_)", rate)] if rate else []
        found.append(
            turn(
                name="noisy_icm",
                loss=noisy_icm_loss(config),
                train=[*noisy, (r"noisy\.(?!(timed\.)?visual\.)", 1.0)],
                config=config.stages.noisy_icm,
                start=functools.partial(start_noisy, config=config),
            )
        )
    if has_localizer(config):
        found.append(
            Stage(
                name="localizer",
                loss=localizer_loss,
                train=[(r"localizer\.", 1.0)],
                source=benchmark.dialogues(),
                transform=shown_transform(config),
                config=config.stages.localizer,
            )
        )
    return found


# Examples ----------------------------------------------------------------------------------------


def turn_transform(tokenizer: Tokenizer, length: int, size: int) -> Transform:
    """A turn's `reference` and `target` (uint8 [size size 3]) and `tokens` [length].

    Nothing is mirrored: texts say left and right. A text of more tokens loses its last ones.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {
            "reference": resize_and_crop(example["reference"], size),
            "target": resize_and_crop(example["target"], size),
            "tokens": tokenizer([example["instruction"]], length, warn=False)[0],
        }

    return transform


def shown_transform(config: ConfigDict) -> Transform:
    """Of a dialogue the `image` after a random turn, the classes `present`, and their `places`."""
    classes, coordinates = config.localizer.classes, config.localizer.coordinates

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        turn = int(rng.integers(len(example["turn_images"])))
        image = example["turn_images"][turn]
        present, places = (
            example[f"turn_{name}"][turn] for name in ("class_vectors", "coordinates")
        )
        if len(present) != classes or places.shape[1] < coordinates:
            raise UserError(
                f"localizer.classes={classes}, localizer.coordinates={coordinates}: the data have "
                f"{len(present)} and {places.shape[1]}"
            )
        return {
            "image": resize_and_crop(image, config.data.image_size),
            "present": present.astype(np.float32),
            "places": np.nan_to_num(place_shares(places, image, coordinates)),
        }

    return transform


# Losses ------------------------------------------------------------------------------------------


def icm_loss(model: CDDICM, batch: dict, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
    """What is composed must find the picture asked for in the batch, and be found (equation 12)."""
    pictures = to_unit(batch["reference"]), to_unit(batch["target"])
    composed, found = _encode(model.clip, model.composer, *pictures, batch["tokens"])
    return _match(composed.vector, found, icm_scale(model.composer))


def cdd_loss(config: ConfigDict) -> Callable:
    """Denoising under the condition, and δ times ICM (equations 10, 11 and 13).

    A matcher follows the encoders that denoising trains and moves nothing else: in small batches
    ICM needs colours alone, and would have the shared composer forget the rest.
    """
    process = make_process(config)
    per_example = _per_example(config)
    delta = config.icm_weight if config.with_icm else 0.0

    def loss(model: CDDICM, batch: dict, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
        *keys, drop_key, dropout_key, noise_key = jax.random.split(key, 5)
        reference = _noised(to_unit(batch["reference"]), noise_key, config.reference_noise)
        x0, tokens = to_unit(batch["target"]), batch["tokens"]
        condition, found = _encode(model.clip, model.composer, reference, x0, tokens)
        keep = jax.random.bernoulli(drop_key, 1 - config.dropped.share, (len(x0),))
        seen = without(condition, tuple(config.dropped.what), keep.astype(jnp.float32))
        context = model.diffusion.attend_to(seen)

        def denoiser(x: Array, t: Array) -> Array:
            return model.diffusion(x, t, seen, context, key=dropout_key)

        times = UniformTimesteps(config.diffusion.num_steps)
        total, (metrics, _) = denoising_loss(process, denoiser, x0, keys, times, per_example)
        if delta:
            if model.matcher is not None:
                followed = jax.tree.map(jax.lax.stop_gradient, model.clip)
                condition, found = _encode(followed, model.matcher, reference, x0, tokens)
            matched, more = _match(condition.vector, found, icm_scale(matching(model)))
            total, metrics = total + delta * matched, {**metrics, **more, "icm": matched}
        return total, metrics

    return loss


def noisy_icm_loss(config: ConfigDict) -> Callable:
    """As `icm_loss` with noisy targets, each at a time of its own (section 2.5); f stays."""
    process = make_process(config)

    def loss(model: CDDICM, batch: dict, key: Key[Array, ""]) -> tuple[Array, dict[str, Array]]:
        step_key, noise_key = jax.random.split(key)
        x0 = to_unit(batch["target"])
        t = jax.random.randint(step_key, (len(x0),), 0, config.diffusion.num_steps)
        x_t = q_sample(process.schedule, x0, t, jax.random.normal(noise_key, x0.shape))
        assert model.noisy is not None
        reference = to_unit(batch["reference"])
        composed = read(model.clip, matching(model), reference, batch["tokens"]).vector
        found = model.noisy(x_t, t)
        return _match(jax.lax.stop_gradient(composed), found, icm_scale(model.noisy))

    return loss


def localizer_loss(
    model: CDDICM, batch: dict, key: Key[Array, ""]
) -> tuple[Array, dict[str, Array]]:
    """The cross-entropy of each class's presence, and the squared error of the places of present.

    GeNeVA's weighs classes by their frequency and places by 1e-4 of their sum; here both are means.
    """
    assert model.localizer is not None
    logits, places = model.localizer(to_unit(batch["image"]))
    present = batch["present"]
    found = optax.sigmoid_binary_cross_entropy(logits, present).mean()
    squares = ((places - batch["places"]) ** 2).sum(-1)
    off = (squares * present).sum() / jnp.maximum(present.sum(), 1.0)
    return found + off, {"presence": found, "distance": jnp.sqrt(off)}


def _per_example(config: ConfigDict) -> Loss:
    """L_cdd of an example: the mean squared error, and γ times the bound's term in nats (eq. 11).

    Equation 6's bound is the mean over the steps, in nats; `hybrid_loss` has their sum in bits.
    """
    if not config.vlb_weight:
        return simple_loss
    weight = config.vlb_weight * math.log(2) / config.diffusion.num_steps
    return functools.partial(hybrid_loss, vlb_weight=weight)


def _encode(
    clip: CLIP,
    composer: Composer,
    reference: Float[Array, "b h w 3"],
    target: Float[Array, "b h w 3"],
    tokens: Int[Array, "b n"],
) -> tuple[Condition, Float[Array, "b d"]]:
    """What turns compose, and the summaries of their targets, in one pass over both pictures."""
    count, both = len(target), encode_image(clip, composer, jnp.concatenate([reference, target]))
    picture = Encoded(both.summary[:count], both.places[:count])
    text = encode_text(clip, composer, tokens)
    return compose(composer, reference, picture, text), both.summary[count:]


def _match(
    composed: Float[Array, "b d"], target: Float[Array, "b d"], scale: Float[Array, ""]
) -> tuple[Array, dict[str, Array]]:
    """Equation 12: by rows plus by columns, and how often a target is the first of the batch.

    Turns of the same text under the same canvas are twins that count as negatives of each other.
    """
    cosines = normalise(composed) @ normalise(target).T
    first = (cosines.argmax(1) == jnp.arange(len(cosines))).mean()
    metrics = {"recall": jax.lax.stop_gradient(first), "scale": scale}
    return contrastive_loss(composed, target, scale, directions="sum"), metrics


def _noised(
    reference: Float[Array, "b h w 3"], key: Key[Array, ""], largest: float
) -> Float[Array, "b h w 3"]:
    """References under noise of a standard deviation up to `largest`, each of its own."""
    if not largest:
        return reference
    spread_key, noise_key = jax.random.split(key)
    spread = jax.random.uniform(spread_key, (len(reference), 1, 1, 1), maxval=largest)
    return (reference + spread * jax.random.normal(noise_key, reference.shape)).clip(-1, 1)


# Where stages begin ------------------------------------------------------------------------------


def start_projections(model: CDDICM, config: ConfigDict) -> CDDICM:
    """The model whose new projections are CLIP's own, where the sizes agree.

    Pictures and texts are then aligned from the first step.
    """
    started = copied(model)
    if config.model.projections == "clip":
        own = {
            "image": getattr(model.clip.visual, "proj", None),
            "text": model.clip.text_projection,
        }
        for name, weight in own.items():
            layer: Linear = getattr(started.composer, name)
            if weight is not None and weight.shape == layer.weight.shape:
                layer.weight[...] = weight[...]
                assert layer.bias is not None
                layer.bias[...] = jnp.zeros(weight.shape[1])
    return started


def start_matcher(model: CDDICM) -> CDDICM:
    """The model whose ICM goes on by itself from what stage 1 taught the composer."""
    started = copied(model)
    started.matcher = copied(model.composer)
    return started


def start_noisy(model: CDDICM, config: ConfigDict) -> CDDICM:
    """The model whose noisy encoder is yet the image encoder, to which f is aligned."""
    started = copied(model)
    noisy = NoisyEncoder(config, rngs=nnx.Rngs(config.seed))
    visual = copied(model.clip.visual)
    if noisy.timed is None:
        noisy.visual = visual
    else:
        noisy.timed.visual = visual
    noisy.image = copied(matching(model).image)
    started.noisy = noisy
    return started


def drawn_dialogues(config: ConfigDict) -> Callable[[CDDICM], dict[str, np.ndarray]]:
    """Draws a few held-out dialogues, each under the true one, the same seeds each time.

    ICM does not guide yet: its encoder comes after.
    """
    drawing = Drawing(config, icm=0.0)

    def draw(model: CDDICM) -> dict[str, np.ndarray]:
        given = read_dialogues(config, config.samples.count, "val")
        here = jax.tree.map(gather, model)
        drawn = drawing.dialogues(here, config.seed, given, len(given.lengths))
        rows = []
        for i, texts in enumerate(given.instructions):
            rows.append(("; ".join(texts), given.pictures[i]))
            rows.append(("", drawn[i]))
        return {"dialogues": contact_sheet(rows)}

    return draw
