"""The KL autoencoder of latent diffusion: pictures to latents at an eighth of the side, and back.

Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models* (2022), section 3.1
and appendix G. Parameter names are those of a `diffusers` folder of an `AutoencoderKL`; those that
the attention had before 2023 are read as well.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.blocks import Downsample, Level, PixelAttention, ResnetBlock, Upsample
from vljax.models.layers import Conv, GroupNorm
from vljax.models.remat import rematerialised

Tensor = TypeVar("Tensor")

_EPSILON = 1e-6


class Gaussian(NamedTuple):
    """A normal distribution with independent components, float32.

    Attributes:
        mean: Its mean, and most likely value.
        log_variance: Logarithm of the variance.
    """

    mean: Float[Array, "b h w c"]
    log_variance: Float[Array, "b h w c"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "b h w c"]:
        """One draw."""
        noise = jax.random.normal(key, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def divergence(self) -> Float[Array, " b"]:
        """KL divergence from the standard normal, in nats, summed over an example."""
        terms = self.mean**2 + jnp.exp(self.log_variance) - 1.0 - self.log_variance
        return 0.5 * terms.sum((1, 2, 3))


class Encoder(nnx.Module):
    """Pictures to a small map: of latents' moments (`AutoencoderKL`), or of what a code stands for.

    Args:
        in_channels: Channels of the pictures.
        out_channels: Channels of the map; of moments, the means' and then the log-variances'.
        levels: Channels of each level, the finest first.
        layers_per_block: Residual blocks a level.
        groups: Groups of the norms.
        remat: What a level keeps for the backward pass, see `vljax.models.remat`.
        attention: Which levels have attention after each of their residual blocks; none if empty.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        levels: Sequence[int],
        layers_per_block: int,
        groups: int,
        remat: bool | str,
        *,
        attention: Sequence[bool] = (),
        rngs: nnx.Rngs,
    ) -> None:
        self.remat = remat
        self.conv_in = Conv(in_channels, levels[0], 3, rngs=rngs)
        channels, blocks = levels[0], []
        for level, out in enumerate(levels):
            resnets = [
                _resnet(channels if i == 0 else out, out, groups, rngs)
                for i in range(layers_per_block)
            ]
            channels = out
            last = level == len(levels) - 1
            blocks.append(
                Level(
                    resnets,
                    _attentions(level, attention, out, len(resnets), groups, rngs),
                    downsample=None if last else Downsample(out, (0, 1), rngs=rngs),
                )
            )
        self.down_blocks = nnx.List(blocks)
        self.mid_block = _middle(channels, groups, rngs)
        self.conv_norm_out = GroupNorm(channels, groups, _EPSILON)
        self.conv_out = Conv(channels, out_channels, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 z"]:
        run = rematerialised(Level.__call__, self.remat)
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = run(block, h)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(run(self.mid_block, h))))


class Decoder(nnx.Module):
    """Latents to pictures.

    Args:
        out_channels: Channels of the pictures.
        latent_channels: Channels of the latents.
        levels: Channels of each level, the finest first.
        layers_per_block: Residual blocks a level, but one.
        groups: Groups of the norms.
        remat: What a level keeps for the backward pass, see `vljax.models.remat`.
        attention: As in `Encoder`.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        levels: Sequence[int],
        layers_per_block: int,
        groups: int,
        remat: bool | str,
        *,
        attention: Sequence[bool] = (),
        rngs: nnx.Rngs,
    ) -> None:
        self.remat = remat
        channels = levels[-1]
        self.conv_in = Conv(latent_channels, channels, 3, rngs=rngs)
        self.mid_block = _middle(channels, groups, rngs)
        blocks = []
        for level, out in reversed(list(enumerate(levels))):
            resnets = [
                _resnet(channels if i == 0 else out, out, groups, rngs)
                for i in range(layers_per_block + 1)
            ]
            channels = out
            blocks.append(
                Level(
                    resnets,
                    _attentions(level, attention, out, len(resnets), groups, rngs),
                    upsample=Upsample(out, rngs=rngs) if level else None,
                )
            )
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = GroupNorm(channels, groups, _EPSILON)
        self.conv_out = Conv(channels, out_channels, 3, rngs=rngs)

    def __call__(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv_out(self.before_last(z))

    def before_last(self, z: Float[Array, "b h w z"]) -> Float[Array, "b h2 w2 f"]:
        """What enters the last convolution."""
        run = rematerialised(Level.__call__, self.remat)
        h = run(self.mid_block, self.conv_in(z))
        for block in self.up_blocks:
            h = run(block, h)
        return jax.nn.silu(self.conv_norm_out(h))


@keeps_arguments
class AutoencoderKL(nnx.Module):
    """Stable Diffusion's autoencoder.

    Pictures are float32 in [-1, 1], their sides divisible by 2^(levels − 1). `encode` and `decode`
    speak of the autoencoder's own latents; diffusion takes place in these times `scaling_factor`,
    which gives them about unit variance. `folders.autoencoder_arguments` reads the arguments from a
    `diffusers` folder.

    Args:
        in_channels: Channels of the pictures that go in.
        out_channels: Channels of the pictures that come out.
        latent_channels: Channels of the latents.
        block_out_channels: Channels of each level.
        layers_per_block: Residual blocks a level in the encoder; the decoder has one more.
        norm_groups: Groups of the norms.
        scaling_factor: What latents are multiplied by for diffusion.
        remat: What a level keeps for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        scaling_factor: float = 0.18215,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        check_levels(block_out_channels, norm_groups)
        self.scaling_factor = scaling_factor
        self.dtype = dtype
        shared = (block_out_channels, layers_per_block, norm_groups, remat)
        self.encoder = Encoder(in_channels, 2 * latent_channels, *shared, rngs=rngs)
        self.decoder = Decoder(out_channels, latent_channels, *shared, rngs=rngs)
        self.quant_conv = Conv(2 * latent_channels, 2 * latent_channels, 1, rngs=rngs)
        self.post_quant_conv = Conv(latent_channels, latent_channels, 1, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"]) -> Gaussian:
        """The distribution of the pictures' latents [b h/8 w/8 latent_channels].

        Raises:
            UserError: the sides of the pictures cannot be halved often enough.
        """
        check_sides(images, 2 ** (len(self.encoder.down_blocks) - 1))
        moments = self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Float[Array, "b h w z"]) -> Float[Array, "b 8*h 8*w c"]:
        """The pictures of latents, float32, about [-1, 1] but not clipped to it."""
        h = self.post_quant_conv(latents.astype(self.dtype))
        return self.decoder(h).astype(jnp.float32)

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors by the names of today, see `todays_names`."""
        return todays_names(tensors)


def todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an autoencoder by the names that `diffusers` has today; these stay.

    Early checkpoints, Stable Diffusion 1.5's among them, call the attention's layers `query`,
    `key`, `value` and `proj_attn`.
    """
    renamed = {}
    for name, tensor in tensors.items():
        module, found, rest = name.partition(".attentions.")
        index, _, layer = rest.partition(".")
        layer, _, parameter = layer.partition(".")
        if found and layer in _FORMER_NAMES:
            name = f"{module}.attentions.{index}.{_FORMER_NAMES[layer]}.{parameter}"
        renamed[name] = tensor
    return renamed


def check_levels(block_out_channels: Sequence[int], norm_groups: int) -> None:
    """Refuse channels that the norms cannot split.

    Raises:
        UserError: there are such.
    """
    for channels in block_out_channels:
        if channels % norm_groups:
            raise UserError(
                f"block_out_channels has {channels}, not a multiple of "
                f"norm_groups={norm_groups}: choose channels accordingly"
            )


def check_sides(images: Array, shrink: int) -> None:
    """Refuse pictures whose sides an encoder cannot halve as often as it does.

    Raises:
        UserError: a side does not divide by `shrink`.
    """
    if images.shape[1] % shrink or images.shape[2] % shrink:
        raise UserError(
            f"pictures of {images.shape[1]}×{images.shape[2]} do not divide by {shrink}: "
            "resize or pad them"
        )


def _attentions(
    level: int,
    attention: Sequence[bool],
    channels: int,
    count: int,
    groups: int,
    rngs: nnx.Rngs,
) -> list[PixelAttention]:
    """One for each residual block of a level that has attention."""
    if not attention or not attention[level]:
        return []
    return [PixelAttention(channels, groups, _EPSILON, rngs=rngs) for _ in range(count)]


def _resnet(channels: int, out_channels: int, groups: int, rngs: nnx.Rngs) -> ResnetBlock:
    return ResnetBlock(
        channels, out_channels, embedding=None, groups=groups, epsilon=_EPSILON, rngs=rngs
    )


def _middle(channels: int, groups: int, rngs: nnx.Rngs) -> Level:
    """Two residual blocks with attention between them."""
    resnets = [_resnet(channels, channels, groups, rngs) for _ in range(2)]
    return Level(resnets, [PixelAttention(channels, groups, _EPSILON, rngs=rngs)])


_FORMER_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
