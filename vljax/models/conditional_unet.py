"""The text-conditional U-Net of latent diffusion, as in Stable Diffusion 1 and 2.

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), section 3.3.
Parameter names are those of a `diffusers` folder of a `UNet2DConditionModel`.

All its attention goes through one function that the caller may give, see `vljax.models.control`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.blocks import Downsample, GatedFeedForward, Level, ResnetBlock, Upsample
from vljax.models.control import Control, Place, plain
from vljax.models.layers import Conv, GroupNorm, LayerNorm, Linear, timestep_embedding
from vljax.models.remat import rematerialised


class TimestepEmbedding(nnx.Module):
    """Two layers on the sinusoids of the time."""

    def __init__(self, features: int, embedding: int, *, rngs: nnx.Rngs) -> None:
        self.linear_1 = Linear(features, embedding, rngs=rngs)
        self.linear_2 = Linear(embedding, embedding, rngs=rngs)

    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b e"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class Attention(nnx.Module):
    """Attention of pixels to pixels or to the context, with its projections.

    Args:
        channels: Features of the queries and of the output.
        context: Features of what keys and values are made of.
        num_heads: Number of heads; divides `channels`.
        rngs: Where the initial weights come from.
    """

    def __init__(self, channels: int, context: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.to_q = Linear(channels, channels, bias=False, rngs=rngs)
        self.to_k = Linear(context, channels, bias=False, rngs=rngs)
        self.to_v = Linear(context, channels, bias=False, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, rngs=rngs)])

    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m d"],
        control: Control,
        place: Place,
    ) -> tuple[Float[Array, "b n c"], Any]:
        query, key, value = (
            h.reshape(*h.shape[:2], self.num_heads, -1)
            for h in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended, record = control(query, key, value, place)
        return self.to_out[0](attended.reshape(x.shape)), record


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each after a norm and added to its input."""

    def __init__(self, channels: int, context: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, channels, num_heads, rngs=rngs)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, context, num_heads, rngs=rngs)
        self.norm3 = LayerNorm(channels)
        self.ff = GatedFeedForward(channels, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        context: Float[Array, "b m d"],
        control: Control,
        name: str,
        size: tuple[int, int],
    ) -> tuple[Float[Array, "b n c"], dict[str, Any]]:
        own, other = Place(f"{name}.attn1", "self", *size), Place(f"{name}.attn2", "cross", *size)
        normed = self.norm1(x)
        h, own_record = self.attn1(normed, normed, control, own)
        x = x + h
        h, other_record = self.attn2(self.norm2(x), context, control, other)
        x = x + h
        return x + self.ff(self.norm3(x)), {own.name: own_record, other.name: other_record}


class SpatialTransformer(nnx.Module):
    """A transformer block between all pixels, added to the input (Rombach et al., app. E.2.1).

    Args:
        channels: Channels of input and output.
        context: Features of the context.
        num_heads: Number of heads; divides `channels`.
        groups: Groups of the norm.
        linear_projection: Whether the checkpoint holds the projections around the transformer as
            linear layers (Stable Diffusion 2) or 1×1 convolutions (1).
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        num_heads: int,
        *,
        groups: int,
        linear_projection: bool,
        rngs: nnx.Rngs,
    ) -> None:
        published = "o i -> i o" if linear_projection else "o i 1 1 -> i o"
        self.norm = GroupNorm(channels, groups, 1e-6)
        self.proj_in = Linear(channels, channels, published=published, rngs=rngs)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(channels, context, num_heads, rngs=rngs)]
        )
        self.proj_out = Linear(channels, channels, zero=True, published=published, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b m d"],
        control: Control,
        name: str,
    ) -> tuple[Float[Array, "b h w c"], dict[str, Any]]:
        b, height, width, c = x.shape
        h = self.proj_in(self.norm(x).reshape(b, height * width, c))
        h, records = self.transformer_blocks[0](
            h, context, control, f"{name}.transformer_blocks.0", (height, width)
        )
        return x + self.proj_out(h).reshape(x.shape), records


@keeps_arguments
class ConditionalUNet(nnx.Module):
    """Stable Diffusion's U-Net.

    `unet(x, t, context)` is a denoiser: `x` [b h w in_channels] in float32, sides divisible by
    2^(levels − 1); `t` [b] in steps of the original schedule, need not be whole; `context`
    [b n context_features] an embedded text of any length. Returns [b h w out_channels] float32.
    `folders.unet_arguments` reads the arguments from a `diffusers` folder.

    Args:
        in_channels: Channels of the input: 4, or 9 in the inpainting variant, whose input is the
            noisy latents, the mask and the masked picture's latents.
        out_channels: Channels of the output.
        block_out_channels: Channels of each level.
        attention_levels: Whether each level has transformers; the middle always has one.
        layers_per_block: Residual blocks a level.
        context_features: Length of each vector of the context.
        num_heads: Attention heads, for all levels or for each.
        linear_projection: See `SpatialTransformer`.
        norm_groups: Groups of the norms.
        norm_epsilon: Epsilon of the residual blocks' norms and of the last one.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype of everything between the first and the last layer.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_levels: Sequence[bool] = (True, True, True, False),
        layers_per_block: int = 2,
        context_features: int = 768,
        num_heads: int | Sequence[int] = 8,
        linear_projection: bool = False,
        norm_groups: int = 32,
        norm_epsilon: float = 1e-5,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        levels = list(block_out_channels)
        heads = [num_heads] * len(levels) if isinstance(num_heads, int) else list(num_heads)
        _check(levels, list(attention_levels), heads, norm_groups)
        self.remat = remat
        self.dtype = dtype
        embedding = 4 * levels[0]
        self.conv_in = Conv(in_channels, levels[0], 3, rngs=rngs)
        self.time_embedding = TimestepEmbedding(levels[0], embedding, rngs=rngs)

        def resnet(channels: int, out: int) -> ResnetBlock:
            return ResnetBlock(
                channels,
                out,
                embedding=embedding,
                groups=norm_groups,
                epsilon=norm_epsilon,
                rngs=rngs,
            )

        def transformers(level: int, count: int) -> list[SpatialTransformer]:
            return [
                SpatialTransformer(
                    levels[level],
                    context_features,
                    heads[level],
                    groups=norm_groups,
                    linear_projection=linear_projection,
                    rngs=rngs,
                )
                for _ in range(count)
            ]

        last = len(levels) - 1
        channels, skips, blocks = levels[0], [levels[0]], []
        for level, out in enumerate(levels):
            resnets = [resnet(channels if i == 0 else out, out) for i in range(layers_per_block)]
            channels = out
            skips += [out] * (layers_per_block + (level < last))
            attentions = transformers(level, layers_per_block if attention_levels[level] else 0)
            down = Downsample(out, (1, 1), rngs=rngs) if level < last else None
            blocks.append(Level(resnets, attentions, downsample=down))
        self.down_blocks = nnx.List(blocks)

        self.mid_block = Level(
            [resnet(channels, channels), resnet(channels, channels)], transformers(last, 1)
        )

        blocks = []
        for level, out in reversed(list(enumerate(levels))):
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(resnet(channels + skips.pop(), out))
                channels = out
            attentions = transformers(level, layers_per_block + 1 if attention_levels[level] else 0)
            up = Upsample(out, rngs=rngs) if level else None
            blocks.append(Level(resnets, attentions, upsample=up))
        self.up_blocks = nnx.List(blocks)

        self.conv_norm_out = GroupNorm(channels, norm_groups, norm_epsilon)
        self.conv_out = Conv(channels, out_channels, 3, zero=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"] | Int[Array, " b"],
        context: Float[Array, "b n d"],
        *,
        control: Control = plain,
    ) -> Float[Array, "b h w o"]:
        """Predict from noisy latents.

        Args:
            x: Noisy latents.
            t: Their times.
            context: Embedded texts.
            control: Does the attention, see `Control`.

        Raises:
            UserError: the sides of `x` cannot be halved often enough.
        """
        return self.observed(x, t, context, control=control)[0]

    def observed(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"] | Int[Array, " b"],
        context: Float[Array, "b n d"],
        *,
        control: Control,
    ) -> tuple[Float[Array, "b h w o"], dict[str, Any]]:
        """The prediction, as `__call__` gives it, and by place's name what `control` recorded."""
        shrink = 2 ** (len(self.down_blocks) - 1)
        if x.shape[1] % shrink or x.shape[2] % shrink:
            raise UserError(
                f"latents of {x.shape[1]}×{x.shape[2]} do not divide by {shrink}: "
                "resize or pad the picture"
            )
        features = self.conv_in.weight.shape[-1]
        embedding = self.time_embedding(timestep_embedding(t, features)).astype(self.dtype)
        context = context.astype(self.dtype)
        records: dict[str, Any] = {}

        def run(name: str, block: Level, index: int, h: Array) -> Array:
            """One residual block of a level and, where there is one, the transformer after it."""

            def layer(
                resnet: ResnetBlock, transformer: SpatialTransformer | None, *inputs: Array
            ) -> tuple[Array, dict[str, Any]]:
                h, embedding, context = inputs
                h = resnet(h, embedding)
                if transformer is None:
                    return h, {}
                return transformer(h, context, control, f"{name}.attentions.{index}")

            transformer = block.attentions[index] if index < len(block.attentions) else None
            layer = rematerialised(layer, self.remat)
            h, record = layer(block.resnets[index], transformer, h, embedding, context)
            records.update({place: r for place, r in record.items() if r is not None})
            return h

        h = self.conv_in(x.astype(self.dtype))
        skips = [h]
        for level, block in enumerate(self.down_blocks):
            for index in range(len(block.resnets)):
                h = run(f"down_blocks.{level}", block, index, h)
                skips.append(h)
            if block.downsamplers is not None:
                h = block.downsamplers[0](h)
                skips.append(h)
        for index in range(len(self.mid_block.resnets)):
            h = run("mid_block", self.mid_block, index, h)
        for level, block in enumerate(self.up_blocks):
            for index in range(len(block.resnets)):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = run(f"up_blocks.{level}", block, index, h)
            if block.upsamplers is not None:
                h = block.upsamplers[0](h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(h.astype(jnp.float32)))), records


def _check(
    levels: list[int], attention_levels: list[bool], heads: list[int], norm_groups: int
) -> None:
    for name, given in (("attention_levels", attention_levels), ("num_heads", heads)):
        if len(given) != len(levels):
            raise UserError(
                f"{name}={given} has {len(given)} entries for the {len(levels)} levels of "
                f"block_out_channels={levels}: give one a level"
            )
    for channels, number in zip(levels, heads, strict=True):
        if channels % norm_groups:
            raise UserError(
                f"block_out_channels has {channels}, not a multiple of norm_groups={norm_groups}: "
                "choose channels accordingly"
            )
        if channels % number:
            raise UserError(
                f"block_out_channels has {channels}, which num_heads={number} does not divide: "
                "choose another number of heads"
            )
