"""The noise-aware CLIP: an image tower that knows how noisy its pictures are.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 4.3.5; Liu et
al., *More Control for Free! Image Synthesis with Semantic Diffusion Guidance* (2023). Every norm
of a CLIP's image tower becomes adaptive: its output is scaled and shifted by amounts that a small
network reads off the time. `from_clip` starts from a CLIP; the contrastive loss trains without
captions: a noisy picture's embedding must find that of its clean self, by the original CLIP, among
those of the batch.
"""

from collections.abc import Mapping
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.clip import CLIP, Tensors
from vljax.models.clip_towers import Adaptation, ImageTower, ModifiedResNet, prepare_images
from vljax.models.layers import Linear, apply, normal, timestep_embedding
from vljax.models.parameters import copied

TIME_FEATURES = 128
TIME_WIDTH = 512


class NoisyCLIP(nnx.Module):
    """An image tower of CLIP with time-adaptive normalisation.

    In a ResNet these are the batch norms of the stem and of the bottlenecks' main branch (the
    published network's); in a ViT every layer norm, in the same manner (ours). The parameters of
    the tower are named as in `CLIP`, under `visual`.

    Args:
        visual: The tower.
        dtype: Compute dtype; the embedding is float32 whatever it is.
        rngs: Where the initial weights of the time network come from.
    """

    def __init__(self, visual: ImageTower, *, dtype: str = "float32", rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.visual = visual
        # The lists hold functions beside layers so that indices are the checkpoint's.
        self.time_embed = nnx.List[Any](
            [
                Linear(TIME_FEATURES, TIME_WIDTH, rngs=rngs),
                jax.nn.relu,
                Linear(TIME_WIDTH, TIME_WIDTH, rngs=rngs),
            ]
        )
        # Zero at the start: the tower is then the clean one, whatever the time.
        outputs = 2 * sum(self.visual.adaptable)
        self.emb_layers = nnx.List[Any](
            [jax.nn.relu, Linear(TIME_WIDTH, outputs, zero=True, rngs=rngs)]
        )

    @overload
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        t: Float[Array, " b"] | Int[Array, " b"],
        *,
        features: Literal[False] = False,
    ) -> Float[Array, "b e"]: ...
    @overload
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        t: Float[Array, " b"] | Int[Array, " b"],
        *,
        features: Literal[True],
    ) -> tuple[Float[Array, "b e"], list[Array]]: ...
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        t: Float[Array, " b"] | Int[Array, " b"],
        *,
        features: bool = False,
    ) -> Any:
        """The embedding of noisy pictures, not normalised, float32.

        Args:
            images: Noisy pictures x_t, of clean ones in [-1, 1]; resampled where they have not the
                tower's size.
            t: Their times, in steps of the original schedule.
            features: Return also the list of the tower's five feature maps (equations 4.8, 4.9).
        """
        images = prepare_images(images, self.visual.image_size).astype(self.dtype)
        embedding, maps = self.visual(images, self.adaptations(t))
        embedding = embedding.astype(jnp.float32)
        return (embedding, maps) if features else embedding

    def adaptations(self, t: Float[Array, " b"] | Int[Array, " b"]) -> list[Adaptation]:
        """How each of the tower's norms is scaled and shifted at times `t`."""
        time = apply(self.time_embed, timestep_embedding(t, TIME_FEATURES))
        scales_and_shifts = apply(self.emb_layers, time)
        sizes = np.repeat(self.visual.adaptable, 2)
        parts = iter(jnp.split(scales_and_shifts, np.cumsum(sizes)[:-1], axis=-1))
        return list(zip(parts, parts, strict=True))

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
        """A checkpoint's tensors by our names, from ours or those of the SDG authors' networks."""
        renamed = {}
        for name, tensor in tensors.items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.startswith("visual_frozen."):
                index, rest = name.removeprefix("visual_frozen.").split(".", 1)
                name = f"visual.{_SDG_TRUNK[index]}.{rest}"
            elif name.startswith("layer4."):
                name = f"visual.{name}"
            renamed[name.replace("attn_pool.", "visual.attnpool.")] = tensor
        return renamed


# The SDG authors' trunk is a list; ours keeps CLIP's names.
_SDG_TRUNK = {
    "0": "conv1",
    "1": "bn1",
    "3": "conv2",
    "4": "bn2",
    "6": "conv3",
    "7": "bn3",
    "10": "layer1",
    "11": "layer2",
    "12": "layer3",
}


def from_clip(clip: CLIP, image_size: int, *, rngs: nnx.Rngs) -> NoisyCLIP:
    """A noise-aware tower that starts as the image tower of a CLIP; pure.

    At the CLIP's own size it gives the CLIP's embeddings exactly, at any time. At another it has
    the CLIP's weights but for a fresh positional embedding of the new grid.

    Args:
        clip: Where the weights come from; may come from `jax.eval_shape` if this call does.
        image_size: Side of the noisy pictures.
        rngs: Where the weights that the CLIP does not have come from.

    Raises:
        UserError: `image_size` does not divide into the tower's patches.
    """
    # Through the tree: new variables, so that nothing is shared with the CLIP.
    visual = copied(clip.visual)
    if image_size != visual.image_size:
        if isinstance(visual, ModifiedResNet):
            positioned: Any = visual.attnpool
            cell = 32
        else:
            positioned = visual
            cell = visual.conv1.weight.shape[0]
        if image_size % cell:
            raise UserError(
                f"image_size={image_size} of the noise-aware CLIP: choose a multiple of {cell}"
            )
        visual.image_size = image_size
        shape = ((image_size // cell) ** 2 + 1, positioned.positional_embedding.shape[1])
        positioned.positional_embedding = normal(rngs, shape, shape[1] ** -0.5)
    return NoisyCLIP(visual, dtype=clip.dtype, rngs=rngs)
