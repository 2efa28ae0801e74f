"""VQGAN's loss: reconstruction, codes, and a discriminator of patches.

Esser et al., *Taming Transformers for High-Resolution Image Synthesis* (2021), section 3.1,
equations 4 to 7; the discriminator is Isola et al.'s, *Image-to-Image Translation with Conditional
Adversarial Networks* (2017), section 3.2.2. Its parameters are named as in taming-transformers'
files (`loss.discriminator.` before them).

Generator and discriminator descend one scalar: in each one's term the other is held by
`stop_gradient`, so that a stage's loop need not know of two players.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.models.layers import Conv, next_key
from vljax.models.parameters import with_parameters
from vljax.models.perceptual import LPIPS
from vljax.models.vqgan import VQGAN

Tensor = TypeVar("Tensor")
Metrics = dict[str, Float[Array, ""]]

# Of the two gradients' lengths, and the greatest factor, as in taming-transformers.
_SHORTEST = 1e-4
_LARGEST = 1e4


class BatchNormalised(nnx.Module):
    """Batch normalisation by the statistics of the batch at hand (Ioffe & Szegedy 2015).

    For networks that only ever see training batches: nothing is stored.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(1 + 0.02 * jax.random.normal(next_key(rngs), (channels,)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = x.astype(jnp.float32)
        h = h - h.mean((0, 1, 2))
        h = h * jax.lax.rsqrt(jnp.square(h).mean((0, 1, 2)) + 1e-5)
        return (h * self.weight[...] + self.bias[...]).astype(x.dtype)


class PatchDiscriminator(nnx.Module):
    """Logits that patches of a picture are real.

    Args:
        channels: Of the pictures.
        width: Channels of the first layer, doubled in each further one up to eight times.
        layers: Layers that halve the picture.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self, channels: int = 3, width: int = 64, layers: int = 3, *, rngs: nnx.Rngs
    ) -> None:
        main: list[Any] = [_convolution(channels, width, 2, True, rngs), _leaky]
        for layer in range(1, layers + 1):
            before, after = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            main += [
                _convolution(before, after, stride, False, rngs),
                BatchNormalised(after, rngs=rngs),
                _leaky,
            ]
        main.append(_convolution(width * min(2**layers, 8), 1, 1, True, rngs))
        self.main = nnx.List[Any](main)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 1"]:
        for layer in self.main:
            x = layer(x)
        return x.astype(jnp.float32)

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors without the statistics that its norms collected."""
        kept = ("running_mean", "running_var", "num_batches_tracked")
        return {name: t for name, t in tensors.items() if not name.endswith(kept)}


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)


def _convolution(channels: int, out: int, stride: int, bias: bool, rngs: nnx.Rngs) -> Conv:
    conv = Conv(channels, out, 4, stride=stride, padding=1, bias=bias, rngs=rngs)
    conv.weight[...] = 0.02 * jax.random.normal(next_key(rngs), conv.weight.shape)
    return conv


def hinge_loss(real: Float[Array, "b h w 1"], fake: Float[Array, "b h w 1"]) -> Float[Array, ""]:
    """What a discriminator learns by (Lim & Ye 2017), halved as in taming-transformers."""
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())


def reconstruction_error(
    drawn: Float[Array, "b h w c"], images: Float[Array, "b h w c"], squared: float = 0.0
) -> Float[Array, ""]:
    """The mean absolute error, and `squared` times the mean squared one."""
    error = jnp.abs(drawn - images).mean()
    return error + squared * jnp.square(drawn - images).mean() if squared else error


def vqgan_loss(
    vqgan: VQGAN,
    images: Float[Array, "b h w c"],
    *,
    lpips: LPIPS | None = None,
    discriminator: PatchDiscriminator | None = None,
    gan_weight: float = 0.8,
    squared: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """What an autoencoder of codes learns by, and beside it its discriminator.

    The mean absolute error and LPIPS, the codebook's loss, and with a discriminator, how well it is
    deceived: `gan_weight` times the factor that makes its gradient at the decoder's last layer as
    long as the reconstruction's (equation 7).

    Args:
        vqgan: The autoencoder.
        images: Pictures in [-1, 1].
        lpips: Published LPIPS, or None to do without.
        discriminator: None for a stage without.
        gan_weight: See above.
        squared: Weight of the mean squared error, which where there is no LPIPS sees to it that
            colours are learnt early.

    Returns:
        The loss; its parts, and `codes_used`, how many codes the batch uses.
    """
    quantized = vqgan.quantize(vqgan.encode(images))
    features, last = vqgan.before_last(quantized.vectors), vqgan.decoder.conv_out

    def reconstruction(drawn: Float[Array, "b h w c"]) -> Float[Array, ""]:
        error = reconstruction_error(drawn, images, squared)
        return error if lpips is None else error + lpips(images, drawn).mean()

    drawn = last(features).astype(jnp.float32)
    error = reconstruction(drawn)
    used = jnp.zeros(vqgan.num_codes).at[quantized.codes.reshape(-1)].set(1.0).sum()
    metrics = {"error": error, "codebook": quantized.loss, "codes_used": used}
    loss = error + quantized.loss
    if discriminator is None:
        return loss, metrics

    held = jax.lax.stop_gradient(discriminator)

    def deception(drawn: Float[Array, "b h w c"]) -> Float[Array, ""]:
        return -held(drawn).mean()

    def length(term: Any) -> Float[Array, ""]:
        """Of a term's gradient at the weights of the last layer."""

        def of_weight(weight: Array) -> Float[Array, ""]:
            layer = with_parameters(last, {"weight": weight})
            return term(layer(jax.lax.stop_gradient(features)).astype(jnp.float32))

        return jnp.linalg.norm(jax.grad(of_weight)(last.weight[...]).reshape(-1))

    factor = jnp.clip(length(reconstruction) / (length(deception) + _SHORTEST), 0, _LARGEST)
    factor = gan_weight * jax.lax.stop_gradient(factor)
    judged = hinge_loss(discriminator(images), discriminator(jax.lax.stop_gradient(drawn)))
    metrics |= {"deception": deception(drawn), "factor": factor, "discriminator": judged}
    return loss + factor * metrics["deception"] + judged, metrics
