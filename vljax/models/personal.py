"""What a model learnt of one thing from a few pictures: a word of its own, or a U-Net of its own.

Of textual inversion (Gal et al., *An Image is Worth One Word*, 2022) the vectors that a text tower
reads in a new word's place; of DreamBooth (Ruiz et al., 2023) the U-Net that was fine-tuned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vljax.errors import UserError
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.layers import normal
from vljax.models.parameters import copied, named_parameters, with_parameters
from vljax.models.stable_diffusion import StableDiffusion


class Personal(nnx.Module):
    """What is taken in the place of a Stable Diffusion's own.

    Args:
        vectors: Of the new word, which stands for so many tokens; 0 for none.
        text_width: Of the text tower.
        unet: Arguments of the `ConditionalUNet`, or None for none of its own.
        rngs: Where the initial weights come from, before `with_noun` and `with_unet`.

    Raises:
        UserError: there is neither.
    """

    def __init__(
        self, *, vectors: int, text_width: int, unet: Mapping[str, Any] | None, rngs: nnx.Rngs
    ) -> None:
        if vectors < 1 and unet is None:
            raise UserError(
                f"model.personal.vectors={vectors}, without a U-Net: give 1 or more, or "
                "model.personal.unet=True"
            )
        as_is = {"published": "n d -> n d"}
        self.vectors = normal(rngs, (vectors, text_width), 0.02, **as_is) if vectors else None
        self.unet = ConditionalUNet(**unet, rngs=rngs) if unet is not None else None

    @staticmethod
    def published_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint's tensors by our names, from those of textual inversion's files.

        There the vectors have the name of the word, which in a run its config tells. Of several
        words none is ours: their names stay.
        """
        named = dict(tensors)
        words = [name for name in tensors if not name.startswith("unet.")]
        if len(words) == 1:
            vectors = named.pop(words[0])
            # A single vector lies there without the axis of their number.
            named["vectors"] = vectors[None] if vectors.ndim == 1 else vectors
        return named

    def with_noun(self, sd: StableDiffusion, tokens: Sequence[int]) -> "Personal":
        """With the word as it is before it has learnt anything: all its vectors are a noun's mean.

        Args:
            sd: Reads the noun.
            tokens: Of the noun, without start and end.
        """
        assert self.vectors is not None
        noun = sd.text_encoder.token_embedding.weight[...][jnp.asarray(tokens)].mean(0)
        return with_parameters(self, {"vectors": jnp.broadcast_to(noun, self.vectors.shape)})

    def with_unet(self, sd: StableDiffusion) -> "Personal":
        """With the U-Net as it is before it has learnt anything."""
        weights = named_parameters(sd.unet)
        return with_parameters(self, {f"unet.{name}": value for name, value in weights.items()})

    def within(self, sd: StableDiffusion) -> StableDiffusion:
        """A Stable Diffusion that has learnt it; the one given stays as it is.

        The new word's tokens are those that follow the last of the text tower.
        """
        if self.vectors is not None:
            sd = sd.with_words(self.vectors[...])
        if self.unet is None:
            return sd
        told = copied(sd)
        told.unet = self.unet
        return told
