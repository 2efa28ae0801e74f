"""LPIPS: how different two pictures look.

Zhang et al., *The Unreasonable Effectiveness of Deep Features as a Perceptual Metric* (2018),
equation 1, version 0.1. The trunk's parameters are named as in torchvision's VGG-16 and AlexNet
(`features.0.weight`), the linear heads' as in the published LPIPS files (`lin0.model.1.weight`),
so the tensors of both files together are the model's:

    tensors = read_tensors("vgg16-397923af.pth") | read_tensors("vgg.pth")
    model = assign(model, tensors, origin="LPIPS", ignore=("classifier.",))
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.layers import Conv, Linear, apply, dropout

# ImageNet's mean and standard deviation per channel, for pictures in [-1, 1].
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)

Maps = tuple[Float[Array, "b h w c"], ...]


def _pool2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def _pool3(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _vgg16(rngs: nnx.Rngs) -> tuple[list[Any], list[int]]:
    """The convolutions of VGG-16 (Simonyan & Zisserman 2015), and which outputs LPIPS compares."""
    layers: list[Any] = []
    taps: list[int] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(_pool2)
        for _ in range(depth):
            layers += [Conv(channels, width, 3, rngs=rngs), jax.nn.relu]
            channels = width
        taps.append(len(layers) - 1)
    return layers, taps


def _alexnet(rngs: nnx.Rngs) -> tuple[list[Any], list[int]]:
    """The convolutions of AlexNet (Krizhevsky 2014), and which outputs LPIPS compares."""
    layers = [
        *(Conv(3, 64, 11, stride=4, padding=2, rngs=rngs), jax.nn.relu, _pool3),
        *(Conv(64, 192, 5, rngs=rngs), jax.nn.relu, _pool3),
        *(Conv(192, 384, 3, rngs=rngs), jax.nn.relu),
        *(Conv(384, 256, 3, rngs=rngs), jax.nn.relu),
        *(Conv(256, 256, 3, rngs=rngs), jax.nn.relu),
    ]
    return layers, [i for i, layer in enumerate(layers) if layer is jax.nn.relu]


_TRUNKS = {"vgg": _vgg16, "alex": _alexnet}


class Head(nnx.Module):
    """A learned weight for each channel."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        # The first entry only keeps the checkpoint's index: a metric drops nothing.
        weights = Linear(channels, 1, bias=False, published="o i 1 1 -> i o", rngs=rngs)
        self.model = nnx.List[Any]([dropout, weights])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
        return self.model[1](x)


class LPIPS(nnx.Module):
    """`lpips(x, y)` is the distance of each pair of pictures, float32.

    To compare many pairs of few pictures, `encode` each picture once and take `distance`s.

    Args:
        network: The trunk, `"vgg"` or `"alex"`.
        rngs: Where the initial weights come from.

    Raises:
        UserError: there is no such trunk.
    """

    def __init__(self, network: str, *, rngs: nnx.Rngs) -> None:
        if network not in _TRUNKS:
            raise UserError(f"network={network!r}: choose one of {', '.join(_TRUNKS)}")
        self.network = network
        layers, taps = _TRUNKS[network](rngs)
        self.taps = tuple(taps)
        self.features = nnx.List[Any](layers)
        widths = [layers[i - 1].weight.shape[-1] for i in taps]
        self.lin0, self.lin1, self.lin2, self.lin3, self.lin4 = (
            Head(width, rngs=rngs) for width in widths
        )

    # Published distances were computed in full float32, which accelerators do only when asked.
    @jax.default_matmul_precision("float32")
    def encode(self, images: Float[Array, "b h w 3"]) -> Maps:
        """The five feature maps that are compared, each position's channels of unit length.

        Args:
            images: Pictures in [-1, 1], not resized.

        Raises:
            UserError: the pictures are too small for the trunk's pooling.
        """
        h = (images.astype(jnp.float32) - jnp.array(_MEAN)) / jnp.array(_DEVIATION)
        maps, start = [], 0
        for tap in self.taps:
            h = apply(self.features[start : tap + 1], h)
            if not h.size:
                raise UserError(
                    f"pictures of {images.shape[1]}×{images.shape[2]} px are too small for LPIPS "
                    f"with network={self.network!r}: use 32 px or more"
                )
            maps.append(_unit(h))
            start = tap + 1
        return tuple(maps)

    @jax.default_matmul_precision("float32")
    def distance(self, a: Maps, b: Maps) -> Float[Array, " b"]:
        """LPIPS from what `encode` returned for each side of the pairs."""
        heads = (self.lin0, self.lin1, self.lin2, self.lin3, self.lin4)
        total = jnp.zeros(a[0].shape[0])
        for head, one, other in zip(heads, a, b, strict=True):
            total += head((one - other) ** 2).mean((1, 2, 3))
        return total

    def __call__(
        self, x: Float[Array, "b h w 3"], y: Float[Array, "b h w 3"]
    ) -> Float[Array, " b"]:
        return self.distance(self.encode(x), self.encode(y))


def _unit(h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    # The bound leaves the value alone and keeps the root's gradient finite where all is zero.
    square = jnp.maximum((h**2).sum(-1, keepdims=True), 1e-36)
    return h / (jnp.sqrt(square) + 1e-10)
