"""Trunks: pictures to a grid of features.

`Convolutions` is a small one that is trained from scratch, and `Recogniser` what it may learn
first. `published_trunk` gives those that come with weights and are never trained here:

| kind | weights | pictures |
|---|---|---|
| `resnet50`, `resnet101`, `resnet152` | torchvision's file | 448 px, standardised as ImageNet |
| the same | a Hugging Face folder (`microsoft/resnet-152`) | the same; strides by its config |
| the same | MSRA's `.caffemodel`, PJ-X's own | 448 px, blue, green, red less their mean |
| `clip` | CLIP's ViT-B/16, OpenAI's or a Hugging Face folder | 224 px, standardised as CLIP's |

Each gives 14 × 14 places at its size.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vljax import files
from vljax.errors import UserError
from vljax.models import resnet
from vljax.models.answerers.answer import with_coordinates
from vljax.models.clip import CLIP
from vljax.models.clip import PUBLISHED as CLIPS
from vljax.models.clip_towers import VisionTransformer, prepare_images
from vljax.models.folders import resnet_arguments
from vljax.models.layers import Conv, GroupNorm, Linear


class Convolutions(nnx.Module):
    """Four convolutions with group norms, the first two of stride 2; then every place's x and y.

    Args:
        width: Channels of the last; its features have two more.
        rngs: Where the initial weights come from.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        widths = (3, width // 2, width, width, width)
        self.convs = nnx.List[Any](
            [
                Conv(before, after, 3, stride=2 if i < 2 else 1, rngs=rngs)
                for i, (before, after) in enumerate(itertools.pairwise(widths))
            ]
        )
        self.norms = nnx.List[Any]([GroupNorm(after, 8) for after in widths[1:]])

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h/4 w/4 c"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return with_coordinates(x)


class Recogniser(nnx.Module):
    """What a picture shows, from a trunk's features: a score a label, the highest of all places.

    It stands for the classification by which published trunks were trained before they served here.

    Args:
        channels: Of the features.
        labels: Number of labels.
        rngs: Where the initial weights come from.
    """

    def __init__(self, channels: int, labels: int, *, rngs: nnx.Rngs) -> None:
        self.score = Linear(channels, labels, rngs=rngs)

    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b n"]:
        """Logits of each label's being true of something in the picture, float32."""
        return self.score(features).astype(jnp.float32).max((1, 2))


class ResNetTrunk(nnx.Module):
    """He's network with the pixels that its weights expect; names are the network's.

    Args:
        layers: Blocks of the four groups.
        caffe: Whether the weights are MSRA's: strides, the stem's pool and pixels follow.
        rngs: Where the initial weights come from.
        **fields: Of `vljax.models.resnet.ResNet`, such as a folder's config tells.
    """

    def __init__(
        self, layers: tuple[int, ...], *, caffe: bool = False, rngs: nnx.Rngs, **fields: Any
    ) -> None:
        told = ({"stride_in": "1x1", "pool": "ceil"} if caffe else {}) | fields
        self.network = resnet.ResNet(layers, rngs=rngs, **told)
        self.caffe = caffe

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h/32 w/32 c"]:
        """Features of pictures in [-1, 1]."""
        dtype = x.dtype
        prepare = resnet.subtract_mean if self.caffe else resnet.normalise_pixels
        return self.network(prepare(x.astype(jnp.float32)).astype(dtype))

    def published_names(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A checkpoint's tensors by our names; see `vljax.models.resnet.ResNet`."""
        found = self.network.published_names(_own(tensors))
        return {f"network.{name}": tensor for name, tensor in found.items()}


class ClipTrunk(nnx.Module):
    """The patches of CLIP's vision transformer after its last norm.

    Args:
        fields: Sizes, as of `vljax.models.clip.PUBLISHED`.
        rngs: Where the initial weights come from.
    """

    def __init__(self, fields: Mapping[str, Any], *, rngs: nnx.Rngs) -> None:
        self.size = fields["image_size"]
        self.grid = self.size // fields["patch_size"]
        self.network = VisionTransformer(
            image_size=self.size,
            patch_size=fields["patch_size"],
            layers=fields["vision_layers"],
            width=fields["vision_width"],
            embed_dim=fields["embed_dim"],
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b g g c"]:
        """Features of pictures in [-1, 1], which are resized where they have another size."""
        places = self.network.positions(prepare_images(x, self.size).astype(x.dtype))[:, 1:]
        return places.reshape(len(x), self.grid, self.grid, -1)

    def published_names(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A whole CLIP's tensors, or its image tower's alone, by our names; texts are left out."""
        found = CLIP.published_names(_own(tensors))
        return {
            f"network.{name.removeprefix('visual.')}": tensor
            for name, tensor in found.items()
            if name.startswith("visual.")
        }


def _own(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors without our own prefix, which files that we wrote have."""
    return {name.removeprefix("network."): tensor for name, tensor in tensors.items()}


def published_trunk(kind: str, weights: str, *, rngs: nnx.Rngs) -> tuple[Any, int]:
    """A trunk whose weights were published, and the channels of its features.

    Args:
        kind: `"resnet50"`, `"resnet101"`, `"resnet152"` or `"clip"`.
        weights: Their file or folder: of a ResNet it decides strides, pool and pixels.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a folder's config describes another network.
    """
    if kind == "clip":
        fields = CLIPS["ViT-B/16"]
        return ClipTrunk(fields, rngs=rngs), fields["vision_width"]
    told: dict[str, Any] = {"layers": resnet.DEPTHS[int(kind.removeprefix("resnet"))]}
    if (files.expanded(weights) / "config.json").is_file():
        told |= resnet_arguments(weights)
    caffe = Path(weights).suffix == ".caffemodel"
    return ResNetTrunk(**told, caffe=caffe, rngs=rngs), 32 * told.get("width", 64)


def make_trunk(fields: Any, weights: str, *, rngs: nnx.Rngs) -> tuple[Any, int]:
    """The trunk that a config's `model.trunk` describes, and the channels of its features.

    Args:
        fields: `kind`: `"convolutions"`, trained here and `width` wide; one that is published; or
            `"none"`, where features of `channels` are only read, and there is no trunk.
        weights: File or folder of a published one.
        rngs: Where the initial weights come from.

    Raises:
        UserError: an unknown kind.
    """
    match fields.kind:
        case "convolutions":
            return Convolutions(fields.width, rngs=rngs), fields.width + 2
        case "resnet50" | "resnet101" | "resnet152" | "clip":
            return published_trunk(fields.kind, weights, rngs=rngs)
        case "none":
            if fields.channels < 1:
                raise UserError(
                    f"model.trunk.channels={fields.channels}: say how many channels the features "
                    "in data.features have"
                )
            return None, fields.channels
        case _:
            raise UserError(
                f"model.trunk.kind={fields.kind!r}: choose 'convolutions', one of 'resnet50', "
                "'resnet101', 'resnet152' and 'clip' with pretrained.trunk, or 'none' with "
                "features made once (data.features)"
            )
