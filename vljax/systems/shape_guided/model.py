"""Shape-Guided Diffusion's parts: Stable Diffusion, and what the baselines and InferShape need."""

from flax import nnx
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, train_tokenizer
from vljax.models.clipseg import CLIPSeg
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders import as_published, drawing_arguments, unet_beside
from vljax.models.stable_diffusion import StableDiffusion


class ShapeGuided(nnx.Module):
    """The model: `sd`, and where the config asks for them `inpaint` and `segmenter`.

    With `config.pretrained.sd` the folder says how its networks are built; of `config.model` only
    their dtypes and remat count, and what else is there is published as well: `inpaint` from
    `config.pretrained.inpaint`, a segmenter from the flag of that name.

    Raises:
        UserError: a published folder cannot be used here.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        parts = {name: dict(config.model[name]) for name in ("vae", "unet", "text_encoder")}
        inpaint, segmenter = config.model.inpaint, dict(config.model.segmenter)
        if folder := config.pretrained.sd:
            parts = as_published(drawing_arguments(folder, config.diffusion.prediction), parts)
            inpaint, segmenter = False, {}
        self.sd = StableDiffusion(**parts, rngs=rngs)
        # Noisy latents, the mask, and the latents of what is around it.
        latents = self.sd.unet.conv_in.weight.shape[2]
        network = {**parts["unet"], "in_channels": 2 * latents + 1}
        if folder := config.pretrained.inpaint:
            inpaint, network = True, unet_beside(folder, network, "inpaint")
        self.inpaint = ConditionalUNet(**network, rngs=rngs) if inpaint else None
        self.segmenter = CLIPSeg(**segmenter, rngs=rngs) if segmenter else None


def make_model(config: ConfigDict) -> ShapeGuided:
    """The model at its random start."""
    return ShapeGuided(config, rngs=nnx.Rngs(config.seed))


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer in the published folder, or one whose tokens are the words of the data."""
    if found := given_tokenizer(config.pretrained.sd):
        return found
    words = open_benchmark(config.data).vocabulary
    return train_tokenizer(words, config.model.text_encoder.vocabulary_size)
