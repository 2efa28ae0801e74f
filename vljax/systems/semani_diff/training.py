"""How SeMani-Diff's parts are trained where nothing is published: stages and losses."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.entities import grow
from vljax.data.pictures.images import contact_sheet
from vljax.data.scenes import BACKGROUNDS, CLASSES, SHAPES
from vljax.data.scenes.shapes import signed_distance
from vljax.data.scenes.wording import listed
from vljax.data.source import Transform
from vljax.data.text.tokenizers import Tokenizer, with_dropped_text
from vljax.diffusion import latent
from vljax.diffusion.losses import denoising_loss
from vljax.diffusion.process import make_process
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.alignment import inner_tokens, masked_crops
from vljax.models.parameters import copied, named_parameters, with_parameters
from vljax.models.stable_diffusion import inpainting_network
from vljax.ops.pixels import to_unit
from vljax.ops.similarity import clip_scale, contrastive_loss, late_interaction_loss
from vljax.systems.semani_diff.method import draw, make_batch
from vljax.systems.semani_diff.model import SemaniDiff, make_tokenizer
from vljax.training.mesh import gather
from vljax.training.stage import Stage

_FIELDS = ("image", "captions", "masks", "class_ids", "background")
_WORDINGS = ("{}", "a {}", "a photo of a {}")


def stages(config: ConfigDict) -> list[Stage]:
    """The training stages; none where Stable Diffusion is published.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    if config.pretrained.sd:
        return []
    benchmark = open_benchmark(config.data)
    if benchmark.oracle is None:
        raise UserError(
            f"data.name={config.data.name!r}: SeMani-Diff is not trained on photographs, give "
            "published weights with --config.pretrained.sd=FOLDER"
        )
    for name in ("text_dropout", "picture_dropout"):
        if not 0 <= (share := config.diffusion[name]) <= 1:
            raise UserError(f"--config.diffusion.{name}={share} is no share: give 0 to 1")
    tokenizer = make_tokenizer(config)
    source = benchmark.pictures(_FIELDS)
    length = config.model.text_encoder.context_length
    drawn = manipulated(tokenizer, length, config.diffusion.picture_dropout)
    drawn = with_dropped_text(drawn, tokenizer, config.diffusion.text_dropout)
    crops = aligned(tokenizer, config.model.clip.context_length, config.model.clip.image_size)

    def stage(name: str, loss: Callable, train: Any, transform: Transform, **more: Any) -> Stage:
        return Stage(
            name=name,
            loss=loss,
            train=train,
            source=source,
            transform=transform,
            config=config.stages[name],
            **more,
        )

    return [
        stage("clip", clip_loss, [(r"clip\.", 1.0)], crops),
        stage("autoencoder", autoencoder_loss(config), [(r"sd\.vae\.", 1.0)], drawn),
        stage(
            "inpaint",
            inpainting_loss(config),
            # The text tower begins as CLIP's, which knows the words: it moves slowly.
            [(r"sd\.unet\.", 1.0), (r"sd\.text_encoder\.", 0.3)],
            drawn,
            start=with_clips_words,
            pictures=manipulations(config),
        ),
    ]


# What is learned from ----------------------------------------------------------------------------


def named_entities(
    example: dict[str, Any],
) -> list[tuple[tuple[str, str], Bool[np.ndarray, "h w"]]]:
    """The entities of a scene: two names for each, from short to full, and its mask."""
    found = []
    for label, mask in zip(example["class_ids"], example["masks"], strict=True):
        if label >= 0 and mask.any():
            name = CLASSES[label]
            found.append(((name.split()[-1], name), mask))
    tone = BACKGROUNDS[int(example["background"])]
    around = ~example["masks"].any(0)
    return [*found, (("background", f"{tone} background"), around)]


def aligned(tokenizer: Tokenizer, length: int, side: int) -> Transform:
    """From a scene to a caption and one of its entities, cropped and masked, with a name for it.

    Returns:
        `transform(example, rng) -> {"image", "tokens", "crop", "mask", "name"}`, as `clip_loss`
        takes them; `tokens` and `name` are tokens.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        entities = named_entities(example)
        names, mask = entities[rng.integers(len(entities))]
        name = _WORDINGS[rng.integers(len(_WORDINGS))].format(names[rng.integers(2)])
        crop, small = masked_crops(example["image"], mask[None], side)
        caption = example["captions"][rng.integers(len(example["captions"]))]
        tokens, named = tokenizer([caption, name], length, warn=False)
        told = {"image": example["image"], "tokens": tokens}
        return {**told, "crop": crop[0], "mask": small[0], "name": named}

    return transform


def manipulated(tokenizer: Tokenizer, length: int, whole: float) -> Transform:
    """From a scene to a mask and the text of what is under it.

    In a share `whole` of the examples the mask is everything and the text a caption. Else it covers
    an entity, or two objects at once, and tells nothing of the shape under it: it is grown, or
    joined with another shape, or a box.

    Returns:
        `transform(example, rng) -> {"image", "mask", "tokens"}`.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        entities = named_entities(example)
        objects = entities[:-1]
        if rng.random() < whole:
            mask = np.ones(example["image"].shape[:2], bool)
            text = example["captions"][rng.integers(len(example["captions"]))]
        elif len(objects) > 1 and rng.random() < 0.2:
            order = rng.permutation(len(objects))[:2]
            mask = np.any([loose(objects[i][1], rng) for i in order], axis=0)
            text = listed([f"a {objects[i][0][1]}" for i in order])
        else:
            place = rng.integers(len(entities))
            names, mask = entities[place]
            inside = place < len(objects)
            mask = loose(mask, rng) if inside else grow(mask, rng.uniform(0, 2))
            text = _WORDINGS[rng.integers(len(_WORDINGS))].format(names[1])
        tokens = tokenizer([text], length, warn=False)[0]
        return {"image": example["image"], "mask": mask, "tokens": tokens}

    return transform


def loose(mask: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A mask that covers an object without telling its shape."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    kind = rng.random()
    if kind < 0.2:
        mask = np.outer(mask.any(1), mask.any(0))
    elif kind < 0.7:
        shape = SHAPES[rng.integers(len(SHAPES))]
        radius = max(len(rows), len(columns)) / 2 * rng.uniform(0.8, 1.2)
        u = (np.arange(mask.shape[1]) - columns.mean()) / radius
        v = (np.arange(mask.shape[0]) - rows.mean()) / radius
        other = signed_distance(shape, u[None].astype(np.float32), v[:, None].astype(np.float32))
        mask = mask | (other <= 0)
    return grow(mask, rng.uniform(0, 4))


# Losses ------------------------------------------------------------------------------------------


def clip_loss(model: SemaniDiff, batch: dict, key: Key[Array, ""]) -> Any:
    """Masked crops find their names, tokens of pictures those of captions, pictures captions.

    The first is what OVSeg trains CLIP and its mask prompt by, the second FILIP's late interaction,
    the third CLIP's contrast: their sum aligns by crops and by tokens, and judges pictures.
    """
    clip = model.clip
    assert clip is not None
    scale = clip_scale(clip.logit_scale[...])
    crops = clip.encode_image(batch["crop"], mask=batch["mask"])
    named = contrastive_loss(crops, clip.encode_text(batch["name"]), scale)
    seen = clip.image_tokens(to_unit(batch["image"]), whole=True)
    told = clip.text_tokens(batch["tokens"])
    own = inner_tokens(batch["tokens"])
    tokens = late_interaction_loss(seen[:, 1:], told, scale, b_counts=own)
    end = batch["tokens"].argmax(-1)[:, None, None]
    caption = jnp.take_along_axis(told, end, axis=1)[:, 0]
    whole = contrastive_loss(seen[:, 0], caption, scale)
    metrics = {"crops": named, "tokens": tokens, "whole": whole, "scale": scale}
    return named + tokens + whole, metrics


def autoencoder_loss(config: ConfigDict) -> Callable:
    """The autoencoder's, see `vljax.diffusion.latent`."""

    def loss(model: SemaniDiff, batch: dict, key: Key[Array, ""]) -> Any:
        images = to_unit(batch["image"])
        return latent.autoencoder_loss(model.sd.vae, images, key, config.autoencoder.kl_weight)

    return loss


def with_clips_words(model: SemaniDiff) -> SemaniDiff:
    """The model whose U-Net reads what CLIP's text tower makes of texts."""
    begun = copied(model)
    words = named_parameters(begun.clip)
    own = {name: words[name] for name in named_parameters(begun.sd.text_encoder)}
    begun.sd.text_encoder = with_parameters(begun.sd.text_encoder, own)
    return begun


def inpainting_loss(config: ConfigDict) -> Callable:
    """Eq. 14: the squared error of the prediction under masked picture and text."""
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))

    def loss(model: SemaniDiff, batch: dict, key: Key[Array, ""]) -> Any:
        images, mask = to_unit(batch["image"]), batch["mask"].astype(jnp.float32)
        z0 = model.sd.encode(images)
        network = inpainting_network(model.sd, model.sd.unet, images, mask)
        context = model.sd.embed(batch["tokens"])

        def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return network(z, t, context)

        value, _ = denoising_loss(process, denoiser, z0, jax.random.split(key), timesteps)
        return value, {}

    return loss


# What it looks like ------------------------------------------------------------------------------


def manipulations(config: ConfigDict) -> Callable[[SemaniDiff], dict[str, np.ndarray]]:
    """Draws manipulations of held-out scenes in their true masks, the same seeds each time."""
    process = make_process(config, config.samples.steps)
    tokenizer = make_tokenizer(config)
    wishes = list(open_benchmark(config.data).manipulations(config.samples.count))
    images = np.stack([one.image for one in wishes])
    known = [one.mask for one in wishes if one.mask is not None]
    masks = np.stack([grow(mask, config.samples.grow) for mask in known])

    def rows(drawn: Any) -> Sequence[tuple[str, np.ndarray]]:
        white = np.repeat(np.uint8(255) * masks[..., None], 3, axis=-1)
        return [("before", images), ("mask", white), ("after", drawn)]

    @functools.lru_cache(maxsize=1)
    def batch() -> Any:
        return make_batch(
            tokenizer,
            config.model.text_encoder.context_length,
            images,
            masks,
            [one.text for one in wishes],
            guidance_scale=config.samples.guidance_scale,
            seeds=list(range(len(wishes))),
        )

    def pictures(model: SemaniDiff) -> dict[str, np.ndarray]:
        drawn = gather(draw(model.sd, process, batch(), sampler=config.samples.sampler))
        return {"manipulations": contact_sheet(list(rows(drawn)))}

    return pictures
