"""The stage loss of a CLIP that a system trains for itself: pictures against their texts."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Key

from vljax.ops.pixels import to_unit
from vljax.ops.similarity import clip_scale, contrastive_loss


def clip_loss(clip_of: Callable[[Any], Any], image: str = "image") -> Callable:
    """CLIP's contrast over the batch, the temperature learned (Radford et al. 2021, figure 3).

    Args:
        clip_of: The CLIP of a model.
        image: The pictures' name in batches, uint8 [b h w 3]; their texts are `tokens` [b n].

    Returns:
        `loss(model, batch, key) -> (loss, {"scale": the factor on cosines})`.
    """

    def loss(
        model: Any, batch: Mapping[str, Array], key: Key[Array, ""]
    ) -> tuple[Array, dict[str, Array]]:
        clip = clip_of(model)
        images = clip.encode_image(to_unit(batch[image]))
        texts = clip.encode_text(batch["tokens"])
        scale = clip_scale(clip.logit_scale[...])
        return contrastive_loss(images, texts, scale), {"scale": scale}

    return loss
