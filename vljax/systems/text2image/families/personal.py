"""Personalisation of `latent`: what a few pictures of one thing teach.

Stage `inversion` learns a word for it (Gal et al., *An Image is Worth One Word: Personalizing
Text-to-Image Generation using Textual Inversion*, 2022, eq. 2), nothing else changes. Stage
`dreambooth` fine-tunes the U-Net on a rare word before the noun (Ruiz et al., *DreamBooth: Fine
Tuning Text-to-Image Diffusion Models for Subject-Driven Generation*, 2023, section 3.2), beside
pictures of the noun alone that keep it as it was (section 3.3, eq. 2). Where a config has both, the
U-Net is fine-tuned on the word that was learnt.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import resize_and_crop
from vljax.data.source import Source
from vljax.data.text.tokenizers import Tokenizer
from vljax.diffusion.losses import ExampleLosses, denoising_loss, simple_loss
from vljax.diffusion.process import make_process
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.stable_diffusion import StableDiffusion
from vljax.ops.pixels import to_unit
from vljax.pretrained.concepts import Concept
from vljax.systems.text2image.model import latent_arguments, make_tokenizer
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`inversion`, `dreambooth`: those that the config has.

    Raises:
        UserError: the pictures are not there, or a field cannot be.
    """
    made = {"inversion": _inversion, "dreambooth": _dreambooth}
    if asked := [name for name in made if name in config.stages]:
        _check(config)
    return [made[name](config) for name in asked]


def _check(config: ConfigDict) -> None:
    """Refuse fields that do not fit each other.

    Raises:
        UserError: they do not.
    """
    fields = config.model.personal
    for name, part, has in (
        ("inversion", "vectors", bool(fields.get("vectors"))),
        ("dreambooth", "unet", bool(fields.get("unet"))),
    ):
        if (name in config.stages) != has:
            raise UserError(
                f"model.personal.{part}={fields.get(part)}: stage {name!r} learns it, so give both "
                "or neither"
            )
    for name, what in (("noun", "what the pictures show, in a word: dog"), ("word", "such as sks")):
        if not config.personal[name].strip():
            raise UserError(f"--config.personal.{name} is missing: give one, {what}")
    if not config.pretrained.sd and "diffusion" not in config.stages:
        raise UserError(
            "--config.pretrained.sd is missing: give the folder of the Stable Diffusion that learns"
        )


def personalised(model: Any, config: ConfigDict) -> tuple[StableDiffusion, Tokenizer]:
    """The Stable Diffusion that draws, and the tokenizer of its texts, with what was learnt."""
    tokenizer = read_word(config)
    return (model.sd if model.personal is None else model.personal.within(model.sd)), tokenizer


def read_word(config: ConfigDict) -> Tokenizer:
    """The config's tokenizer; where a word was learnt, one that knows it.

    Raises:
        UserError: there is no word, or it is one of the vocabulary.
    """
    tokenizer = make_tokenizer(config)
    if not (count := (config.model.get("personal") or {}).get("vectors", 0)):
        return tokenizer
    first = latent_arguments(config)["text_encoder"]["vocabulary_size"]
    return tokenizer.with_word(config.personal.word, first, count)


def subject(config: ConfigDict) -> str:
    """What stands for the thing in a prompt: the learnt word, or a rare word and the noun."""
    word, noun = config.personal.word, config.personal.noun
    return word if config.model.personal.vectors else f"{word} {noun}"


def open_pictures(config: ConfigDict, which: str) -> Source:
    """Pictures of the thing (`"pictures"`), or of what its noun names (`"prior"`).

    Args:
        config: `data`, of which `personal.<which>` says what differs.
        which: Of the two.

    Raises:
        UserError: they are not there.
    """
    fields = config.data.to_dict() | config.personal[which].to_dict()
    benchmark = open_benchmark(ConfigDict(fields))
    if which == "prior" and not fields.get("path") and benchmark.oracle is None:
        raise UserError(
            f"--config.personal.prior.path is missing: draw some 200 pictures first, "
            f'python -m vljax.generate --prompt "a photo of a {config.personal.noun}" --count 200, '
            "and give their folder; or do without, --config.personal.prior_weight=0"
        )
    return benchmark.pictures(("image",))


def _inversion(config: ConfigDict) -> Stage:
    """Eq. 2 of Gal et al.: the word under which the pictures' noise is told best."""
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))
    noun = _noun(config)

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        # With the U-Net as it was, whatever shall be fine-tuned later.
        sd = model.sd.with_words(model.personal.vectors[...])
        z0 = jax.lax.stop_gradient(sd.encode(to_unit(batch["image"])))
        context = sd.embed(batch["tokens"])

        def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return sd.unet(z, t, context)

        return denoising_loss(process, denoiser, z0, jax.random.split(key), timesteps)[0], {}

    def start(model: Any) -> Any:
        model.personal = model.personal.with_noun(model.sd, noun)
        return model

    return Stage(
        name="inversion",
        loss=loss,
        train=[(r"personal\.vectors", 1.0)],
        source=open_pictures(config, "pictures"),
        transform=_Shown(config),
        config=config.stages.inversion,
        start=start,
    )


def _dreambooth(config: ConfigDict) -> Stage:
    """Eq. 2 of Ruiz et al.: the thing's pictures, and with a weight those of its noun."""
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))
    weight = config.personal.prior_weight
    if weight < 0:
        raise UserError(f"personal.prior_weight={weight}: give 0 for none, or more")

    def loss(model: Any, batch: dict, key: Key[Array, ""]) -> Any:
        sd = model.personal.within(model.sd)
        images, tokens, weights = batch["image"], batch["tokens"], jnp.ones(len(batch["image"]))
        if weight:
            images = jnp.concatenate([images, batch["prior_image"]])
            tokens = jnp.concatenate([tokens, batch["prior_tokens"]])
            # Both halves' means, where the loss takes the mean of all.
            weights = 2 * jnp.concatenate([weights, weight * weights])
        z0, context = jax.lax.stop_gradient((sd.encode(to_unit(images)), sd.embed(tokens)))

        def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return sd.unet(z, t, context)

        def weighed(*arguments: Any) -> ExampleLosses:
            losses, terms = simple_loss(*arguments)
            return weights * losses, terms

        keys = jax.random.split(key)
        return denoising_loss(process, denoiser, z0, keys, timesteps, weighed)[0], {}

    def start(model: Any) -> Any:
        model.personal = model.personal.with_unet(model.sd)
        return model

    pictures = open_pictures(config, "pictures")
    return Stage(
        name="dreambooth",
        loss=loss,
        train=[(r"personal\.unet\.", 1.0)],
        source=_Beside(pictures, open_pictures(config, "prior")) if weight else pictures,
        transform=_Shown(config),
        config=config.stages.dreambooth,
        start=start,
    )


def _noun(config: ConfigDict) -> Sequence[int]:
    """The noun's tokens, without start and end."""
    tokenizer = make_tokenizer(config)
    row = tokenizer([config.personal.noun], 77)[0]
    return [int(i) for i in row[1 : row.argmax()]]


@dataclass(frozen=True)
class _Beside:
    """Pictures of the thing, each beside one of its noun; both begin anew as they end."""

    pictures: Source
    prior: Source

    def __len__(self) -> int:
        return len(self.pictures) * len(self.prior)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mine, others = index % len(self.pictures), index // len(self.pictures)
        return {
            "image": self.pictures[mine]["image"],
            "prior_image": self.prior[others]["image"],
        }

    @property
    def fingerprint(self) -> str:
        """Changes with either's examples."""
        return "".join(getattr(one, "fingerprint", "") for one in (self.pictures, self.prior))


class _Shown:
    """`transform(example, rng)`: pictures at the config's size, and a text by chance.

    Texts name nothing but the thing. Gal et al. have some 27 (appendix), Ruiz et al. one without
    "a photo of" (section 3.2): `personal.templates`.
    """

    def __init__(self, config: ConfigDict) -> None:
        self.side = config.data.image_size
        self.length = latent_arguments(config)["text_encoder"]["context_length"]
        self.tokenizer = read_word(config)
        self.templates = tuple(config.personal.templates)
        self.subject, self.noun = subject(config), config.personal.noun
        if not self.templates or not all("{}" in one for one in self.templates):
            raise UserError(
                f"personal.templates={self.templates}: give one or more, each with {{}} where the "
                "word belongs"
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        template = self.templates[rng.integers(len(self.templates))]
        made = {
            "image": resize_and_crop(example["image"], self.side),
            "tokens": self._read(template.replace("{}", self.subject)),
        }
        if "prior_image" in example:
            made["prior_image"] = resize_and_crop(example["prior_image"], self.side)
            made["prior_tokens"] = self._read(template.replace("{}", self.noun))
        return made

    def _read(self, text: str) -> Int[np.ndarray, " n"]:
        return self.tokenizer([text], self.length)[0]


def with_noun(config: ConfigDict, text: str, concepts: Sequence[Concept] = ()) -> str:
    """A text as those read it who did not learn the words: with nouns in their places.

    Args:
        config: Tells the word that was learnt here, if any, and its noun.
        text: The text.
        concepts: Words that were learnt elsewhere.
    """
    nouns = {one.word: one.noun for one in concepts}
    if (config.model.get("personal") or {}).get("vectors"):
        nouns[config.personal.word] = config.personal.noun
    # At once, for a noun may hold a word; of words that begin alike the longest.
    words = "|".join(re.escape(word) for word in sorted(nouns, key=len, reverse=True))
    return re.sub(words, lambda found: nouns[found[0]], text) if nouns else text
