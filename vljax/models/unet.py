"""The ADM U-Net: a denoiser of pictures.

Dhariwal & Nichol, *Diffusion Models Beat GANs on Image Synthesis* (2021), section 3. Parameter
names are those of OpenAI's guided-diffusion checkpoints.

What a picture is made from can be told in two ways, both as in GLIDE (Nichol et al. 2022, section
3.1; names of its parameters too): by a vector that is added to the embedded time, and by a context,
a sequence of vectors to which every attention attends beside the picture. SDG's network takes
neither; they are there for `cdd_icm`.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models.blocks import average_pool, upsample
from vljax.models.layers import (
    Conv,
    GroupNorm,
    Linear,
    apply,
    dropout,
    timestep_embedding,
)
from vljax.models.remat import rematerialised
from vljax.ops.attention import attention

KeyValue = tuple[Float[Array, "b n heads d"], Float[Array, "b n heads d"]]
"""Keys and values of a context in one layer."""


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 c"]:
    """Halve height and width by averaging 2×2 pixels."""
    return average_pool(x, 2)


class ResBlock(nnx.Module):
    """A residual block that listens to the time embedding.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        embedding: Length of the time embedding.
        dropout_rate: Share of features dropped before the last convolution.
        scale_shift_norm: The embedding scales and shifts the second norm, instead of being added
            before it.
        groups: Groups of the norms.
        resample: A parameter-free change of size of both branches, `"up"` or `"down"`, or None.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        *,
        dropout_rate: float,
        scale_shift_norm: bool,
        groups: int,
        resample: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout_rate = dropout_rate
        self.scale_shift_norm = scale_shift_norm
        self.resample = {
            None: None,
            "up": upsample,
            "down": halve,
        }[resample]
        # The lists hold functions beside layers so that indices are the checkpoint's.
        self.in_layers = nnx.List[Any](
            [GroupNorm(channels, groups), jax.nn.silu, Conv(channels, out_channels, 3, rngs=rngs)]
        )
        features = 2 * out_channels if scale_shift_norm else out_channels
        self.emb_layers = nnx.List[Any]([jax.nn.silu, Linear(embedding, features, rngs=rngs)])
        self.out_layers = nnx.List[Any](
            [
                GroupNorm(out_channels, groups),
                jax.nn.silu,
                dropout,
                Conv(out_channels, out_channels, 3, zero=True, rngs=rngs),
            ]
        )
        self.skip_connection = (
            None if channels == out_channels else Conv(channels, out_channels, 1, rngs=rngs)
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h2 w2 c2"]:
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        condition = apply(self.emb_layers, embedding).astype(h.dtype)[:, None, None]
        norm, activation, _, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + condition)
        h = conv(dropout(activation(h), self.dropout_rate, key))
        return h + (x if self.skip_connection is None else self.skip_connection(x))


class AttentionBlock(nnx.Module):
    """Self-attention between all positions, added to the input; a context may be attended to too.

    Args:
        channels: Channels of input and output.
        num_heads: Number of heads; divides `channels`.
        groups: Groups of the norm.
        context_features: Length of the context's vectors, or None.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        groups: int,
        *,
        context_features: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_heads = num_heads
        published = "o i 1 -> i o"
        self.norm = GroupNorm(channels, groups)
        self.qkv = Linear(channels, 3 * channels, published=published, rngs=rngs)
        self.proj_out = Linear(channels, channels, zero=True, published=published, rngs=rngs)
        self.encoder_kv = (
            None
            if context_features is None
            else Linear(context_features, 2 * channels, published=published, rngs=rngs)
        )

    def project(self, context: Float[Array, "b n f"]) -> KeyValue:
        """The keys and values that stand for a context in this layer.

        Raises:
            ValueError: the layer was built without a context.
        """
        if self.encoder_kv is None:
            raise ValueError("this network was built without context_features")
        # As for queries, each head's share of the features lies together.
        joint = self.encoder_kv(context).reshape(*context.shape[:2], self.num_heads, 2, -1)
        return joint[..., 0, :], joint[..., 1, :]

    def __call__(
        self, x: Float[Array, "b h w c"], context: KeyValue | None = None
    ) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        qkv = self.qkv(self.norm(x).reshape(b, height * width, c))
        q, k, v = jnp.moveaxis(qkv.reshape(b, -1, self.num_heads, 3, c // self.num_heads), 3, 0)
        if context is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(context, (k, v), strict=True))
        h = attention(q, k, v)
        return x + self.proj_out(h.reshape(b, -1, c)).reshape(x.shape)


class UNet(nnx.Module):
    """ADM's U-Net.

    `unet(x, t)` is a denoiser: `x` [b h w in_channels] in float32, `t` [b] in steps of the
    original schedule; the output [b h w out_channels] is float32. So is
    `unet(x, t, conditioning, context)` under a condition; both are optional, and the context comes
    from `project_context`, once for all steps.

    Args:
        image_size: Side of the pictures in pixels; tells which level `attention_resolutions`
            means. Height and width must divide by 2 for every level but the first.
        model_channels: Channels at the first level before `channel_mult`; a multiple of
            `norm_groups`.
        out_channels: 3, or 6 where the variance is learned too.
        num_res_blocks: Residual blocks a level.
        attention_resolutions: Sides in pixels at which attention follows each residual block.
        channel_mult: Factor on `model_channels` at each level.
        in_channels: Channels of the input.
        num_heads: Attention heads, where `num_head_channels` is None.
        num_head_channels: Channels a head.
        context_features: Length of the context's vectors; None builds no layers for a context.
        dropout_rate: Share of features dropped in residual blocks, when a key is given.
        scale_shift_norm: See `ResBlock`.
        norm_groups: Groups of the norms; 32 in every published model.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype of everything between the first and the last layer.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        image_size: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[float],
        in_channels: int = 3,
        num_heads: int = 1,
        num_head_channels: int | None = None,
        context_features: int | None = None,
        dropout_rate: float = 0.0,
        scale_shift_norm: bool = True,
        norm_groups: int = 32,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        levels = [int(mult * model_channels) for mult in channel_mult]
        _check(
            image_size,
            levels,
            attention_resolutions,
            num_heads,
            num_head_channels,
            norm_groups,
        )
        self.image_size = image_size
        self.model_channels = model_channels
        self.remat = remat
        self.dtype = dtype
        embedding = 4 * model_channels
        self.time_embed = nnx.List[Any](
            [
                Linear(model_channels, embedding, rngs=rngs),
                jax.nn.silu,
                Linear(embedding, embedding, rngs=rngs),
            ]
        )

        def res_block(channels: int, out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(
                channels,
                out,
                embedding,
                dropout_rate=dropout_rate,
                scale_shift_norm=scale_shift_norm,
                groups=norm_groups,
                resample=resample,
                rngs=rngs,
            )

        def attention_block(channels: int) -> AttentionBlock:
            heads = num_heads if num_head_channels is None else channels // num_head_channels
            return AttentionBlock(
                channels, heads, norm_groups, context_features=context_features, rngs=rngs
            )

        size, channels = image_size, levels[0]
        self.input_blocks = nnx.List[Any]([nnx.List([Conv(in_channels, channels, 3, rngs=rngs)])])
        skips = [channels]
        for level, out in enumerate(levels):
            for _ in range(num_res_blocks):
                block: list[Any] = [res_block(channels, out)]
                channels = out
                if size in attention_resolutions:
                    block.append(attention_block(channels))
                self.input_blocks.append(nnx.List(block))
                skips.append(channels)
            if level < len(levels) - 1:
                self.input_blocks.append(nnx.List([res_block(channels, channels, "down")]))
                skips.append(channels)
                size //= 2

        self.middle_block = nnx.List[Any](
            [
                res_block(channels, channels),
                attention_block(channels),
                res_block(channels, channels),
            ]
        )

        self.output_blocks = nnx.List[Any]([])
        for level, out in reversed(list(enumerate(levels))):
            for i in range(num_res_blocks + 1):
                block = [res_block(channels + skips.pop(), out)]
                channels = out
                if size in attention_resolutions:
                    block.append(attention_block(channels))
                if level and i == num_res_blocks:
                    block.append(res_block(channels, channels, "up"))
                    size *= 2
                self.output_blocks.append(nnx.List(block))

        self.out = nnx.List[Any](
            [
                GroupNorm(channels, norm_groups),
                jax.nn.silu,
                Conv(channels, out_channels, 3, zero=True, rngs=rngs),
            ]
        )

    def project_context(self, context: Float[Array, "b n f"]) -> list[KeyValue]:
        """What the layers attend to of a context: keys and values, in the order of the layers.

        It is the same for every step of sampling, so it is computed outside of them.

        Args:
            context: Vectors of any number, such as embedded words and patches of another picture.

        Raises:
            ValueError: the network was built without `context_features`.
        """
        context = context.astype(self.dtype)
        layers = (layer for block in self._blocks() for layer in block)
        return [layer.project(context) for layer in layers if isinstance(layer, AttentionBlock)]

    def _blocks(self) -> tuple[nnx.List[Any], ...]:
        """The blocks in the order of a call."""
        return (*self.input_blocks, self.middle_block, *self.output_blocks)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, " b"] | Int[Array, " b"],
        conditioning: Float[Array, "b e"] | None = None,
        context: Sequence[KeyValue] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w o"]:
        """Predict from noisy pictures.

        Args:
            x: Noisy pictures.
            t: Their times, in steps of the original schedule.
            conditioning: Added to the embedded time, e = 4 · `model_channels`; of an embedded
                class, a sentence, a picture.
            context: From `project_context`.
            key: Turns dropout on.
        """
        embedding = apply(self.time_embed, timestep_embedding(t, self.model_channels))
        if conditioning is not None:
            embedding = embedding + conditioning.astype(embedding.dtype)

        embedding = embedding.astype(self.dtype)
        h = x.astype(self.dtype)
        keys = _key_stream(key)
        contexts = itertools.repeat(None) if context is None else iter(context)
        run = rematerialised(_run, self.remat)

        def block_of(block: nnx.List[Any], h: Array) -> Array:
            attends = any(isinstance(layer, AttentionBlock) for layer in block)
            return run(block, h, embedding, next(contexts) if attends else None, next(keys))

        skips = []
        for block in self.input_blocks:
            h = block_of(block, h)
            skips.append(h)
        h = block_of(self.middle_block, h)
        for block in self.output_blocks:
            h = block_of(block, jnp.concatenate([h, skips.pop()], axis=-1))
        return apply(self.out, h.astype(jnp.float32))


def _run(
    block: nnx.List[Any],
    h: Array,
    embedding: Array,
    context: KeyValue | None,
    key: Key[Array, ""] | None,
) -> Array:
    """One entry of `input_blocks`, `middle_block` or `output_blocks`."""
    for i, layer in enumerate(block):
        if isinstance(layer, ResBlock):
            h = layer(h, embedding, None if key is None else jax.random.fold_in(key, i))
        else:
            h = layer(h, context) if isinstance(layer, AttentionBlock) else layer(h)
    return h


def _key_stream(key: Key[Array, ""] | None) -> Iterator[Key[Array, ""] | None]:
    """Endless keys for the blocks: independent ones, or None for ever."""
    index = 0
    while True:
        yield None if key is None else jax.random.fold_in(key, index)
        index += 1


def _check(
    image_size: int,
    levels: Sequence[int],
    attention_resolutions: Sequence[int],
    num_heads: int,
    num_head_channels: int | None,
    norm_groups: int,
) -> None:
    shrink = 2 ** (len(levels) - 1)
    if image_size % shrink:
        raise UserError(
            f"image_size={image_size} does not divide by {shrink}, which "
            f"{len(levels)} levels need: choose a multiple, or a shorter channel_mult"
        )
    sizes = [image_size // 2**level for level in range(len(levels))]
    for side in attention_resolutions:
        if side not in sizes:
            raise UserError(f"attention_resolutions has {side}: choose among the levels, {sizes}")
    for size, channels in zip(sizes, levels, strict=True):
        if channels % norm_groups:
            raise UserError(
                f"model_channels × channel_mult gives {channels} channels, not a multiple of the "
                f"{norm_groups} groups of the norms: change model_channels or norm_groups"
            )
        attends = size in attention_resolutions or size == sizes[-1]  # the middle always does
        if attends and channels % (num_head_channels or num_heads):
            raise UserError(
                f"num_heads={num_heads}, num_head_channels={num_head_channels}: give what divides "
                f"{channels} channels"
            )
