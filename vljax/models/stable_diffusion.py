"""Stable Diffusion: an autoencoder, a U-Net in its latents, and a text tower, as one model.

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022). The parts are
named as the subfolders of a `diffusers` pipeline, which loads as it is:

    sd = jax.eval_shape(lambda: StableDiffusion(**published_arguments(folder), rngs=nnx.Rngs(0)))
    sd = pretrained.load(sd, folder)
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models import autoencoder, conditional_unet
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.clip import ACTIVATIONS, CLIP, TextTransformer
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders import read_json


class StableDiffusion(nnx.Module):
    """The three networks.

    Args:
        vae: Arguments of `AutoencoderKL`.
        unet: Arguments of `ConditionalUNet`.
        text_encoder: Arguments of `TextTransformer`; with those of an image tower, of a `CLIP`,
            whose text tower then also judges pictures.
        rngs: Where the initial weights come from.

    Raises:
        UserError: the parts do not fit each other.
    """

    def __init__(
        self,
        *,
        vae: Mapping[str, Any],
        unet: Mapping[str, Any],
        text_encoder: Mapping[str, Any],
        rngs: nnx.Rngs,
    ) -> None:
        if (wanted := unet["context_features"]) != (width := text_encoder["text_width"]):
            raise UserError(
                f"unet.context_features={wanted}, but the text tower gives text_width={width}: "
                "make them equal"
            )
        self.vae = AutoencoderKL(**vae, rngs=rngs)
        self.unet = ConditionalUNet(**unet, rngs=rngs)
        tower = CLIP if "image_size" in text_encoder else TextTransformer
        self.text_encoder = tower(**text_encoder, rngs=rngs)

    @property
    def shrink(self) -> int:
        """Pixels to a latent, in both directions."""
        return 2 ** (len(self.vae.encoder.down_blocks) - 1)

    @property
    def multiple(self) -> int:
        """What the sides of a picture must divide by."""
        return self.shrink * 2 ** (len(self.unet.down_blocks) - 1)

    @property
    def tokens(self) -> int:
        """Length of the context."""
        return self.text_encoder.context_length

    def encode(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """Most likely latents of pictures in [-1, 1], at the scale of diffusion."""
        return self.vae.encode(images).mean * self.vae.scaling_factor

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """The pictures of latents at the scale of diffusion; about [-1, 1]."""
        return self.vae.decode(latents / self.vae.scaling_factor)

    def embed(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        """Texts as the U-Net reads them, float32."""
        return self.text_encoder.hidden_states(tokens).astype(jnp.float32)


def published_arguments(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The arguments of `StableDiffusion` for a `diffusers` folder.

    Args:
        folder: Holds `vae`, `unet` and `text_encoder`, each with its `config.json`.

    Raises:
        UserError: one of them is missing or unreadable, or of another architecture.
    """
    path = Path(folder)
    return {
        "vae": autoencoder.published_arguments(path / "vae"),
        "unet": conditional_unet.published_arguments(path / "unet"),
        "text_encoder": _text_arguments(path / "text_encoder" / "config.json"),
    }


# A text tower's fields by our names, and the values of those that its config leaves out.
_TEXT_FIELDS = {
    "text_width": ("hidden_size", 512),
    "text_layers": ("num_hidden_layers", 12),
    "context_length": ("max_position_embeddings", 77),
    "vocabulary_size": ("vocab_size", 49_408),
    "activation": ("hidden_act", "quick_gelu"),
}


def _text_arguments(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if (kind := config.get("model_type")) != "clip_text_model":
        raise UserError(
            f"{path}: model_type={kind!r}, but 'clip_text_model' is needed: give a folder of "
            "Stable Diffusion 1 or 2"
        )
    arguments = {
        ours: config.get(theirs, default) for ours, (theirs, default) in _TEXT_FIELDS.items()
    }
    width, heads = arguments["text_width"], config.get("num_attention_heads", 8)
    for field, value, built in (
        ("intermediate_size", config.get("intermediate_size", 2048), (4 * width,)),
        ("layer_norm_eps", config.get("layer_norm_eps", 1e-5), (1e-5,)),
        ("hidden_act", arguments["activation"], tuple(ACTIVATIONS)),
    ):
        if value not in built:
            raise UserError(
                f"{path}: {field}={value!r}, but vljax only builds {built} here: give the text "
                "tower of Stable Diffusion 1 or 2"
            )
    return {**arguments, "head_channels": width // heads}
