"""GLIDE: ADM's U-Net under a text Transformer of its own.

Nichol et al., *GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided
Diffusion Models* (2022), section 3.1. The last position of the Transformer is added to the
embedded time, all of them are attended to in every attention layer. Parameter names are those of
the published `base.pt` and `upsample.pt`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.errors import UserError
from vljax.models.layers import Embedding, LayerNorm, Linear, normal
from vljax.models.unet import KeyValue, UNet
from vljax.ops.attention import attention

_TEXT = {
    "text_length": 128,
    "text_width": 512,
    "text_layers": 16,
    "text_heads": 8,
    "vocabulary_size": 50_257,
}
_PICTURES: dict[str, Any] = {
    "model_channels": 192,
    "out_channels": 6,
    "attention_resolutions": (32, 16, 8),
    "num_head_channels": 64,
    "dropout_rate": 0.1,
}
#: The arguments of `GLIDE` for the published `base.pt` and `upsample.pt`.
PUBLISHED: dict[str, dict[str, Any]] = {
    "base": {
        **_TEXT,
        **_PICTURES,
        "image_size": 64,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": 3,
    },
    "upsample": {
        **_TEXT,
        **_PICTURES,
        "image_size": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4),
        "num_res_blocks": 2,
        "in_channels": 6,
    },
}


class _Attention(nnx.Module):
    """Each head's queries, keys and values lie together, as in the U-Net's attention."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.c_qkv = Linear(width, 3 * width, rngs=rngs)
        self.c_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        joint = self.c_qkv(x).reshape(*x.shape[:2], self.heads, -1)
        mixed = attention(*jnp.split(joint, 3, axis=-1))
        return self.c_proj(mixed.reshape(x.shape))


class _MLP(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.c_fc = Linear(width, 4 * width, rngs=rngs)
        self.c_proj = Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=False))


class _Block(nnx.Module):
    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.attn = _Attention(width, heads, rngs=rngs)
        self.mlp = _MLP(width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Transformer(nnx.Module):
    """Its own class so that names are the checkpoint's: `transformer.resblocks`."""

    def __init__(self, blocks: list[_Block]) -> None:
        self.resblocks = nnx.List(blocks)


class Told(NamedTuple):
    """A text as the U-Net takes it; the same for every step.

    Attributes:
        conditioning: Added to the embedded time.
        context: Keys and values of every attention layer.
    """

    conditioning: Float[Array, "b e"]
    context: list[KeyValue]


class GLIDE(UNet):
    """The base model, and as well the upsampler, which sees a small picture on further channels.

    Args:
        text_length: Tokens of a text.
        text_width: Width of the Transformer.
        text_layers: Its blocks.
        text_heads: Its attention heads.
        vocabulary_size: Token ids.
        rngs: Where the initial weights come from.
        **unet: Arguments of `UNet`; its context is the Transformer's.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        text_length: int,
        text_width: int,
        text_layers: int,
        text_heads: int,
        vocabulary_size: int,
        rngs: nnx.Rngs,
        **unet: Any,
    ) -> None:
        if text_width % text_heads:
            raise UserError(f"text_heads={text_heads}: give what divides text_width={text_width}")
        super().__init__(**unet, context_features=text_width, rngs=rngs)
        self.text_length = text_length
        blocks = [_Block(text_width, text_heads, rngs=rngs) for _ in range(text_layers)]
        self.transformer = _Transformer(blocks)
        self.final_ln = LayerNorm(text_width)
        self.token_embedding = Embedding(vocabulary_size, text_width, rngs=rngs)
        as_is = {"published": "n w -> n w"}
        self.positional_embedding = normal(rngs, (text_length, text_width), 0.01, **as_is)
        self.padding_embedding = normal(rngs, (text_length, text_width), 0.01, **as_is)
        self.transformer_proj = Linear(text_width, 4 * self.model_channels, rngs=rngs)

    def tell(self, tokens: Int[Array, "b n"], real: Bool[Array, "b n"]) -> Told:
        """What the U-Net is told of texts.

        Args:
            tokens: Token ids.
            real: False at padding, where each place has a vector of its own.
        """
        x = self.token_embedding(tokens) + self.positional_embedding[...]
        x = jnp.where(real[..., None], x, self.padding_embedding[...]).astype(self.dtype)
        for block in self.transformer.resblocks:
            x = block(x)
        x = self.final_ln(x)
        return Told(self.transformer_proj(x[:, -1]), self.project_context(x))

    def denoise(
        self,
        x: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        told: Told,
        small: Float[Array, "b h2 w2 3"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w o"]:
        """Predict from noisy pictures under texts.

        Args:
            x: Noisy pictures.
            t: Their times.
            told: From `tell`.
            small: Of the upsampler: the pictures that are enlarged, in [-1, 1].
            key: Turns dropout on.
        """
        if small is not None:
            enlarged = jax.image.resize(small, (*x.shape[:3], 3), "bilinear")
            x = jnp.concatenate([x, enlarged], axis=-1)
        return self(x, t, told.conditioning, told.context, key=key)
