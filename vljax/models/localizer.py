"""Detectors and localisers: which classes a picture shows, and where each is.

`ObjectLocalizer` is GeNeVA's, `GridLocalizer` a small one for data that it was not trained on.
El-Nouby et al., *Tell, Draw, and Repeat* (GeNeVA, 2019), section 5.2: Inception-v3 whose logits
tell what is there and, with the head beside its trunk, where. The published weights judge i-CLEVR
(`iclevr_inception_best_checkpoint.pth`, 24 classes, x and y) and CoDraw
(`codraw_inception_best_checkpoint.pth`, 58 classes, x, y and depth); parameter names are theirs.

    skeleton = jax.eval_shape(lambda: ObjectLocalizer(24, 2, rngs=nnx.Rngs(0)))
    localizer = pretrained.load(skeleton, "iclevr_inception_best_checkpoint.pth")
    probabilities, places = localizer(localizer_pixels(pictures))
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from vljax.errors import UserError
from vljax.models.inception import INPUT_SIZE, InceptionV3
from vljax.models.layers import Linear, apply
from vljax.models.trunk import Convolutions
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD

FEATURES = 512


class ObjectLocalizer(nnx.Module):
    """The network.

    Args:
        classes: 24 of i-CLEVR, 58 of CoDraw.
        coordinates: 2, or 3 with depth.
        rngs: Where the initial weights come from.
    """

    def __init__(self, classes: int, coordinates: int, *, rngs: nnx.Rngs) -> None:
        self.coordinates = coordinates
        self.inception3 = InceptionV3(outputs=FEATURES, fid=False, aux_outputs=FEATURES, rngs=rngs)
        # As published: two linear layers with nothing between them.
        self.detector = nnx.List[Any](
            [Linear(FEATURES, 256, rngs=rngs), Linear(256, classes, rngs=rngs)]
        )
        self.localizer = nnx.List[Any](
            [
                Linear(2 * FEATURES, 512, rngs=rngs),
                Linear(512, classes * coordinates, rngs=rngs),
            ]
        )

    # A sign of RSIM hangs on it, so accelerators compute in full float32 too.
    @jax.default_matmul_precision("float32")
    def __call__(
        self, images: Float[Array, "b 299 299 3"]
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n k"]]:
        """How probable each class is, and its place from 0 to 1 (x, y, and of CoDraw depth).

        Args:
            images: From `localizer_pixels`.
        """
        # The published network undoes a normalisation by ImageNet that nobody did.
        images = images * (jnp.asarray(IMAGENET_STD) / 0.5)
        images = images + (jnp.asarray(IMAGENET_MEAN) - 0.5) / 0.5
        grid, last = self.inception3.maps(images)
        assert self.inception3.AuxLogits is not None
        features, beside = self.inception3.fc(last.mean((1, 2))), self.inception3.AuxLogits(grid)
        places = apply(self.localizer, jnp.concatenate([features, beside], axis=-1))
        found = jax.nn.sigmoid(apply(self.detector, features))
        return found, places.reshape(*found.shape, self.coordinates)

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A checkpoint's tensors without `module.` before them and the norms' batch counters."""
        return {
            name.removeprefix("module."): tensor
            for name, tensor in tensors.items()
            if not name.endswith("num_batches_tracked")
        }


class GridLocalizer(nnx.Module):
    """Each class has a map of scores: its highest tells what is there, where it is high the place.

    Args:
        classes: Number of classes.
        coordinates: 2, or 3 with depth.
        width: Channels of the features.
        rngs: Where the initial weights come from.

    Raises:
        UserError: the width is no multiple of 16, as the trunk's norms need it.
    """

    def __init__(self, classes: int, coordinates: int, width: int, *, rngs: nnx.Rngs) -> None:
        if width % 16:
            raise UserError(f"localizer.width={width}: give a multiple of 16, 0 for none")
        self.coordinates = coordinates
        self.trunk = Convolutions(width, rngs=rngs)
        self.score = Linear(width + 2, classes, rngs=rngs)
        self.depth = Linear(width + 2, classes, rngs=rngs) if coordinates == 3 else None

    def __call__(
        self, x: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n"], Float[Array, "b n k"]]:
        """Logits of each class, and its place from 0 to 1 (x, y, and depth where there is one).

        Args:
            x: Pictures in [-1, 1].
        """
        features = self.trunk(x)
        features = features.reshape(len(x), -1, features.shape[-1])
        scores = self.score(features).astype(jnp.float32)
        share = jax.nn.softmax(scores, axis=1)
        # The trunk's last channels are each place's x and y, from -1 to 1.
        at = 0.5 + 0.5 * features[..., -2:].astype(jnp.float32)
        places = jnp.einsum("bpn,bpk->bnk", share, at)
        if self.depth is not None:
            depth = (share * self.depth(features).astype(jnp.float32)).sum(1)
            places = jnp.concatenate([places, depth[..., None]], axis=-1)
        return scores.max(1), places


def localizer_pixels(
    pictures: UInt8[np.ndarray, "b h w 3"],
) -> Float[np.ndarray, "b 299 299 3"]:
    """Square pictures as the network takes them: enlarged as by torchvision's Resize, 0 to 1."""
    size = (INPUT_SIZE, INPUT_SIZE)
    resized = [
        np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in pictures
    ]
    return np.stack(resized).astype(np.float32) / 255
