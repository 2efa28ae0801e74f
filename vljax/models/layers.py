"""The layers that every network here is made of.

A layer computes in the dtype of its input: parameters (float32, in use what `config.param_dtype`
says) are cast where they are used, so a network chooses its compute dtype once, by casting what
enters it. Normalisation reduces in float32 whatever the dtype.

Each parameter carries its `published` layout: the einops pattern that turns the tensor of a
PyTorch checkpoint into ours (`vljax.pretrained` reads it). Attribute names are PyTorch's, so that
the path of a parameter in the pytree is its name in the published checkpoint.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.ops.convolution import conv2d
from vljax.ops.projection import project


def next_key(rngs: nnx.Rngs) -> Key[Array, ""]:
    """What `rngs.params()` gives.

    Flax's own way to count asks the traced count for its sharding, and JAX's refusal names every
    operation that the count came from, so tracing a network took time quadratic in its parameters.
    """
    stream = rngs.params
    key = jax.random.fold_in(stream.key[...], stream.count[...])
    stream.count.set_value(stream.count[...] + 1)
    return key


def fan_in_uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int, zero: bool) -> Array:
    """Uniform on ±1/√fan_in, PyTorch's default, or zeros; float32."""
    if zero:
        return jnp.zeros(shape)
    bound = fan_in**-0.5
    return jax.random.uniform(next_key(rngs), shape, jnp.float32, -bound, bound)


def normal(
    rngs: nnx.Rngs, shape: tuple[int, ...], std: float, published: str | None = None
) -> nnx.Param:
    """A parameter drawn from N(0, std²), float32."""
    value = std * jax.random.normal(next_key(rngs), shape)
    return nnx.Param(value, published=published) if published else nnx.Param(value)


class Linear(nnx.Module):
    """`x @ weight + bias` over the last axis.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        rngs: Where the initial weights come from.
        bias: Whether a bias is added.
        zero: Start from zeros, for the last layer of a residual branch.
        published: einops pattern from the checkpoint's tensor to ours; a 1×1 convolution of a
            checkpoint is a `Linear` here with the pattern `"o i 1 -> i o"`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        zero: bool = False,
        published: str = "o i -> i o",
    ) -> None:
        shape = (in_features, out_features)
        weight = fan_in_uniform(rngs, shape, in_features, zero)
        self.weight = nnx.Param(weight, published=published)
        self.bias = (
            nnx.Param(fan_in_uniform(rngs, (out_features,), in_features, zero)) if bias else None
        )

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = project(x, self.weight[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Conv(nnx.Module):
    """A 2-d convolution, NHWC, padded with zeros.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the square kernel, or (height, width).
        rngs: Where the initial weights come from.
        stride: Step in both directions.
        padding: Zeros on each side, one number or (vertical, horizontal); half the kernel by
            default, which with an odd kernel and stride 1 keeps the size.
        bias: Whether a bias is added.
        zero: Start from zeros, for the last layer of a residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        bias: bool = True,
        zero: bool = False,
    ) -> None:
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            padding = (height // 2, width // 2)
        self.stride = stride
        self.padding = (padding, padding) if isinstance(padding, int) else padding
        shape = (height, width, in_channels, out_channels)
        fan_in = height * width * in_channels
        weight = fan_in_uniform(rngs, shape, fan_in, zero)
        self.weight = nnx.Param(weight, published="o i h w -> h w i o")
        self.bias = nnx.Param(fan_in_uniform(rngs, (out_channels,), fan_in, zero)) if bias else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        vertical, horizontal = self.padding
        weight = self.weight[...].astype(x.dtype)
        pads = ((vertical, vertical), (horizontal, horizontal))
        y = conv2d(x, weight, stride=self.stride, padding=pads)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class BatchNorm(nnx.Module):
    """Batch normalisation by stored statistics (Ioffe & Szegedy 2015, at inference).

    The statistics are never updated, and no gradient reaches them; weight and bias can be trained.

    Args:
        channels: Channels of the input.
        epsilon: Added to the variance.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.running_mean = nnx.BatchStat(jnp.zeros(channels))
        self.running_var = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        mean, variance = jax.lax.stop_gradient((self.running_mean[...], self.running_var[...]))
        scale = self.weight[...] * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...] - mean * scale
        return (x.astype(jnp.float32) * scale + shift).astype(x.dtype)


def fresh_norm(channels: int) -> BatchNorm:
    """A batch norm for training without published statistics, which nothing would ever update.

    They start as those of a fresh, bias-free convolution of rectified unit-variance features, so
    that the norm puts out unit variance and a tower of any depth can be trained from scratch.
    """
    norm = BatchNorm(channels)
    norm.running_var[...] = jnp.full(channels, 1 / 6)
    return norm


class GroupNorm(nnx.Module):
    """Group normalisation over positions and the channels of a group (Wu & He 2018).

    Args:
        channels: Channels of the input.
        groups: How many groups share statistics; divides `channels`.
        epsilon: Added to the variance.
    """

    def __init__(self, channels: int, groups: int, epsilon: float = 1e-5) -> None:
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups")
        self.groups = groups
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        batch, channels = x.shape[0], x.shape[-1]
        # One pass for both moments over positions; the few per-channel sums are then grouped.
        h = x.astype(jnp.float32).reshape(batch, -1, channels)
        count = h.shape[1] * (channels // self.groups)

        def group_mean(sums: Float[Array, "b c"]) -> Float[Array, "b c"]:
            grouped = sums.reshape(batch, self.groups, -1).sum(-1) / count
            return jnp.repeat(grouped, channels // self.groups, axis=1)

        mean = group_mean(h.sum(1))
        variance = group_mean(((h - mean[:, None]) ** 2).sum(1))
        scale = self.weight[...] * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...] - mean * scale
        return (h * scale[:, None] + shift[:, None]).astype(x.dtype).reshape(x.shape)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016).

    Args:
        features: Size of the last axis.
        epsilon: Added to the variance.
    """

    def __init__(self, features: int, epsilon: float = 1e-5) -> None:
        self.epsilon = epsilon
        self.weight = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + self.epsilon)
        return (h * self.weight[...] + self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors, looked up by index; standard normal at the start.

    Args:
        count: Number of vectors.
        features: Length of each.
        rngs: Where the initial table comes from.
    """

    def __init__(self, count: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jax.random.normal(next_key(rngs), (count, features)))

    def __call__(self, index: Int[Array, "*b"]) -> Float[Array, "*b f"]:
        return self.weight[...][index]


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zero a share `rate` of `x` and rescale the rest; without a key, do nothing."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def apply(layers: Iterable, x: Array) -> Array:
    """Apply layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def timestep_embedding(
    t: Float[Array, " b"], features: int, max_period: float = 10_000.0
) -> Float[Array, "b f"]:
    """Sinusoids of `t`: cosines, then sines, float32 (Ho et al. 2020, after Vaswani et al.).

    Args:
        t: Times, in steps of the original schedule; need not be whole.
        features: Length of the embedding; an odd one ends in a zero.
        max_period: Longest period, in steps.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features - 2 * half)))
