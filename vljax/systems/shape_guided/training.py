"""How Shape-Guided Diffusion's parts are trained where nothing is published: stages and losses."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import image_grid
from vljax.data.pictures.shape_prompts import named_object
from vljax.data.source import readable
from vljax.data.text.tokenizers import captioned, with_dropped_text
from vljax.diffusion import latent
from vljax.diffusion.losses import denoising_loss
from vljax.diffusion.noise import example_keys
from vljax.diffusion.process import make_process
from vljax.diffusion.timesteps import UniformTimesteps
from vljax.errors import UserError
from vljax.models.clipseg import CLIPSeg
from vljax.models.control import drop_keys
from vljax.models.parameters import copied
from vljax.models.stable_diffusion import inpainting_network, widened
from vljax.ops.pixels import to_pixels, to_unit
from vljax.systems.shape_guided.model import ShapeGuided, make_tokenizer
from vljax.training.contrast import clip_loss
from vljax.training.mesh import gather
from vljax.training.stage import Stage

# The captions from which a picture is drawn during training.
_SHOWN = ("a photo of a red circle", "a photo of a blue square", "a photo of a green star")


def stages(config: ConfigDict) -> list[Stage]:
    """The training stages; none where Stable Diffusion is published.

    Raises:
        UserError: the data is not there, or a field cannot be.
    """
    if config.pretrained.sd:
        return []
    benchmark = open_benchmark(config.data)
    if not benchmark.captioned:
        raise UserError(
            f"data.name={config.data.name!r}: Shape-Guided Diffusion is not trained on "
            "photographs, give published weights with --config.pretrained.sd=FOLDER"
        )
    for name in ("caption_dropout", "attention_dropout"):
        if not 0 <= (share := config.diffusion[name]) <= 1:
            raise UserError(f"--config.diffusion.{name}={share} is no share: give 0 to 1")
    tokenizer = make_tokenizer(config)
    length = config.model.text_encoder.context_length
    pictures = benchmark.pictures(("image", "caption"))
    masked = benchmark.pictures(("image", "masks", "class_ids"))
    words = captioned(tokenizer, length)
    dropped = functools.partial(
        with_dropped_text, tokenizer=tokenizer, share=config.diffusion.caption_dropout
    )

    def stage(name: str, loss: Callable, part: str, source: Any, transform: Callable) -> Stage:
        start = inpaint_start if name == "inpaint" else None
        show = {"autoencoder": reconstructions, "diffusion": drawings}.get(name)
        return Stage(
            name=name,
            loss=loss,
            train=[(part, 1.0)],
            source=source,
            transform=transform,
            config=config.stages[name],
            pictures=show(config) if show else None,
            start=start,
        )

    listed = [
        stage(
            "clip",
            clip_loss(lambda model: model.sd.text_encoder),
            r"sd\.text_encoder\.",
            pictures,
            words,
        ),
        stage("autoencoder", autoencoder_loss(config), r"sd\.vae\.", pictures, words),
        stage("diffusion", diffusion_loss(config), r"sd\.unet\.", pictures, dropped(words)),
    ]
    if config.model.inpaint:
        loss = diffusion_loss(config, inpaint=True)
        hole = dropped(named_object(tokenizer, length, absent=0.0))
        listed.append(stage("inpaint", loss, r"inpaint\.", masked, hole))
    if config.model.segmenter:
        named = named_object(tokenizer, config.model.segmenter.context_length)
        listed.append(stage("segmenter", segmenter_loss, r"segmenter\.", masked, named))
    return listed


def autoencoder_loss(config: ConfigDict) -> Callable:
    """The autoencoder's, see `vljax.diffusion.latent`."""

    def loss(model: ShapeGuided, batch: dict, key: Key[Array, ""]) -> Any:
        images = to_unit(batch["image"])
        return latent.autoencoder_loss(model.sd.vae, images, key, config.autoencoder.kl_weight)

    return loss


def diffusion_loss(config: ConfigDict, inpaint: bool = False) -> Callable:
    """The denoiser's loss under captions; for `inpaint` it sees the picture without the object.

    In a share `attention_dropout` of the examples the denoiser's attention loses some of its keys,
    in another such share its attention to the caption, more or fewer from example to example. Else
    so small a network relies on the whole of its attention maps, and is at a loss where
    Inside-Outside Attention takes their greater part. The inpainting network, whose attention no
    method masks, keeps all of its keys.
    """
    process = make_process(config)
    timesteps = UniformTimesteps(len(process.schedule))

    def loss(model: ShapeGuided, batch: dict, key: Key[Array, ""]) -> Any:
        *keys, dropout_key = jax.random.split(key, 3)
        images = to_unit(batch["image"])
        z0 = model.sd.encode(images)
        context = model.sd.embed(batch["tokens"])
        network: Any
        if inpaint:
            assert model.inpaint is not None
            mask = batch["mask"].astype(jnp.float32)
            network = inpainting_network(model.sd, model.inpaint, images, mask)
        else:
            dropout = drop_keys(dropout_key, len(z0), config.diffusion.attention_dropout)
            network = functools.partial(model.sd.unet, control=dropout)

        def denoiser(z: Float[Array, "b h w c"], t: Int[Array, " b"]) -> Array:
            return network(z, t, context)

        value, _ = denoising_loss(process, denoiser, z0, keys, timesteps)
        return value, {}

    return loss


def inpaint_start(model: ShapeGuided) -> ShapeGuided:
    """The inpainting network as it begins: the U-Net, blind to its five further channels."""
    assert model.inpaint is not None
    begun = copied(model)
    begun.inpaint = widened(model.sd.unet, model.inpaint)
    return begun


def segmentation_loss(
    model: CLIPSeg, batch: dict[str, Array]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Binary cross-entropy of every pixel (Lüddecke & Ecker 2022, section 4).

    Args:
        model: The model.
        batch: `image` uint8 [b s s 3], `tokens` int [b n] and `mask` bool [b s s], the pixels that
            the text names (see `vljax.data.pictures.shape_prompts.named_object`).

    Returns:
        The mean over pixels, and `iou`: the mean overlap of the masks at probability 1/2 with the
        true ones (1 where both are empty).
    """
    images = to_unit(batch["image"])
    logits, mask = model(images, batch["tokens"]), batch["mask"].astype(bool)
    loss = optax.sigmoid_binary_cross_entropy(logits, mask.astype(jnp.float32)).mean()
    found = logits > 0
    both, either = (found & mask).sum((1, 2)), (found | mask).sum((1, 2))
    return loss, {"iou": jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0).mean()}


def segmenter_loss(model: ShapeGuided, batch: dict, key: Key[Array, ""]) -> Any:
    """CLIPSeg's, see `segmentation_loss`."""
    assert model.segmenter is not None
    return segmentation_loss(model.segmenter, batch)


def reconstructions(config: ConfigDict) -> Callable[[ShapeGuided], dict[str, np.ndarray]]:
    """Draws pictures above what the autoencoder makes of them."""
    source = open_benchmark(config.data).pictures(held_out=True)
    read = readable(source, config.data.on_corrupt, 8)
    images = np.stack([example["image"] for _, example in read])

    @jax.jit
    def draw(model: ShapeGuided) -> UInt8[Array, "b h w 3"]:
        return to_pixels(model.sd.decode(model.sd.encode(to_unit(jnp.asarray(images)))))

    def pictures(model: ShapeGuided) -> dict[str, np.ndarray]:
        both = np.concatenate([images, gather(draw(model))])
        return {"reconstructions": image_grid(both, columns=len(images))}

    return pictures


def drawings(config: ConfigDict) -> Callable[[ShapeGuided], dict[str, np.ndarray]]:
    """Draws pictures of captions, the same seeds each time."""
    process = make_process(config, config.samples.steps)
    tokenizer = make_tokenizer(config)
    length = config.model.text_encoder.context_length
    texts = [_SHOWN[i % len(_SHOWN)] for i in range(config.samples.count)]
    tokens, empty = tokenizer(texts, length), tokenizer([""], length)

    @jax.jit
    def draw(model: ShapeGuided) -> UInt8[Array, "b h w 3"]:
        side = config.data.image_size // model.sd.shrink
        latents = latent.draw_latents(
            model.sd.unet,
            process,
            model.sd.embed(jnp.asarray(tokens)),
            model.sd.embed(jnp.asarray(empty)),
            jnp.float32(config.samples.guidance_scale),
            example_keys(jax.random.key(config.seed), len(texts)),
            size=(side, side, model.sd.unet.conv_in.weight.shape[2]),
        )
        return to_pixels(model.sd.decode(latents))

    return lambda model: {"captions": image_grid(gather(draw(model)), columns=len(_SHOWN))}
