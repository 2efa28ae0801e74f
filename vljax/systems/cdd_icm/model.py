"""CDD-ICM's parts, how they encode and compose, and what belongs to them: process and tokenizer."""

import functools
import itertools
import json
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text.tokenizers import Tokenizer, given_tokenizer, no_tokenizer, train_tokenizer
from vljax.errors import UserError
from vljax.models.clip import CLIP
from vljax.models.clip_towers import ImageTower, image_tower, prepare_images
from vljax.models.composition import make_composition
from vljax.models.layers import Linear
from vljax.models.localizer import GridLocalizer
from vljax.models.noisy_clip import NoisyCLIP
from vljax.models.unet import KeyValue, UNet
from vljax.ops.similarity import clip_scale

CONTEXTS = ("patches", "tokens")
CONDITIONS = ("linear", "plain", "off")
# Dialogues whose texts train the tokenizer: many times what shows every word of scenes.
_TOKENIZER_DIALOGUES = 300


class Encoded(NamedTuple):
    """A picture or a text in the joint space of d features.

    Attributes:
        summary: Of the whole: of a picture the class token, of a text the end token.
        places: Of every other patch, or of every token.
    """

    summary: Float[Array, "b d"]
    places: Float[Array, "b n d"]


class Condition(NamedTuple):
    """What a turn is drawn under.

    Attributes:
        vector: f(u, v), what is composed (c in the paper).
        patches: The reference's places.
        tokens: The text's places.
        reference: The reference picture in [-1, 1].
    """

    vector: Float[Array, "b d"]
    patches: Float[Array, "b p d"]
    tokens: Float[Array, "b t d"]
    reference: Float[Array, "b h w 3"]


class Composer(nnx.Module):
    """The projections of both encoders, their composition, and the temperature of ICM.

    Args:
        config: The run's.
        rngs: Where the initial weights come from.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        fields, features = config.model.clip, config.model.features
        self.image = Linear(_vision_features(fields), features, rngs=rngs)
        self.text = Linear(fields.text_width, features, rngs=rngs)
        self.compose = make_composition(config.model.composition, features, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((), config.icm_logit_scale))


class Denoiser(nnx.Module):
    """ADM's U-Net under a condition (section 2.4).

    Args:
        config: The run's.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field cannot be.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        fields = config.model
        embedding = 4 * fields.diffusion.model_channels
        if fields.condition not in CONDITIONS:
            raise UserError(
                f"model.condition={fields.condition!r}: choose one of {', '.join(CONDITIONS)}"
            )
        if fields.condition == "plain" and fields.features != embedding:
            raise UserError(
                f"model.condition='plain': model.features={fields.features} must then be 4 · "
                f"model_channels = {embedding}; choose 'linear' or change one of them"
            )
        self.context = tuple(fields.context)
        if unknown := set(self.context) - set(CONTEXTS):
            raise UserError(
                f"model.context={tuple(fields.context)}: {min(unknown)!r} is none of "
                f"{', '.join(CONTEXTS)}"
            )
        self.reference_channels = fields.reference_channels
        self.conditioned = fields.condition != "off"
        self.project = (
            Linear(fields.features, embedding, rngs=rngs) if fields.condition == "linear" else None
        )
        self.unet = UNet(
            image_size=config.data.image_size,
            in_channels=6 if self.reference_channels else 3,
            out_channels=6 if config.diffusion.variance == "learned_range" else 3,
            context_features=fields.features if self.context else None,
            rngs=rngs,
            **fields.diffusion,
        )

    def attend_to(self, condition: Condition) -> list[KeyValue] | None:
        """Keys and values of a turn's context, once for all steps."""
        parts = [getattr(condition, name) for name in CONTEXTS if name in self.context]
        return self.unet.project_context(jnp.concatenate(parts, axis=1)) if parts else None

    def __call__(
        self,
        x: Float[Array, "b h w 3"],
        t: Int[Array, " b"],
        condition: Condition,
        context: list[KeyValue] | None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b h w k"]:
        """Predict from noisy pictures at times t; `context` is from `attend_to`."""
        vector = None
        if self.conditioned:
            vector = condition.vector if self.project is None else self.project(condition.vector)
        if self.reference_channels:
            x = jnp.concatenate([x, condition.reference.astype(x.dtype)], axis=-1)
        return self.unet(x, t, vector, context, key=key)


class NoisyEncoder(nnx.Module):
    """The image encoder for noisy pictures, with weights and a temperature of its own.

    Args:
        config: The run's.
        rngs: Where the initial weights come from.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        fields, features = config.model.clip, config.model.features
        tower = _tower(fields, rngs)
        self.dtype = fields.dtype
        self.timed = (
            NoisyCLIP(tower, dtype=fields.dtype, rngs=rngs) if config.model.noisy.timed else None
        )
        self.visual = None if config.model.noisy.timed else tower
        self.image = Linear(_vision_features(fields), features, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.full((), config.icm_logit_scale))

    @property
    def tower(self) -> ImageTower:
        """The backbone."""
        tower = self.visual if self.timed is None else self.timed.visual
        assert tower is not None
        return tower

    def __call__(self, x: Float[Array, "b h w 3"], t: Int[Array, " b"]) -> Float[Array, "b d"]:
        """The summaries of noisy pictures x_t at times t."""
        images = prepare_images(x, self.tower.image_size).astype(self.dtype)
        adaptations = None if self.timed is None else self.timed.adaptations(t)
        first = self.tower.positions(images, adaptations)[:, 0]
        return self.image(first).astype(jnp.float32)


class CDDICM(nnx.Module):
    """The model."""

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        self.clip = CLIP(**config.model.clip, rngs=rngs)
        self.composer = Composer(config, rngs=rngs)
        self.matcher = Composer(config, rngs=rngs) if has_matcher(config) else None
        self.diffusion = Denoiser(config, rngs=rngs)
        self.noisy = NoisyEncoder(config, rngs=rngs) if has_noisy(config) else None
        self.localizer = (
            GridLocalizer(**config.localizer, rngs=rngs) if has_localizer(config) else None
        )


def make_model(config: ConfigDict) -> CDDICM:
    """The model at its random start."""
    return CDDICM(config, rngs=nnx.Rngs(config.seed))


def has_matcher(config: ConfigDict) -> bool:
    """Whether ICM of stage 2 has a composer of its own."""
    return bool(config.with_icm and config.icm_weight and config.model.own_matcher)


def has_noisy(config: ConfigDict) -> bool:
    """Whether the run has ICM guidance."""
    return config.with_icm and config.with_icm_guidance


def has_localizer(config: ConfigDict) -> bool:
    """Whether the run trains a detector of its own."""
    return config.localizer.width > 0


def _vision_features(fields: ConfigDict) -> int:
    """Features of a place: of a ViT its width, of a ResNet the channels of its last map."""
    return fields.vision_width * (1 if fields.get("patch_size") else 32)


def _tower(fields: ConfigDict, rngs: nnx.Rngs) -> ImageTower:
    text = ("text_width", "text_layers", "context_length", "vocabulary_size", "dtype")
    return image_tower(**{name: v for name, v in fields.items() if name not in text}, rngs=rngs)


# Encoding and composing (sections 2.2 and 2.3) ---------------------------------------------------


def encode_image(clip: CLIP, composer: Composer, images: Float[Array, "b h w 3"]) -> Encoded:
    """Pictures in [-1, 1], clean ones."""
    seen = clip.visual.positions(prepare_images(images, clip.visual.image_size).astype(clip.dtype))
    projected = composer.image(seen).astype(jnp.float32)
    return Encoded(projected[:, 0], projected[:, 1:])


def encode_text(clip: CLIP, composer: Composer, tokens: Int[Array, "b n"]) -> Encoded:
    """Texts; the summary is read at the end token, which has the largest index."""
    projected = composer.text(clip.hidden_states(tokens)).astype(jnp.float32)
    end = tokens.argmax(-1)
    return Encoded(jnp.take_along_axis(projected, end[:, None, None], axis=1)[:, 0], projected)


def compose(
    composer: Composer, reference: Float[Array, "b h w 3"], picture: Encoded, text: Encoded
) -> Condition:
    """What a reference picture and an instruction ask for (equation 1)."""
    vector = composer.compose(picture.summary, text.summary)
    return Condition(vector, picture.places, text.places, reference)


def read(
    clip: CLIP, composer: Composer, reference: Float[Array, "b h w 3"], tokens: Int[Array, "b n"]
) -> Condition:
    """`compose` from a picture in [-1, 1] and tokens."""
    picture = encode_image(clip, composer, reference)
    return compose(composer, reference, picture, encode_text(clip, composer, tokens))


def matching(model: CDDICM) -> Composer:
    """What ICM compares by: a composer of its own, or the one that pictures are drawn under."""
    return model.composer if model.matcher is None else model.matcher


def icm_scale(part: Composer | NoisyEncoder) -> Float[Array, ""]:
    """1/τ, at most 100."""
    return clip_scale(part.logit_scale[...])


def without(condition: Condition, what: tuple[str, ...], where: Array | float = 0.0) -> Condition:
    """The condition with c (and the text's tokens) at zero, where `where` is 0 (section 2.6).

    Args:
        condition: Of a turn.
        what: 'condition', 'tokens'; static. The reference stays, on the channels and in attention.
        where: 1 keeps, 0 drops; a number, or one for each example.
    """
    keep = jnp.broadcast_to(where, condition.vector.shape[:1])
    dropped = {"condition": "vector", "tokens": "tokens"}
    fields = {dropped[name]: getattr(condition, dropped[name]) for name in what}
    return condition._replace(
        **{name: v * keep.reshape(-1, *[1] * (v.ndim - 1)) for name, v in fields.items()}
    )


# Tokenizer --------------------------------------------------------------------------------------


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """The tokenizer of the model's CLIP; where it is trained here, so is this, always alike.

    Raises:
        UserError: none is given for a published CLIP, or it is not CLIP's.
    """
    if found := given_tokenizer(config.tokenizer, config.pretrained.clip):
        return found
    if not open_benchmark(config.data).captioned:
        raise no_tokenizer()
    return _own_tokenizer(json.dumps(config.data.to_dict()), config.model.clip.vocabulary_size)


@functools.lru_cache(maxsize=4)
def _own_tokenizer(data: str, vocabulary_size: int) -> Tokenizer:
    """Trained on captions and instructions."""
    benchmark = open_benchmark(ConfigDict(json.loads(data)))
    dialogues = benchmark.dialogues()
    count = min(_TOKENIZER_DIALOGUES, len(dialogues))
    told = (text for i in range(count) for text in dialogues.instructions(i))
    return train_tokenizer(itertools.chain(benchmark.captions(count), told), vocabulary_size)
