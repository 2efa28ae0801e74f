"""He's residual networks as trunks: a picture becomes a grid of features.

He et al., *Deep Residual Learning for Image Recognition* (2016), table 1, the three networks of
bottleneck blocks. Two of its details were published in two ways, so both are arguments: where a
block strides, and how the pool of the stem treats the border.

| weights | `stride_in` | `pool` | pictures |
|---|---|---|---|
| torchvision, Hugging Face | `"3x3"` | `"padded"` | `normalise_pixels` |
| MSRA's caffemodels | `"1x1"` | `"ceil"` | `subtract_mean` |

Parameter names are torchvision's; `ResNet.published_names` brings those of Hugging Face
`transformers` and of the caffemodels to them; `folders.resnet_arguments` reads a folder of the
former.

    trunk = jax.eval_shape(lambda: ResNet(DEPTHS[152], rngs=nnx.Rngs(0)))
    trunk = pretrained.load(trunk, "resnet152-394f9c45.pth")
    features = trunk(normalise_pixels(images))
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.layers import Conv, Linear, apply, fresh_norm
from vljax.models.remat import rematerialised
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, standardise, to_levels

# Blocks in each of the four groups, by the number of weighted layers.
DEPTHS: dict[int, tuple[int, int, int, int]] = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

# MSRA's mean picture, averaged over its places, for blue, green, red in [0, 255].
CAFFE_MEAN = (103.06, 115.90, 123.15)

Strides = Literal["1x1", "3x3"]
Pool = Literal["padded", "ceil"]
Tensors = dict[str, np.ndarray]


def normalise_pixels(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """From [-1, 1] to what torchvision's and Hugging Face's weights see."""
    return standardise(images, IMAGENET_MEAN, IMAGENET_STD)


def subtract_mean(
    images: Float[Array, "b h w 3"], mean: Float[Array, "#h #w 3"] | Sequence[float] = CAFFE_MEAN
) -> Float[Array, "b h w 3"]:
    """From red, green, blue in [-1, 1] to what MSRA's weights see: blue, green, red less a mean.

    Args:
        images: Pictures in [-1, 1].
        mean: Of blue, green, red in [0, 255]: one for all places, or a picture of means.
    """
    return to_levels(images[..., ::-1]) - jnp.asarray(mean)


class Bottleneck(nnx.Module):
    """1×1, 3×3 and 1×1 convolutions, added to their input (figure 5, right).

    Args:
        in_channels: Channels of the input.
        channels: Channels inside; the output has four times as many.
        stride: Factor by which the map shrinks.
        stride_in: Which convolution strides, the first 1×1 or the 3×3.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        stride_in: Strides,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        out = 4 * channels
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = Conv(in_channels, channels, 1, stride=first, bias=False, rngs=rngs)
        self.bn1 = fresh_norm(channels)
        self.conv2 = Conv(channels, channels, 3, stride=second, bias=False, rngs=rngs)
        self.bn2 = fresh_norm(channels)
        self.conv3 = Conv(channels, out, 1, bias=False, rngs=rngs)
        self.bn3 = fresh_norm(out)
        # The block starts as the identity, so that an untrained network of any depth is sane.
        self.bn3.weight[...] = jnp.zeros(out)
        self.downsample = (
            nnx.List[Any](
                [Conv(in_channels, out, 1, stride=stride, bias=False, rngs=rngs), fresh_norm(out)]
            )
            if stride > 1 or in_channels != out
            else None
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        h = jax.nn.relu(self.bn1(self.conv1(x)))
        h = jax.nn.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(h))
        if self.downsample is not None:
            x = apply(self.downsample, x)
        return jax.nn.relu(h + x)


@keeps_arguments
class ResNet(nnx.Module):
    """`trunk(x)` maps normalised pictures [b h w 3] to features [b h/32 w/32 32·width].

    Sides that 32 does not divide are rounded up at every halving.

    Args:
        layers: Blocks in each of the four groups, see `DEPTHS`.
        width: Channels after the stem, 64 in all published networks.
        stride_in: Which convolution of a block strides: `"3x3"` or `"1x1"`.
        pool: The stem's maximum over 3×3 places, two apart: `"padded"` by one place on every side,
            or `"ceil"`, which starts at the corner and cuts the last window off at the border.
        classes: Logits of `classify`; 0 makes a trunk alone, into which a checkpoint's classifier
            is not loaded.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        rngs: Where the initial weights come from.

    Raises:
        UserError: `layers`, `stride_in` or `pool` is none of those.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        width: int = 64,
        stride_in: Strides = "3x3",
        pool: Pool = "padded",
        classes: int = 0,
        remat: bool | str = "off",
        rngs: nnx.Rngs,
    ) -> None:
        if len(layers) != 4 or min(layers) < 1:
            raise UserError(
                f"layers={tuple(layers)} of a ResNet: give four numbers of blocks, each 1 or more"
            )
        if stride_in not in ("1x1", "3x3"):
            raise UserError(f"stride_in={stride_in!r}: choose '1x1' or '3x3'")
        if pool not in ("padded", "ceil"):
            raise UserError(f"pool={pool!r}: choose 'padded' or 'ceil'")
        self.pool = pool
        self.remat = remat
        self.conv1 = Conv(3, width, 7, stride=2, bias=False, rngs=rngs)
        self.bn1 = fresh_norm(width)
        channels = width

        def group(level: int) -> nnx.List[Any]:
            nonlocal channels
            blocks = []
            for i in range(layers[level]):
                stride = 2 if level and not i else 1
                blocks.append(Bottleneck(channels, width * 2**level, stride, stride_in, rngs=rngs))
                channels = 4 * width * 2**level
            return nnx.List[Any](blocks)

        self.layer1 = group(0)
        self.layer2 = group(1)
        self.layer3 = group(2)
        self.layer4 = group(3)
        self.channels = channels
        self.fc = Linear(channels, classes, rngs=rngs) if classes else None

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        block = rematerialised(Bottleneck.__call__, self.remat)
        x = self._pooled(jax.nn.relu(self.bn1(self.conv1(x))))
        for group in (self.layer1, self.layer2, self.layer3, self.layer4):
            for layer in group:
                x = block(layer, x)
        return x

    def classify(self, features: Float[Array, "b h w c"]) -> Float[Array, "b classes"]:
        """Logits from what the trunk returned: a linear layer on the mean over places.

        Raises:
            ValueError: the network was made without classes.
        """
        if self.fc is None:
            raise ValueError("this ResNet has no classifier: make it with classes=1000")
        return self.fc(features.mean((1, 2), dtype=jnp.float32).astype(features.dtype))

    def _pooled(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        # An even side leaves the last window without its third place.
        pads = [(1, 1) if self.pool == "padded" else (0, 1 - side % 2) for side in x.shape[1:3]]
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=pads)

    def published_names(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """A checkpoint's tensors by torchvision's names, from any of the three families' names.

        Counters are left out, and the classifier where this network has none. A caffemodel's batch
        norm comes in two layers: statistics with a common divisor, then scale and shift.
        """
        if any(name.startswith(("bn_conv1.", "scale_conv1.")) for name in tensors):
            renamed = _from_caffe(tensors)
        else:
            renamed = {_torchvision_name(name): t for name, t in tensors.items()}
        return {
            name: tensor
            for name, tensor in renamed.items()
            if not name.endswith("num_batches_tracked")
            and (self.fc is not None or not name.startswith("fc."))
        }

    def folder_names(self, tensors: Mapping[str, np.ndarray]) -> Tensors:
        """Our tensors, in the published layout, by the names of `transformers`.

        PyTorch's norms also count the batches that they have seen: none.
        """
        prefix = "" if self.fc is None else "resnet."
        renamed: Tensors = {}
        for name, tensor in tensors.items():
            name = _transformers_name(name, prefix)
            renamed[name] = tensor
            if name.endswith(".running_var"):
                counter = name.replace(".running_var", ".num_batches_tracked")
                renamed[counter] = np.zeros((), np.int64)
        return renamed


_TRANSFORMERS_BLOCK = re.compile(
    r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|(shortcut))\.(convolution|normalization)"
)


def _torchvision_name(name: str) -> str:
    """From a name of `transformers`; torchvision's own stays."""
    name = name.removeprefix("resnet.")
    name = name.replace("embedder.embedder.convolution", "conv1")
    name = name.replace("embedder.embedder.normalization", "bn1")
    name = name.replace("classifier.1.", "fc.")
    if match := _TRANSFORMERS_BLOCK.match(name):
        group, block, layer, shortcut, kind = match.groups()
        if shortcut:
            part = f"downsample.{int(kind == 'normalization')}"
        else:
            part = f"{'bn' if kind == 'normalization' else 'conv'}{int(layer) + 1}"
        name = f"layer{int(group) + 1}.{block}.{part}{name[match.end() :]}"
    return name


_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.")


def _transformers_name(name: str, prefix: str) -> str:
    """The inverse of `_torchvision_name`; `prefix` goes before all but the classifier's."""
    if name.startswith("fc."):
        return name.replace("fc.", "classifier.1.")
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    if match := _BLOCK.match(name):
        group, block, kind, layer, shortcut = match.groups()
        part = "shortcut" if layer is None else f"layer.{int(layer) - 1}"
        place = f"encoder.stages.{int(group) - 1}.layers.{block}.{part}.{kinds[kind or shortcut]}"
        return f"{prefix}{place}.{name[match.end() :]}"
    stem, _, parameter = name.partition(".")
    return f"{prefix}embedder.embedder.{kinds[stem.rstrip('1')]}.{parameter}"


_CAFFE_BLOCK = re.compile(r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2a|2b|2c)")
_CAFFE_STEM = {"conv1": "conv1", "bn_conv1": "bn1", "scale_conv1": "bn1", "fc1000": "fc"}


def _caffe_place(layer: str) -> tuple[str, str] | None:
    """What kind of layer (`res`, `bn`, `scale`) a caffemodel's is, and its torchvision name."""
    if layer in _CAFFE_STEM:
        kind = layer.removesuffix("_conv1") if layer.endswith("_conv1") else "res"
        return kind, _CAFFE_STEM[layer]
    if not (match := _CAFFE_BLOCK.fullmatch(layer)):
        return None
    kind, group, letter, digits, branch = match.groups()
    # Blocks are a, b, c, ... or, in long groups, a, b1, b2, ...
    block = int(digits) if digits else ord(letter) - ord("a")
    if branch == "1":
        part = f"downsample.{int(kind != 'res')}"
    else:
        part = f"{'conv' if kind == 'res' else 'bn'}{'abc'.index(branch[1]) + 1}"
    return kind, f"layer{int(group) - 1}.{block}.{part}"


def _from_caffe(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Torchvision's tensors from blobs named `layer.index`; what is unknown keeps its name."""
    renamed, factors, biases = {}, {}, {}
    for name, tensor in tensors.items():
        layer, _, index = name.rpartition(".")
        place = _caffe_place(layer)
        names = {
            "res": ("weight", "bias"),
            "bn": ("running_mean", "running_var", "factor"),
            "scale": ("weight", "bias"),
        }.get(place[0] if place else "", ())
        if place is None or not index.isdigit() or int(index) >= len(names):
            renamed[name] = tensor
            continue
        kind, path = place
        field = names[int(index)]
        if field == "factor":
            factors[path] = float(tensor.reshape(-1)[0])
        elif path == "conv1" and field == "bias":
            biases["bn1"] = tensor
        elif kind == "res":
            renamed[f"{path}.{field}"] = tensor
        else:
            renamed[f"{path}.{field}"] = tensor.reshape(-1)
    for path, factor in factors.items():
        for field in ("running_mean", "running_var"):
            if (name := f"{path}.{field}") in renamed:
                renamed[name] = renamed[name] * np.float32(1 / factor if factor else 0)
    # ResNet-50's first convolution has a bias, which its norm takes off as a part of the mean.
    for path, bias in biases.items():
        if (name := f"{path}.running_mean") in renamed:
            renamed[name] = renamed[name] - bias.reshape(-1)
        else:
            renamed[f"{path}.bias"] = bias
    return renamed
