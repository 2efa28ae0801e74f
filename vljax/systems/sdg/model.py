"""SDG's parts, and the tokenizer of its texts."""

from flax import nnx
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, no_tokenizer, train_tokenizer
from vljax.models.clip import CLIP
from vljax.models.noisy_clip import from_clip
from vljax.models.unet import UNet

# Pictures whose captions train the tokenizer: many times what shows every word of scenes.
_TOKENIZER_PICTURES = 500


class SDG(nnx.Module):
    """The model: the denoiser `diffusion`; where it is guided, a `clip` and its `noisy_clip`."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        channels = 6 if config.diffusion.variance == "learned_range" else 3
        self.diffusion = UNet(
            image_size=config.data.image_size,
            out_channels=channels,
            rngs=rngs,
            **config.model.diffusion,
        )
        if is_guided(config):
            self.clip = CLIP(**config.model.clip, rngs=rngs)
            self.noisy_clip = from_clip(self.clip, config.model.noisy_clip.image_size, rngs=rngs)


def is_guided(config: ConfigDict) -> bool:
    """Whether the model has a CLIP: trained here on captions, else published."""
    has_clip = open_benchmark(config.data).captioned or bool(config.pretrained.clip)
    return config.guided and has_clip


def make_model(config: ConfigDict) -> SDG:
    """The model at its random start."""
    return SDG(config, rngs=nnx.Rngs(config.seed))


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of the model's CLIP; where it is trained here, so is this, always alike.

    Raises:
        UserError: none is given for a published CLIP, or it is not CLIP's.
    """
    if found := given_tokenizer(config.tokenizer, config.pretrained.clip):
        return found
    benchmark = open_benchmark(config.data)
    if not benchmark.captioned:
        raise no_tokenizer()
    captions = benchmark.captions(_TOKENIZER_PICTURES)
    return train_tokenizer(captions, config.model.clip.vocabulary_size)
