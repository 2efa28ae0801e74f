"""What the system asks of a family: its training stages, its pictures, its likelihood."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import Benchmark, open_benchmark
from vljax.data.pictures.images import image_grid, image_transform, resize_and_crop
from vljax.data.source import Source, Transform, readable
from vljax.data.text.tokenizers import Tokenizer, captioned, with_dropped_text
from vljax.errors import UserError
from vljax.pretrained.concepts import Concept
from vljax.systems.text2image.model import embed_texts, make_tokenizer
from vljax.training.mesh import gather
from vljax.training.stage import Stage


@dataclass(frozen=True)
class Wish:
    """What shall be drawn, and how; None where the config says it.

    Attributes:
        texts: One a picture.
        seeds: One a picture; a picture depends on its own only.
        negative: What guidance turns away from.
        guidance_scale: w of cond + w·(cond − uncond).
        sampler: Of diffusion.
        steps: Of diffusion.
        temperature: Of codes.
        top_k: Of codes: draw among so many; 0 for all.
        size: Height and width of the pictures, where they can differ from the config's.
        image: Begin with this picture, at that size.
        mask: Draw only where it is true.
        strength: How far `image` is noised, as a share of all steps.
        clip_scale: Of guidance by CLIP; 0 for none.
        concept: Words that the text tower learnt elsewhere.
    """

    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative: str = ""
    guidance_scale: float | None = None
    sampler: str | None = None
    steps: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    size: tuple[int, int] | None = None
    image: UInt8[np.ndarray, "h w 3"] | None = None
    mask: np.ndarray | None = None
    strength: float = 1.0
    clip_scale: float | None = None
    concept: tuple[Concept, ...] = ()

    def filled(self, config: ConfigDict) -> "Wish":
        """With what the config says where nothing was said."""
        names = ("guidance_scale", "clip_scale", "sampler", "steps", "temperature", "top_k")
        usual = {n: config.samples[n] for n in names if getattr(self, n) is None}
        return replace(self, **usual)

    def keys(self) -> Key[Array, " b"]:
        """A key for each picture."""
        return jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32))


Likelihood = Callable[[Any, ConfigDict, dict[str, Any], Key[Array, ""]], Float[Array, " b"]]
Draw = Callable[[Any, ConfigDict, Wish, Any], UInt8[Array, "b h w 3"]]


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: Of `config.family`.
        heeds: Which fields of a `Wish` beside texts and seeds change its pictures.
        stages: `stages(config) -> training stages` after `clip`.
        draw: `draw(model, config, wish, progress) -> pictures`; a filled wish, no compilation for
            other texts, seeds, scales, pictures and masks.
        bits: `bits(model, config, examples, key) -> bits per dimension [b]`, of its own bound or
            likelihood of pictures at 8-bit levels under their texts; None where it has none.
        nats: Likewise of a picture's codes, in nats a code; None where it draws none.
    """

    name: str
    heeds: frozenset[str]
    stages: Callable[[ConfigDict], list[Stage]]
    draw: Draw
    bits: Likelihood | None = None
    nats: Likelihood | None = None


# What families' stages share -------------------------------------------------------------------


def open_captions(config: ConfigDict, *, held_out: bool = False) -> Source:
    """Pictures with their captions.

    Raises:
        UserError: the data is not there, or has no captions.
    """
    benchmark: Benchmark = open_benchmark(config.data)
    if not benchmark.captioned:
        raise UserError(
            f"data.name={config.data.name!r} has no captions: choose scenes, coco, cub or oxford102"
        )
    return benchmark.pictures(("image", "captions"), held_out=held_out)


def first_pictures(
    config: ConfigDict, count: int, *, held_out: bool = False
) -> UInt8[np.ndarray, "n s s 3"]:
    """The first pictures at the config's size, as many as can be read up to `count`."""
    source, side = open_captions(config, held_out=held_out), config.data.image_size
    read = readable(source, config.data.on_corrupt, count)
    return np.stack([resize_and_crop(example["image"], side) for _, example in read])


def read_texts(config: ConfigDict, texts: Sequence[str]) -> Int[np.ndarray, "b n"]:
    """Tokens of texts as CLIP reads them."""
    return make_tokenizer(config)(texts, config.model.clip.context_length)


def caption_transform(
    config: ConfigDict,
    length: int,
    dropped: float = 0.0,
    *,
    tokenizer: Tokenizer | None = None,
) -> Transform:
    """An example's arrays: `image` uint8 [s s 3] and `tokens` int32 [length].

    Args:
        config: `data`, and what the tokenizer needs.
        length: Tokens.
        dropped: The share of examples that get the empty text's.
        tokenizer: Another than the config's.
    """
    tokenizer = tokenizer or make_tokenizer(config)
    words = captioned(tokenizer, length)
    square = image_transform(config.data.image_size, keep=("captions",))

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return words(square(example, rng), rng)

    return with_dropped_text(transform, tokenizer, dropped) if dropped else transform


def make_stage(
    config: ConfigDict,
    name: str,
    loss: Callable,
    train: list[tuple[str, float]],
    length: int,
    *,
    dropped: float = 0.0,
    transform: Transform | None = None,
    pictures: Callable | None = None,
    start: Callable | None = None,
) -> Stage:
    """A stage over captioned pictures."""
    return Stage(
        name=name,
        loss=loss,
        train=train,
        source=open_captions(config),
        transform=transform or caption_transform(config, length, dropped),
        config=config.stages[name],
        pictures=pictures,
        start=start,
    )


def enlarged(config: ConfigDict, side: int) -> ConfigDict:
    """The config with data of a second network's size."""
    larger = config.copy_and_resolve_references()
    larger.data.image_size = side
    return larger


def told(model: Any, tokens: Array) -> Float[Array, "b e"]:
    """What `variational` and `adversarial` know of texts; no gradient reaches CLIP."""
    return jax.lax.stop_gradient(embed_texts(model, tokens))


# The captions from which a picture is drawn during training.
_SHOWN = ("a photo of a red circle", "a photo of a blue square", "a photo of a green star")


def drawings(family: Family, config: ConfigDict) -> Callable[[Any], dict[str, np.ndarray]]:
    """Pictures of a few captions, the same seeds each time."""
    count = config.samples.count
    texts = tuple(_SHOWN[i % len(_SHOWN)] for i in range(count))
    wish = Wish(texts, tuple(range(count))).filled(config)

    def pictures(model: Any) -> dict[str, np.ndarray]:
        made = gather(family.draw(model, config, wish, None))
        return {"captions": image_grid(made, columns=len(_SHOWN))}

    return pictures
