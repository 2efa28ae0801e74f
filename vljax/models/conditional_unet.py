"""The text-conditional U-Net of latent diffusion, as in Stable Diffusion 1 and 2.

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), section 3.3.
Parameter names are those of a `diffusers` folder of a `UNet2DConditionModel`.

All its attention goes through one function that the caller may give, a `Control`: Inside-Outside
Attention, Prompt-to-Prompt and pictures of attention maps are such functions, and the network
itself holds no state.
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models.folders import read_json
from vljax.models.layers import Conv, GroupNorm, LayerNorm, Linear, timestep_embedding
from vljax.models.unet import Upsample
from vljax.ops.attention import attention
from vljax.ops.inside_outside import (
    SPLIT,
    TOKENS,
    inside_outside_attention,
    inside_outside_weights,
    pixel_mask,
    resize_nearest,
    token_mask,
)


class Place(NamedTuple):
    """Where in the network an attention happens; known while compiling.

    Attributes:
        name: Path of the attention's parameters, as
            `"down_blocks.0.attentions.0.transformer_blocks.0.attn1"`.
        kind: `"self"`: keys are the layer's own pixels; `"cross"`: they are the context's tokens.
        height: Rows of the layer's pixels; queries are these pixels, row after row.
        width: Columns of them.
    """

    name: str
    kind: Literal["self", "cross"]
    height: int
    width: int


Control = Callable[[Array, Array, Array, Place], tuple[Array, Any]]
"""Does the attention: `(query, key, value, place) -> (attended, record)`.

`query` [b n heads d], `key` and `value` [b m heads d] give `attended` [b n heads d]; `record` is
any pytree of arrays to hand out of the network, or None.
"""


def plain(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, None]:
    """The `Control` that changes nothing."""
    return attention(query, key, value), None


def drop_keys(key: Key[Array, ""], batch: int, share: float) -> Control:
    """Attention that loses keys, for training (Zehui et al., "DropAttention", 2019, of columns).

    What is lost after the softmax is not made up for, as in Inside-Outside Attention; there up to
    nine tenths of a map go. So an example keeps each key with a probability of its own, drawn
    from 0 to 1, in every layer anew.

    Args:
        key: Where the randomness comes from.
        batch: Number of examples.
        share: Of them, how many lose keys in self-attention; drawn again for cross-attention.
    """
    who, how, which = jax.random.split(key, 3)
    kinds = (2, batch)
    loses = jax.random.bernoulli(who, share, kinds)
    kept = jnp.where(loses, jax.random.uniform(how, kinds), 1.0)

    def control(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, None]:
        here = jax.random.fold_in(which, zlib.crc32(place.name.encode()))
        probability = kept[0 if place.kind == "self" else 1]
        stays = jax.random.bernoulli(here, probability[:, None], value.shape[:2])
        return attention(query, key, value * stays[..., None, None].astype(value.dtype)), None

    return control


def inside_outside(
    shape: Float[Array, "#b h w"],
    *,
    strength: Float[Array, ""] | float = 1.0,
    split: tuple[int, int] | None = SPLIT,
    tokens: int = TOKENS,
    token_scale: Float[Array, "#b tokens"] | float = 1.0,
    token_strength: Float[Array, ""] | float = 1.0,
    rule: Literal["corner", "centre"] = "corner",
    record: Callable[[Place], bool] = lambda place: False,
) -> Control:
    """Inside-Outside Attention in every layer (Park et al. 2024, algorithm 3).

    Args:
        shape: 1 inside the object, 0 outside; at the picture's resolution or any other of its
            aspect. Brought to each layer's resolution by picking the nearest pixel.
        strength: Of the mask on self-attention, see `pixel_mask`.
        split: How many tokens belong to the inside and to the outside, see `token_mask`; None
            leaves cross-attention as it is.
        tokens: Length of the context.
        token_scale: Factor on each token's column, see `token_mask`; may differ by example.
        token_strength: Of the mask on cross-attention, see `token_mask`.
        rule: See `resize_nearest`.
        record: Says at which places the masked maps of all heads are handed out, [b heads n m]
            float32.
    """

    def control(query: Array, key: Array, value: Array, place: Place) -> tuple[Array, Any]:
        here = resize_nearest(shape, (place.height, place.width), rule=rule)
        here = here.reshape(here.shape[0], -1)
        if place.kind == "self":
            mask = pixel_mask(here, strength)
        elif split is not None:
            mask = token_mask(
                here, split=split, tokens=tokens, scale=token_scale, strength=token_strength
            )
        else:
            weights = inside_outside_weights(query, key) if record(place) else None
            return attention(query, key, value), weights
        weights = inside_outside_weights(query, key, mask) if record(place) else None
        return inside_outside_attention(query, key, value, mask), weights

    return control


class TimestepEmbedding(nnx.Module):
    """Two layers on the sinusoids of the time."""

    def __init__(self, features: int, embedding: int, *, rngs: nnx.Rngs) -> None:
        self.linear_1 = Linear(features, embedding, rngs=rngs)
        self.linear_2 = Linear(embedding, embedding, rngs=rngs)

    def __call__(self, x: Float[Array, "b f"]) -> Float[Array, "b e"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock(nnx.Module):
    """A residual block; where it has an embedding, that is added between its convolutions.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        embedding: Length of the time embedding, or None.
        groups: Groups of the norms.
        epsilon: Epsilon of the norms.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        embedding: int | None,
        groups: int,
        epsilon: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = GroupNorm(channels, groups, epsilon)
        self.conv1 = Conv(channels, out_channels, 3, rngs=rngs)
        self.time_emb_proj = (
            None if embedding is None else Linear(embedding, out_channels, rngs=rngs)
        )
        self.norm2 = GroupNorm(out_channels, groups, epsilon)
        self.conv2 = Conv(out_channels, out_channels, 3, zero=True, rngs=rngs)
        self.conv_shortcut = (
            None if channels == out_channels else Conv(channels, out_channels, 1, rngs=rngs)
        )

    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w c2"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None and embedding is not None:
            h = h + self.time_emb_proj(jax.nn.silu(embedding))[:, None, None]
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """Halving by a convolution of stride 2.

    Args:
        channels: Channels of input and output.
        padding: Zeros before and after, in both directions: (1, 1) in the U-Net, (0, 1) in the
            autoencoder.
        rngs: Where the initial weights come from.
    """

    def __init__(self, channels: int, padding: tuple[int, int], *, rngs: nnx.Rngs) -> None:
        self.padding = padding
        self.conv = Conv(channels, channels, 3, stride=2, padding=0, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
        return self.conv(jnp.pad(x, ((0, 0), self.padding, self.padding, (0, 0))))


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


class GEGLU(nnx.Module):
    """A linear layer gated by GELU of another (Shazeer, "GLU Variants", 2020)."""

    def __init__(self, features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        self.proj = Linear(features, 2 * out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        h, gate = jnp.split(self.proj(x), 2, axis=-1)
        return h * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        # The empty place is the checkpoint's dropout, so that indices are the checkpoint's.
        self.net = nnx.List[Any](
            [
                GEGLU(features, 4 * features, rngs=rngs),
                None,
                Linear(4 * features, features, rngs=rngs),
            ]
        )

    def __call__(self, x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
        geglu, _, linear = self.net
        return linear(geglu(x))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each after a norm and added to its input."""

    def __init__(self, channels: int, context: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(channels)
        self.attn1 = Attention(channels, channels, num_heads, rngs=rngs)
        self.norm2 = LayerNorm(channels)
        self.attn2 = Attention(channels, context, num_heads, rngs=rngs)
        self.norm3 = LayerNorm(channels)
        self.ff = FeedForward(channels, rngs=rngs)

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


class Transformer(nnx.Module):
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


class Block(nnx.Module):
    """The residual blocks of one level, each followed by a transformer where the level has any."""

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attentions: Sequence[Transformer],
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(attentions)
        self.downsamplers = None if downsample is None else nnx.List([downsample])
        self.upsamplers = None if upsample is None else nnx.List([upsample])


class ConditionalUNet(nnx.Module):
    """Stable Diffusion's U-Net.

    `unet(x, t, context)` is a denoiser: `x` [b h w in_channels] in float32, sides divisible by
    2^(levels − 1); `t` [b] in steps of the original schedule, need not be whole; `context`
    [b n context_features] an embedded text of any length. Returns [b h w out_channels] float32.
    `published_arguments` reads the arguments from a `diffusers` folder.

    Args:
        in_channels: Channels of the input: 4, or 9 in the inpainting variant, whose input is the
            noisy latents, the mask and the masked picture's latents.
        out_channels: Channels of the output.
        block_out_channels: Channels of each level.
        attention_levels: Whether each level has transformers; the middle always has one.
        layers_per_block: Residual blocks a level.
        context_features: Length of each vector of the context.
        num_heads: Attention heads, for all levels or for each.
        linear_projection: See `Transformer`.
        norm_groups: Groups of the norms.
        norm_epsilon: Epsilon of the residual blocks' norms and of the last one.
        remat: Recompute each block's activations in the backward pass, to save memory.
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
        remat: bool = False,
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

        def transformers(level: int, count: int) -> list[Transformer]:
            return [
                Transformer(
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
            blocks.append(Block(resnets, attentions, downsample=down))
        self.down_blocks = nnx.List(blocks)

        self.mid_block = Block(
            [resnet(channels, channels), resnet(channels, channels)], transformers(last, 1)
        )

        blocks = []
        for level, out in reversed(list(enumerate(levels))):
            resnets = []
            for _ in range(layers_per_block + 1):
                resnets.append(resnet(channels + skips.pop(), out))
                channels = out
            attentions = transformers(level, layers_per_block + 1 if attention_levels[level] else 0)
            up = Upsample(out, True, rngs=rngs) if level else None
            blocks.append(Block(resnets, attentions, upsample=up))
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

        def run(name: str, block: Block, index: int, h: Array) -> Array:
            """One residual block of a level and, where there is one, the transformer after it."""

            def layer(
                resnet: ResnetBlock, transformer: Transformer | None, *inputs: Array
            ) -> tuple[Array, dict[str, Any]]:
                h, embedding, context = inputs
                h = resnet(h, embedding)
                if transformer is None:
                    return h, {}
                return transformer(h, context, control, f"{name}.attentions.{index}")

            transformer = block.attentions[index] if index < len(block.attentions) else None
            layer = jax.checkpoint(layer) if self.remat else layer
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


# What a config may say that this network does not do, with the values that it does.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0, 0.0),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1, 1.0),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1, 1.0),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
# What needs no say here: the size is free, and softmax is float32 as it is; the rest belongs to
# what is fixed above.
_FREE = (
    "sample_size",
    "upcast_attention",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "mid_block_only_cross_attention",
    "projection_class_embeddings_input_dim",
)
_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}


def published_arguments(folder: str | os.PathLike) -> dict[str, Any]:
    """The arguments of `ConditionalUNet` for the network of a `diffusers` folder.

    Args:
        folder: Holds the network's `config.json`.

    Raises:
        UserError: there is no such file, or it describes a network of another architecture.
    """
    config = read_config(folder, "UNet2DConditionModel", _DEFAULTS, _FIXED, _FREE)
    down, up = config["down_block_types"], config["up_block_types"]
    for block in down:
        if block not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise UserError(
                f"{folder}: down_block_types has {block!r}, which vljax does not build: give the "
                "U-Net of Stable Diffusion 1 or 2"
            )
    expected = [block.replace("Down", "Up") for block in reversed(down)]
    if list(up) != expected:
        raise UserError(
            f"{folder}: up_block_types={up}, but vljax only builds {expected} here: give the U-Net "
            "of Stable Diffusion 1 or 2"
        )
    # The published configs call the number of heads attention_head_dim.
    heads = config["attention_head_dim"]
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "block_out_channels": tuple(config["block_out_channels"]),
        "attention_levels": tuple(block == "CrossAttnDownBlock2D" for block in down),
        "layers_per_block": config["layers_per_block"],
        "context_features": config["cross_attention_dim"],
        "num_heads": heads if isinstance(heads, int) else tuple(heads),
        "linear_projection": config["use_linear_projection"],
        "norm_groups": config["norm_num_groups"],
        "norm_epsilon": config["norm_eps"],
    }


def read_config(
    folder: str | os.PathLike,
    architecture: str,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, tuple[Any, ...]],
    free: Sequence[str],
) -> dict[str, Any]:
    """The fields of a `diffusers` folder's `config.json` that describe the network.

    Args:
        folder: Holds the file.
        architecture: The only `_class_name` that is accepted.
        defaults: The fields that are returned, with the values of those the file leaves out.
        fixed: Fields with the values that are accepted.
        free: Fields whose value does not matter.

    Raises:
        UserError: the file is missing or unreadable, or describes another architecture.
    """
    path = Path(folder) / "config.json"
    config = read_json(path)
    if (name := config.get("_class_name")) != architecture:
        raise UserError(
            f"{path} describes a {name!r}, but a {architecture!r} is needed: give its folder"
        )
    for field, value in config.items():
        if field.startswith("_") or field in free or field in defaults:
            continue
        if value not in fixed.get(field, (None, False)):
            raise UserError(
                f"{path}: {field}={value!r} is an architecture that vljax does not build: give a "
                "folder of Stable Diffusion 1 or 2"
            )
    return {field: config.get(field, default) for field, default in defaults.items()}
