"""Blocks that several networks of pictures share: residual blocks, changes of size, attention.

Their attribute names are those of `diffusers`, in which the checkpoints of Stable Diffusion's U-Net
and of the autoencoders are published. ADM's residual and attention blocks have names and rules of
their own, see `vljax.models.unet`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.models.layers import Conv, GroupNorm, Linear
from vljax.ops.attention import attention


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Double height and width by repeating each pixel."""
    b, h, w, c = x.shape
    doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return doubled.reshape(b, 2 * h, 2 * w, c)


def average_pool(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    """Means of size×size pixels; a rest at the right and bottom is dropped."""
    if size == 1:
        return x
    b, h, w, c = x.shape
    h, w = h // size, w // size
    blocks = x[:, : h * size, : w * size].reshape(b, h, size, w, size, c)
    return blocks.mean((2, 4), dtype=jnp.float32).astype(x.dtype)


class Upsample(nnx.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv = Conv(channels, channels, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        return self.conv(upsample(x))


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


class PixelAttention(nnx.Module):
    """Self-attention between all positions with one head, added to the input.

    Args:
        channels: Channels of input and output.
        groups: Groups of the norm.
        epsilon: Epsilon of the norm.
        rngs: Where the initial weights come from.
    """

    def __init__(self, channels: int, groups: int, epsilon: float, *, rngs: nnx.Rngs) -> None:
        self.group_norm = GroupNorm(channels, groups, epsilon)
        self.to_q = Linear(channels, channels, rngs=rngs)
        self.to_k = Linear(channels, channels, rngs=rngs)
        self.to_v = Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, zero=True, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, height, width, c = x.shape
        h = self.group_norm(x).reshape(b, height * width, 1, c)
        h = attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](h).reshape(x.shape)


class Level(nnx.Module):
    """What happens at one resolution: residual blocks, attention, a change of size at the end.

    Called with pictures alone it applies all of it; a network whose blocks take more (the time, a
    context) goes through the lists itself.

    Args:
        resnets: The residual blocks.
        attentions: The n-th follows the n-th residual block; there may be fewer, or none.
        downsample: Halves the pictures at the end.
        upsample: Doubles them.
    """

    def __init__(
        self,
        resnets: Sequence[ResnetBlock],
        attentions: Sequence[Callable] = (),
        *,
        downsample: Downsample | None = None,
        upsample: Upsample | None = None,
    ) -> None:
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List[Any](attentions)
        self.downsamplers = None if downsample is None else nnx.List([downsample])
        self.upsamplers = None if upsample is None else nnx.List([upsample])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for index, resnet in enumerate(self.resnets):
            x = resnet(x)
            if index < len(self.attentions):
                x = self.attentions[index](x)
        for resample in (*(self.downsamplers or ()), *(self.upsamplers or ())):
            x = resample(x)
        return x


class GEGLU(nnx.Module):
    """A linear layer gated by GELU of another (Shazeer, "GLU Variants", 2020)."""

    def __init__(self, features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        self.proj = Linear(features, 2 * out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        h, gate = jnp.split(self.proj(x), 2, axis=-1)
        return h * jax.nn.gelu(gate, approximate=False)


class GatedFeedForward(nnx.Module):
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
