"""Inception-v3, as the Fréchet inception distance uses it and as torchvision has it.

Szegedy et al., *Rethinking the Inception Architecture for Computer Vision* (2016). The weights that
FID was published with (Heusel et al. 2017; TensorFlow, 2015-12-05) are of a variant: average pools
do not count the padding, the last block pools by maximum, and there are 1008 logits. Parameter
names are those of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, which are torchvision's.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vljax.models.layers import BatchNorm, Conv, Linear, apply

INPUT_SIZE = 299


def _average(x: Float[Array, "b h w c"], count_padding: bool) -> Float[Array, "b h w c"]:
    return nnx.avg_pool(x, (3, 3), padding="SAME", count_include_pad=count_padding)


def _maximum(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return nnx.max_pool(x, (3, 3), padding="SAME")


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, ReLU; arguments as for `Conv`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = Conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            bias=False,
            rngs=rngs,
        )
        self.bn = BatchNorm(out_channels, epsilon=1e-3)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        return jax.nn.relu(self.bn(self.conv(x)))


class InceptionA(nnx.Module):
    """Branches of 1×1, 5×5 and double 3×3 convolutions, and a pool (the paper's figure 5)."""

    def __init__(
        self, channels: int, pool_features: int, count_padding: bool = False, *, rngs: nnx.Rngs
    ) -> None:
        self.count_padding = count_padding
        conv = functools.partial(ConvNorm, rngs=rngs)
        self.branch1x1 = conv(channels, 64, 1)
        self.branch5x5_1 = conv(channels, 48, 1)
        self.branch5x5_2 = conv(48, 64, 5)
        self.branch3x3dbl_1 = conv(channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3)
        self.branch_pool = conv(channels, pool_features, 1)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        branches = [
            self.branch1x1(x),
            apply([self.branch5x5_1, self.branch5x5_2], x),
            apply([self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3], x),
            self.branch_pool(_average(x, self.count_padding)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nnx.Module):
    """Halves the grid from 35×35 to 17×17."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        conv = functools.partial(ConvNorm, rngs=rngs)
        self.branch3x3 = conv(channels, 384, 3, stride=2, padding=0)
        self.branch3x3dbl_1 = conv(channels, 64, 1)
        self.branch3x3dbl_2 = conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2, padding=0)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        branches = [
            self.branch3x3(x),
            apply([self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3], x),
            _halve(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nnx.Module):
    """7×7 convolutions split into 1×7 and 7×1 ones (figure 6)."""

    def __init__(
        self, channels: int, hidden: int, count_padding: bool = False, *, rngs: nnx.Rngs
    ) -> None:
        self.count_padding = count_padding
        conv = functools.partial(ConvNorm, rngs=rngs)
        self.branch1x1 = conv(channels, 192, 1)
        self.branch7x7_1 = conv(channels, hidden, 1)
        self.branch7x7_2 = conv(hidden, hidden, (1, 7))
        self.branch7x7_3 = conv(hidden, 192, (7, 1))
        self.branch7x7dbl_1 = conv(channels, hidden, 1)
        self.branch7x7dbl_2 = conv(hidden, hidden, (7, 1))
        self.branch7x7dbl_3 = conv(hidden, hidden, (1, 7))
        self.branch7x7dbl_4 = conv(hidden, hidden, (7, 1))
        self.branch7x7dbl_5 = conv(hidden, 192, (1, 7))
        self.branch_pool = conv(channels, 192, 1)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        double = [
            self.branch7x7dbl_1,
            self.branch7x7dbl_2,
            self.branch7x7dbl_3,
            self.branch7x7dbl_4,
            self.branch7x7dbl_5,
        ]
        branches = [
            self.branch1x1(x),
            apply([self.branch7x7_1, self.branch7x7_2, self.branch7x7_3], x),
            apply(double, x),
            self.branch_pool(_average(x, self.count_padding)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nnx.Module):
    """Halves the grid from 17×17 to 8×8."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        conv = functools.partial(ConvNorm, rngs=rngs)
        self.branch3x3_1 = conv(channels, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2, padding=0)
        self.branch7x7x3_1 = conv(channels, 192, 1)
        self.branch7x7x3_2 = conv(192, 192, (1, 7))
        self.branch7x7x3_3 = conv(192, 192, (7, 1))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2, padding=0)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        sevens = [self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4]
        branches = [apply([self.branch3x3_1, self.branch3x3_2], x), apply(sevens, x), _halve(x)]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nnx.Module):
    """Branches that end in 1×3 and 3×1 convolutions side by side (figure 7).

    Args:
        channels: Channels of the input.
        maximum: Pool by maximum, instead of by average.
        count_padding: Whether an average counts the padding.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self, channels: int, *, maximum: bool, count_padding: bool = False, rngs: nnx.Rngs
    ) -> None:
        conv = functools.partial(ConvNorm, rngs=rngs)
        self.maximum, self.count_padding = maximum, count_padding
        self.branch1x1 = conv(channels, 320, 1)
        self.branch3x3_1 = conv(channels, 384, 1)
        self.branch3x3_2a = conv(384, 384, (1, 3))
        self.branch3x3_2b = conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = conv(channels, 448, 1)
        self.branch3x3dbl_2 = conv(448, 384, 3)
        self.branch3x3dbl_3a = conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = conv(384, 384, (3, 1))
        self.branch_pool = conv(channels, 192, 1)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        single = self.branch3x3_1(x)
        double = apply([self.branch3x3dbl_1, self.branch3x3dbl_2], x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(_maximum(x) if self.maximum else _average(x, self.count_padding)),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionAux(nnx.Module):
    """The head beside the trunk, which reads the grid of 17×17."""

    def __init__(self, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv0 = ConvNorm(768, 128, 1, rngs=rngs)
        self.conv1 = ConvNorm(128, 768, 5, padding=0, rngs=rngs)
        self.fc = Linear(768, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b 17 17 768"]) -> Float[Array, "b o"]:
        x = nnx.avg_pool(x, (5, 5), strides=(3, 3))
        return self.fc(self.conv1(self.conv0(x)).mean((1, 2)))


class InceptionV3(nnx.Module):
    """The network; float32 throughout.

    Args:
        outputs: Logits.
        fid: FID's variant, not torchvision's.
        aux_outputs: Outputs of the head beside the trunk, or None for none.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        outputs: int = 1008,
        fid: bool = True,
        aux_outputs: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        conv = functools.partial(ConvNorm, rngs=rngs)
        counts = not fid
        self.Conv2d_1a_3x3 = conv(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, padding=0)
        self.Mixed_5b = InceptionA(192, 32, counts, rngs=rngs)
        self.Mixed_5c = InceptionA(256, 64, counts, rngs=rngs)
        self.Mixed_5d = InceptionA(288, 64, counts, rngs=rngs)
        self.Mixed_6a = InceptionB(288, rngs=rngs)
        self.Mixed_6b = InceptionC(768, 128, counts, rngs=rngs)
        self.Mixed_6c = InceptionC(768, 160, counts, rngs=rngs)
        self.Mixed_6d = InceptionC(768, 160, counts, rngs=rngs)
        self.Mixed_6e = InceptionC(768, 192, counts, rngs=rngs)
        self.AuxLogits = None if aux_outputs is None else InceptionAux(aux_outputs, rngs=rngs)
        self.Mixed_7a = InceptionD(768, rngs=rngs)
        self.Mixed_7b = InceptionE(1280, maximum=False, count_padding=counts, rngs=rngs)
        self.Mixed_7c = InceptionE(2048, maximum=fid, count_padding=counts, rngs=rngs)
        self.fc = Linear(2048, outputs, rngs=rngs)

    def maps(
        self, x: Float[Array, "b 299 299 3"]
    ) -> tuple[Float[Array, "b 17 17 768"], Float[Array, "b 8 8 2048"]]:
        """The maps that the head beside the trunk reads, and the last ones.

        Args:
            x: Pictures as the weights take them.
        """
        x = apply([self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3, _halve], x)
        x = apply([self.Conv2d_3b_1x1, self.Conv2d_4a_3x3, _halve], x)
        x = apply([self.Mixed_5b, self.Mixed_5c, self.Mixed_5d], x)
        x = apply([self.Mixed_6a, self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e], x)
        return x, apply([self.Mixed_7a, self.Mixed_7b, self.Mixed_7c], x)

    # Published scores were computed in full float32, which accelerators do only when asked.
    @jax.default_matmul_precision("float32")
    def features(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 2048"]:
        """What FID compares: the mean over positions of the last block.

        Args:
            images: Pictures in [-1, 1] of any size, brought to 299×299 by bilinear interpolation
                without antialiasing, as pytorch-fid does.
        """
        shape = (images.shape[0], INPUT_SIZE, INPUT_SIZE, 3)
        x = jax.image.resize(images.astype(jnp.float32), shape, "bilinear", antialias=False)
        return self.maps(x)[1].mean((1, 2))

    @jax.default_matmul_precision("float32")
    def logits(
        self, features: Float[Array, "b 2048"], *, bias: bool = True
    ) -> Float[Array, "b 1008"]:
        """Class logits from `features`.

        Args:
            features: What `features` returns.
            bias: Whether the bias is added; the published Inception Scores (Salimans et al. 2016)
                leave it out.
        """
        return self.fc(features) if bias else features @ self.fc.weight[...]

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A checkpoint's tensors without the batch counters, which frozen norms have no use for."""
        return {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
