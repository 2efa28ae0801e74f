"""Stable Diffusion: an autoencoder, a U-Net in its latents, and a text tower, as one model.

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022). The parts are
named as the subfolders of a `diffusers` pipeline, which loads as it is:

    arguments = stable_diffusion_arguments(folder)
    sd = jax.eval_shape(lambda: StableDiffusion(**arguments, rngs=nnx.Rngs(0)))
    sd = pretrained.load(sd, folder)
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.autoencoder import AutoencoderKL
from vljax.models.clip import CLIP, TextTransformer
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.control import Control, Network, plain
from vljax.models.parameters import copied, named_parameters, with_parameters
from vljax.ops.inside_outside import resize_nearest


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

    def check_side(self, side: int) -> None:
        """Refuse pictures that it cannot draw.

        Raises:
            UserError: `side`, `data.image_size` of a run, does not divide by `multiple`.
        """
        if side % self.multiple:
            raise UserError(
                f"--config.data.image_size={side} does not divide by {self.multiple}: choose a "
                "multiple"
            )

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

    def with_words(self, vectors: Float[Array, "n d"]) -> "StableDiffusion":
        """One whose text tower reads `n` tokens more, those after its last; this stays as it is.

        Args:
            vectors: Their embeddings, such as textual inversion learns.
        """
        told = copied(self)
        table = told.text_encoder.token_embedding.weight[...]
        rows = jnp.concatenate([table, vectors.astype(table.dtype)])
        told.text_encoder.token_embedding.weight = nnx.Param(rows)
        return told


def with_and_without(
    network: Network,
    context: Float[Array, "b n d"],
    empty: Float[Array, "#b n d"],
    control_at: Callable[[Int[Array, " 2*b"]], Control] = lambda t: plain,
) -> Callable[[Float[Array, "2*b h w c"], Int[Array, " 2*b"]], Float[Array, "2*b h w c"]]:
    """The denoiser that classifier-free guidance asks: under texts, then under none.

    Args:
        network: The network.
        context: The embedded texts.
        empty: The embedded empty text.
        control_at: From the times of a step, who does the attention of both halves of the batch.
    """
    both = jnp.concatenate([context, jnp.broadcast_to(empty, context.shape)])
    return lambda x, t: network(x, t, both, control=control_at(t))


def inpainting_network(
    sd: StableDiffusion,
    unet: Network,
    images: Float[Array, "b h w 3"],
    mask: Float[Array, "#b h w"],
) -> Network:
    """An inpainting U-Net (ibid., section 4.5) as one of noisy latents and texts alone.

    It sees noisy latents, the mask, and the latents of the picture whose pixels under the mask are
    grey, in this order of channels. The mask's corner pixels are picked, as torch's `nearest` does,
    with which the published network was trained.

    Args:
        sd: Gives the latents.
        unet: A `ConditionalUNet` of 2c + 1 channels.
        images: What is to be inpainted, in [-1, 1].
        mask: 1 where it is to draw, 0 elsewhere.

    Returns:
        The network, also for batches of several times as many rows, such as the two halves of
        classifier-free guidance.
    """
    masked = sd.encode(jnp.where(mask[..., None] == 1, 0.0, images))
    small = resize_nearest(mask, (masked.shape[1], masked.shape[2]), rule="corner")
    where = jnp.broadcast_to(small[..., None], (*masked.shape[:-1], 1))
    seen = jnp.concatenate([where, masked], axis=-1)

    def network(
        x: Float[Array, "n*b h2 w2 c"],
        t: Int[Array, " n*b"],
        context: Float[Array, "n*b n d"],
        /,
        *,
        control: Control = plain,
    ) -> Float[Array, "n*b h2 w2 c"]:
        tiled = jnp.tile(seen, (len(x) // len(seen), 1, 1, 1))
        return unet(jnp.concatenate([x, tiled], axis=-1), t, context, control=control)

    return network


def widened(unet: ConditionalUNet, wide: ConditionalUNet) -> ConditionalUNet:
    """`wide` with the weights of `unet`, blind to the further channels of its input.

    So the inpainting network's training begins.

    Args:
        unet: Gives the weights.
        wide: The same network but for more input channels.
    """
    weights, name = dict(named_parameters(unet)), "conv_in.weight"
    added = named_parameters(wide)[name].shape[2] - weights[name].shape[2]
    weights[name] = jnp.pad(weights[name], ((0, 0), (0, 0), (0, added), (0, 0)))
    return with_parameters(wide, weights)
