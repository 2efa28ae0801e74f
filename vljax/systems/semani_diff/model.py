"""SeMani-Diff's parts: an inpainting Stable Diffusion, and the CLIP that aligns words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, train_tokenizer
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders import as_published, predicts, stable_diffusion_arguments, unet_beside
from vljax.models.stable_diffusion import StableDiffusion


class SemaniDiff(nnx.Module):
    """The model: `sd`, whose U-Net inpaints; `clip`; and `base`, a U-Net for Blended LDM.

    With `config.pretrained.sd` the folder says how its networks are built; of `config.model` only
    their dtypes and remat count, and `clip` and `base` are there where they are published, too.

    Raises:
        UserError: a published folder cannot be used here.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        parts = {name: dict(config.model[name]) for name in ("vae", "unet", "text_encoder")}
        published = config.pretrained
        if published.sd:
            parts = as_published(_inpainting(published.sd, config.diffusion.prediction), parts)
        self.sd = StableDiffusion(**parts, rngs=rngs)
        clip = dict(config.model.clip) if published.clip or not published.sd else {}
        self.clip = CLIP(**clip, rngs=rngs) if clip else None
        base = _drawing(published.base, parts, config) if published.base else {}
        self.base = ConditionalUNet(**base, rngs=rngs) if base else None


def _inpainting(folder: str, prediction: str) -> dict[str, dict[str, Any]]:
    """The arguments of a pipeline that inpaints, where it predicts as asked."""
    arguments = stable_diffusion_arguments(folder)
    taken, latents = arguments["unet"]["in_channels"], arguments["vae"]["latent_channels"]
    if taken != 2 * latents + 1:
        raise UserError(
            f"--config.pretrained.sd={folder}: its U-Net takes {taken} channels, but one that "
            f"inpaints takes {2 * latents + 1}: give Stable Diffusion 2's inpainting folder"
        )
    if (told := predicts(folder)) not in (None, prediction):
        raise UserError(
            f"--config.diffusion.prediction={prediction}: the scheduler of {folder} tells of "
            f"another; give --config.diffusion.prediction={told}"
        )
    return arguments


def _drawing(folder: str, parts: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """The arguments of a U-Net that draws from text alone, where it fits and predicts as asked."""
    beside = {**parts["unet"], "in_channels": parts["vae"]["latent_channels"]}
    arguments = unet_beside(folder, beside, "base")
    prediction = config.diffusion.prediction
    # Its pipeline's scheduler lies beside it.
    if (told := predicts(Path(folder).parent)) not in (None, prediction):
        raise UserError(
            f"--config.pretrained.base={folder} predicts {told!r}, but this run's "
            f"config.diffusion.prediction is {prediction!r}: give one that predicts the same, such "
            "as Stable Diffusion 2's 512-base beside 2's inpainting"
        )
    return arguments


def make_model(config: ConfigDict) -> SemaniDiff:
    """The model at its random start."""
    return SemaniDiff(config, rngs=nnx.Rngs(config.seed))


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer in the published folder, or one whose tokens are the words of the data.

    Stable Diffusion 2 and OVSeg's CLIP have the same tokens.
    """
    if found := given_tokenizer(config.pretrained.sd):
        return found
    words = open_benchmark(config.data).vocabulary
    return train_tokenizer(words, config.model.text_encoder.vocabulary_size)
