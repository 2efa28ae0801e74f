"""A text-conditional GAN.

Reed et al., *Generative Adversarial Text to Image Synthesis* (2016): the discriminator also learns
that a real picture under another's text is wrong (GAN-INT-CLS, algorithm 1). Zhang et al.,
*StackGAN* (2017): conditioning augmentation, and a second generator that draws the first one's
pictures anew, larger (section 3.4). The hinge loss (Lim & Ye 2017) and the penalty on the
discriminator's gradient at real pictures (R1, Mescheder et al. 2018) came later. Stage
`adversarial`, and where there is a second generator `refine`, in which the first one rests; both
players descend one scalar, in each one's term the other is held.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.diffusion.progress import Progress
from vljax.errors import UserError
from vljax.models.vector_pictures import Viewer
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.text2image.families.family import (
    Family,
    Wish,
    drawings,
    enlarged,
    make_stage,
    read_texts,
    told,
)
from vljax.training.stage import Stage

# Makes the second generator's noise another than the first one's.
_SECOND = 2**30
# One in so many real pictures is penalised in each step.
_PENALISED = 4


def stages(config: ConfigDict) -> list[Stage]:
    """`adversarial` and `refine`, where the config has them."""
    length = config.model.clip.context_length
    if "refine" in config.stages and not config.model.refiner:
        raise UserError("stages.refine: model.refiner is missing; see text2image.with_refiner")
    made = {
        "adversarial": lambda name: make_stage(
            config,
            name,
            _loss(config, _first, "generator", "discriminator"),
            [(r"generator\.", 1.0), (r"discriminator\.", 1.0)],
            length,
            pictures=drawings(replace(FAMILY, draw=draw_small), config),
        ),
        "refine": lambda name: make_stage(
            enlarged(config, config.model.refiner.side),
            name,
            _loss(config, _second, "refiner", "critic"),
            [(r"refiner\.", 1.0), (r"critic\.", 1.0)],
            length,
            pictures=drawings(FAMILY, config),
        ),
    }
    return [make(name) for name, make in made.items() if name in config.stages]


Drawn = tuple[Float[Array, "b h w 3"], Float[Array, " b"]]


def _first(model: Any, texts: Float[Array, "b e"], keys: Key[Array, "*b"]) -> Drawn:
    return model.generator(texts, keys)


def _second(model: Any, texts: Float[Array, "b e"], keys: Key[Array, "*b"]) -> Drawn:
    """The second generator's, of what the first one draws, which learns nothing by it."""
    small, _ = jax.lax.stop_gradient(model.generator(texts, keys))
    fold = jax.vmap(jax.random.fold_in, (0, None)) if keys.ndim else jax.random.fold_in
    return model.refiner(small, texts, fold(keys, _SECOND))


def _loss(config: ConfigDict, draws: Callable[..., Drawn], part: str, against: str) -> Any:
    """The loss of the part that draws, and of the one `against` it."""
    fields = config.adversarial

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        texts, images = told(model, batch["tokens"]), to_unit(batch["image"])
        others = jnp.roll(texts, 1, axis=0)
        # Some pictures are drawn of what lies between two texts (GAN-INT).
        between = jnp.arange(len(texts)) < round(fields.interpolated * len(texts))
        asked = jnp.where(between[:, None], (texts + others) / 2, texts)
        drawn, divergence = draws(model, asked, key)
        judge: Viewer = getattr(model, against)
        held = jax.lax.stop_gradient(judge)
        deceived = -held(drawn, asked).mean()

        seen = judge.look(images)
        right = judge.compare(seen, texts)
        fake = judge(jax.lax.stop_gradient(drawn), asked)
        wrong = jax.nn.relu(1 + fake).mean()
        if fields.mismatch:
            # Real pictures under the texts of others (GAN-CLS).
            wrong = 0.5 * (wrong + jax.nn.relu(1 + judge.compare(seen, others)).mean())
        penalty = _penalty(judge, images, texts)
        told_apart = jax.nn.relu(1 - right).mean() + wrong + 0.5 * fields.r1 * penalty
        # Of a value of the condition, as in StackGAN's code.
        divergence = divergence.mean() / (getattr(model, part).augment.weight.shape[-1] // 2)
        metrics = {
            "deceived": deceived,
            "right": right.mean(),
            "fake": fake.mean(),
            "penalty": penalty,
        }
        return deceived + fields.divergence * divergence + told_apart, metrics

    return loss


def _penalty(
    judge: Viewer, images: Float[Array, "b h w 3"], texts: Float[Array, "b e"]
) -> Float[Array, ""]:
    """The squared length of the discriminator's gradient at real pictures, of a part of them.

    It costs as much as all the rest of the discriminator, were it of all.
    """
    few = max(1, len(images) // _PENALISED)
    gradient = jax.grad(lambda x: judge(x, texts[:few]).sum())(images[:few])
    return jnp.square(gradient).sum((1, 2, 3)).mean()


@functools.partial(jax.jit, static_argnames="draws")
def draw_batch(
    model: Any, tokens: Int[Array, "b n"], keys: Key[Array, " b"], *, draws: Callable[..., Drawn]
) -> UInt8[Array, "b h w 3"]:
    """The pictures, one pass."""
    return to_pixels(draws(model, told(model, tokens), keys)[0])


def draw(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The pictures of a wish."""
    if model.refiner is None:
        return draw_small(model, config, wish, progress)
    tokens = read_texts(config, wish.texts)
    return draw_batch(model, jnp.asarray(tokens), wish.keys(), draws=_second)


def draw_small(
    model: Any, config: ConfigDict, wish: Wish, progress: Progress | None = None
) -> UInt8[Array, "b h w 3"]:
    """The first generator's pictures."""
    tokens = read_texts(config, wish.texts)
    return draw_batch(model, jnp.asarray(tokens), wish.keys(), draws=_first)


FAMILY = Family(name="adversarial", heeds=frozenset(), stages=stages, draw=draw)
