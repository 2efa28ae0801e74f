"""The parts of text2image, family by family, and the CLIP that all share."""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from vljax import files
from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, no_tokenizer, train_tokenizer
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.conditional_unet import ConditionalUNet
from vljax.models.folders import as_published, drawing_arguments, unet_beside
from vljax.models.glide import GLIDE
from vljax.models.personal import Personal
from vljax.models.pixelcnn import PixelCNN
from vljax.models.prior import PriorTransformer
from vljax.models.stable_diffusion import StableDiffusion
from vljax.models.token_transformer import TokenTransformer
from vljax.models.vector_pictures import Generator, Refiner, TextVAE, Viewer
from vljax.models.vqgan import VQGAN
from vljax.ops.similarity import normalise
from vljax.systems.text2image.recipe import check_family

# Families that draw without CLIP, which then judges if it is given.
_WITHOUT_CLIP = ("latent", "pixels")
Parts = dict[str, nnx.Module | None]


class Text2Image(nnx.Module):
    """The model: `clip`, or None, and what its family draws with.

    | family | parts |
    |---|---|
    | `latent` | `sd`, whose text tower is a CLIP where it is trained here; `inpaint`, or None; \
`personal`, or None |
    | `pixels` | `glide`; `upsampler`, or None |
    | `tokens` | `vqgan`, `transformer` |
    | `vqvae` | `vqgan`, `prior` |
    | `pixelcnn` | `pixelcnn` |
    | `variational` | `vae` |
    | `unclip` | `unclip`, `vae` |
    | `adversarial` | `generator`, `discriminator`; `refiner` and `critic`, or None |

    Raises:
        UserError: there is no such family, or a field or a published folder cannot be used.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        check_family(config.family)
        fields = config.model.clip
        asked = needs_clip(config) or "clip" in config.stages or config.pretrained.clip
        self.clip = CLIP(**fields, rngs=rngs) if fields and asked else None
        for name, part in _PARTS[config.family](config, rngs).items():
            setattr(self, name, part)


def needs_clip(config: ConfigDict) -> bool:
    """Whether nothing can be drawn without the part `clip`."""
    return bool(config.model.clip) and config.family not in _WITHOUT_CLIP


def latent_arguments(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The arguments of the part `sd`: those of a folder where one is given, else the config's.

    Raises:
        UserError: the folder cannot be used.
    """
    parts = {name: dict(config.model[name]) for name in ("vae", "unet", "text_encoder")}
    # A file has weights alone: those of a run with these very fields.
    if not (given := config.pretrained.sd) or files.expanded(given).is_file():
        return parts
    return as_published(drawing_arguments(given, config.diffusion.prediction), parts)


def _latent(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    parts = latent_arguments(config)
    sd = StableDiffusion(**parts, rngs=rngs)
    inpaint = None
    if folder := config.pretrained.inpaint:
        latents = sd.unet.conv_in.weight.shape[2]
        beside = {**parts["unet"], "in_channels": 2 * latents + 1}
        inpaint = ConditionalUNet(**unet_beside(folder, beside, "inpaint"), rngs=rngs)
    personal = None
    if fields := config.model.get("personal"):
        personal = Personal(
            vectors=fields.vectors,
            text_width=parts["text_encoder"]["text_width"],
            unet=parts["unet"] if fields.unet else None,
            rngs=rngs,
        )
    return {"sd": sd, "inpaint": inpaint, "personal": personal}


def _pixels(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    side, texts = config.data.image_size, config.model.text_encoder
    channels = 6 if config.diffusion.variance == "learned_range" else 3
    fields = {**texts, "out_channels": channels, "rngs": rngs}
    base = GLIDE(**config.model.unet, **fields, image_size=side)
    if not (larger := config.model.upsampler):
        return {"glide": base, "upsampler": None}
    if larger.image_size % side or larger.image_size <= side:
        raise UserError(
            f"model.upsampler.image_size={larger.image_size}: give a multiple of "
            f"data.image_size={side}, which it enlarges"
        )
    return {"glide": base, "upsampler": GLIDE(**larger, **fields, in_channels=6)}


def _vqgan(config: ConfigDict, rngs: nnx.Rngs) -> VQGAN:
    vqgan = VQGAN(**config.model.vqgan, rngs=rngs)
    side = config.data.image_size
    if side % vqgan.shrink:
        raise UserError(
            f"data.image_size={side}: a code stands for {vqgan.shrink} pixels each way, give a "
            "multiple"
        )
    return vqgan


def _tokens(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    vqgan = _vqgan(config, rngs)
    transformer = TokenTransformer(
        **config.model.transformer,
        num_codes=config.model.vqgan.num_codes,
        grid=config.data.image_size // vqgan.shrink,
        vocabulary_size=config.model.clip.vocabulary_size,
        vision=False,
        rngs=rngs,
    )
    return {"vqgan": vqgan, "transformer": transformer}


def _vqvae(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    prior = PixelCNN(
        **config.model.pixelcnn,
        levels=config.model.vqgan.num_codes,
        channels=1,
        context_features=config.model.clip.embed_dim,
        rngs=rngs,
    )
    return {"vqgan": _vqgan(config, rngs), "prior": prior}


def _pixelcnn(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    if 256 % (levels := config.model.pixelcnn.levels):
        raise UserError(
            f"model.pixelcnn.levels={levels}: the ranges of 256 values would differ in size; give "
            "a power of 2"
        )
    context = config.model.clip.embed_dim
    return {"pixelcnn": PixelCNN(**config.model.pixelcnn, context_features=context, rngs=rngs)}


def _variational(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    return {"vae": TextVAE(**config.model.vae, **_sizes(config), rngs=rngs)}


def _unclip(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    clip = config.model.clip
    sizes = {"embedding": clip.embed_dim, "text_length": clip.context_length}
    prior = PriorTransformer(**config.model.unclip, **sizes, rngs=rngs)
    return {"unclip": prior, **_variational(config, rngs)}


def _adversarial(config: ConfigDict, rngs: nnx.Rngs) -> Parts:
    sizes = _sizes(config)
    generator = Generator(**config.model.generator, **sizes, rngs=rngs)
    discriminator = Viewer(**config.model.discriminator, **sizes, features=1, rngs=rngs)
    refiner = critic = None
    if fields := config.model.get("refiner"):
        small, embedding = sizes["side"], sizes["embedding"]
        refiner = Refiner(**fields, small=small, embedding=embedding, rngs=rngs)
        larger = {"side": fields.side, "embedding": embedding}
        critic = Viewer(**config.model.critic, **larger, features=1, rngs=rngs)
    return {
        **{"generator": generator, "discriminator": discriminator},
        **{"refiner": refiner, "critic": critic},
    }


def _sizes(config: ConfigDict) -> dict[str, Any]:
    return {"side": config.data.image_size, "embedding": config.model.clip.embed_dim}


_PARTS: dict[str, Callable[[ConfigDict, nnx.Rngs], Parts]] = {
    "latent": _latent,
    "pixels": _pixels,
    "tokens": _tokens,
    "vqvae": _vqvae,
    "pixelcnn": _pixelcnn,
    "variational": _variational,
    "unclip": _unclip,
    "adversarial": _adversarial,
}


def make_model(config: ConfigDict) -> Text2Image:
    """The model at its random start."""
    return Text2Image(config, rngs=nnx.Rngs(config.seed))


def clip_of(model: Any) -> CLIP | None:
    """The CLIP that ranks and judges: the part, or the text tower that is a whole CLIP."""
    if model.clip is not None:
        return model.clip
    tower = model.sd.text_encoder if hasattr(model, "sd") else None
    return tower if isinstance(tower, CLIP) else None


def embed_texts(model: Any, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
    """CLIP's embeddings of texts, as they condition `variational` and `adversarial`."""
    clip = clip_of(model)
    assert clip is not None
    return to_condition(clip.encode_text(tokens))


def to_condition(embedding: Float[Array, "b e"]) -> Float[Array, "b e"]:
    """CLIP's embeddings at the length that a deviation of 1 in each value has."""
    return normalise(embedding) * embedding.shape[-1] ** 0.5


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of what reads the texts; where that is trained here, so is this, always alike.

    Raises:
        UserError: none is given for a published network, or the one given does not fit.
    """
    published = config.pretrained
    if found := given_tokenizer(config.tokenizer, published.get("sd", ""), published.clip):
        return found
    benchmark = open_benchmark(config.data)
    if not benchmark.vocabulary:
        raise no_tokenizer()
    tower = config.model.text_encoder or config.model.clip
    return train_tokenizer(benchmark.vocabulary, tower.vocabulary_size)
