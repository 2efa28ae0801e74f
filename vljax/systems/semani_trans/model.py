"""SeMani-Trans's parts: codes, the Transformer over them, and CLIP."""

from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, no_tokenizer, train_tokenizer
from vljax.errors import UserError
from vljax.models.adversarial import PatchDiscriminator
from vljax.models.clip import CLIP
from vljax.models.perceptual import LPIPS
from vljax.models.token_transformer import TokenTransformer
from vljax.models.vqgan import VQGAN

# Pictures whose captions train the tokenizer: many times what shows every word of scenes.
_TOKENIZER_PICTURES = 500


class SeManiTrans(nnx.Module):
    """The model.

    - `vqgan`: pictures as codes;
    - `transformer`: draws codes one after the other;
    - `parallel`: fills in masked codes, or None;
    - `plain`: a `transformer` without the semantic loss, the ablation of figure 8, or None;
    - `clip`: guides the training;
    - `aligner`: another CLIP that tells what a word names, or None where `clip` does;
    - `lpips` and `discriminator`: judge the autoencoder where it trains with them, or None.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        fields = config.model
        self.vqgan = VQGAN(**fields.vqgan, rngs=rngs)
        side = config.data.image_size
        if side % self.vqgan.shrink:
            raise UserError(
                f"data.image_size={side}: a code stands for {self.vqgan.shrink} pixels each way, "
                "give a multiple"
            )
        sizes: dict[str, Any] = {
            **fields.transformer,
            "num_codes": fields.vqgan.num_codes,
            "grid": side // self.vqgan.shrink,
            "vocabulary_size": fields.clip.vocabulary_size,
        }
        self.transformer = TokenTransformer(**sizes, rngs=rngs)
        self.parallel = (
            TokenTransformer(**sizes, masked=True, rngs=rngs) if config.parallel else None
        )
        plain = config.ablations and "plain" in config.stages
        self.plain = TokenTransformer(**sizes, rngs=rngs) if plain else None
        self.clip = CLIP(**fields.clip, rngs=rngs)
        self.aligner = CLIP(**fields.aligner, rngs=rngs) if fields.aligner else None
        self.lpips = LPIPS("vgg", rngs=rngs) if config.pretrained.lpips else None
        self.discriminator = (
            PatchDiscriminator(rngs=rngs) if "adversarial" in config.stages else None
        )


def make_model(config: ConfigDict) -> SeManiTrans:
    """The model at its random start."""
    return SeManiTrans(config, rngs=nnx.Rngs(config.seed))


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of CLIP and Transformer; where CLIP is trained here, so is this, always alike.

    Raises:
        UserError: none is given for a published CLIP, or it is not CLIP's.
    """
    if found := given_tokenizer(config.tokenizer, config.pretrained.clip):
        return found
    if "clip" not in config.stages:
        raise no_tokenizer()
    captions = open_benchmark(config.data).captions(_TOKENIZER_PICTURES)
    return train_tokenizer(captions, config.model.clip.vocabulary_size)
