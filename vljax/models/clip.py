"""CLIP: pictures and texts in one space.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (2021),
sections 2.4 and 2.5. The image tower is a modified ResNet with attention pooling or a vision
transformer (`vljax.models.clip_towers`), the text tower a causal transformer. Parameter names are
those of OpenAI's checkpoints; `CLIP.published_names` brings those of Hugging Face `transformers` to
them.

    clip = jax.eval_shape(lambda: CLIP(**PUBLISHED["ViT-L/14"], rngs=nnx.Rngs(0)))
    clip = pretrained.load(clip, "clip-vit-large-patch14")
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.clip_towers import (
    Transformer,
    VisionTransformer,
    image_tower,
    prepare_images,
)
from vljax.models.layers import Embedding, LayerNorm, normal


def _sizes(
    embed_dim: int,
    image_size: int,
    layers: int | tuple[int, ...],
    width: int,
    text_width: int,
    patch_size: int | None = None,
) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim,
        "image_size": image_size,
        "vision_layers": layers,
        "vision_width": width,
        **({} if patch_size is None else {"patch_size": patch_size}),
        "text_width": text_width,
        "text_layers": 12,
    }


# Sizes of OpenAI's published models (tables 19 and 20 of the paper), as arguments of `CLIP`: length
# of the embedding, side of the pictures, layers and width of the image tower, width of the text
# tower, side of the patches.
PUBLISHED: dict[str, dict[str, Any]] = {
    "RN50": _sizes(1024, 224, (3, 4, 6, 3), 64, 512),
    "RN101": _sizes(512, 224, (3, 4, 23, 3), 64, 512),
    "RN50x4": _sizes(640, 288, (4, 6, 10, 6), 80, 640),
    "RN50x16": _sizes(768, 384, (6, 8, 18, 8), 96, 768),
    "RN50x64": _sizes(1024, 448, (3, 15, 36, 10), 128, 1024),
    "ViT-B/32": _sizes(512, 224, 12, 768, 512, 32),
    "ViT-B/16": _sizes(512, 224, 12, 768, 512, 16),
    "ViT-L/14": _sizes(768, 224, 24, 1024, 768, 14),
    "ViT-L/14@336px": _sizes(768, 336, 24, 1024, 768, 14),
}

Tensors = dict[str, np.ndarray]


@keeps_arguments
class TextTransformer(nnx.Module):
    """CLIP's text tower up to its last norm.

    Alone it is the text encoder of Stable Diffusion: a `transformers` `CLIPTextModel` folder
    loads into it.

    Args:
        context_length: Most tokens of a text, start and end included.
        vocabulary_size: Number of tokens.
        text_width: Features of a position.
        text_layers: Attention blocks.
        head_channels: Features of a head.
        activation: A key of `ACTIVATIONS`.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        text_width: int,
        text_layers: int,
        context_length: int = 77,
        vocabulary_size: int = 49_408,
        head_channels: int = 64,
        activation: str = "quick_gelu",
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        self.context_length = context_length
        self.dtype = dtype
        self.token_embedding = Embedding(vocabulary_size, text_width, rngs=rngs)
        self.token_embedding.weight[...] *= 0.02
        self.positional_embedding = normal(rngs, (context_length, text_width), 0.01)
        self.transformer = Transformer(
            text_width,
            text_layers,
            head_channels=head_channels,
            causal=True,
            activation=activation,
            remat=remat,
            rngs=rngs,
        )
        self.ln_final = LayerNorm(text_width)

    def hidden_states(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n w"]:
        """Every position's features after the last norm; position i depends on tokens 0 … i.

        Raises:
            ValueError: there are more tokens than `context_length`.
        """
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens are more than context_length={self.context_length}")
        x = self.token_embedding(tokens) + self.positional_embedding[...][:length]
        return self.ln_final(self.transformer(x.astype(self.dtype))[-1])

    @staticmethod
    def published_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
        """A checkpoint's tensors by OpenAI's names, from OpenAI's or `transformers`' names.

        What is no weight (sizes, counters, position indices) is left out.
        """
        return _openai_names(tensors)

    @staticmethod
    def folder_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
        """Our tensors, in the published layout, by the names of `transformers`."""
        return _transformers_names(tensors)


@keeps_arguments
class CLIP(TextTransformer):
    """Both towers and the learned temperature.

    Batches need no particular size, and no example's embedding depends on another's.

    Args:
        embed_dim: Length of the common embedding.
        image_size: Side of the pictures that the image tower sees.
        vision_layers: Four numbers of bottlenecks, or the number of a ViT's blocks.
        vision_width: Channels after the ResNet's stem, or a ViT's features.
        patch_size: Side of a ViT's patches; None for a ResNet.
        text_width: Features of the text tower.
        text_layers: Blocks of the text tower.
        context_length: Most tokens of a text, start and end included.
        vocabulary_size: Number of tokens. The end token is the last one.
        head_channels: Features of an attention head, in both towers.
        activation: A key of `ACTIVATIONS`: `"quick_gelu"` for OpenAI's checkpoints, else what
            `hidden_act` says in a folder's `config.json`.
        mask_prompts: Of a ViT, see `VisionTransformer`; OVSeg's has 3.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype; embeddings are float32 whatever it is.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        image_size: int,
        vision_layers: int | Sequence[int],
        vision_width: int,
        text_width: int,
        text_layers: int,
        patch_size: int | None = None,
        context_length: int = 77,
        vocabulary_size: int = 49_408,
        head_channels: int = 64,
        activation: str = "quick_gelu",
        mask_prompts: int = 0,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            text_width=text_width,
            text_layers=text_layers,
            context_length=context_length,
            vocabulary_size=vocabulary_size,
            head_channels=head_channels,
            activation=activation,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.visual = image_tower(
            embed_dim=embed_dim,
            image_size=image_size,
            vision_layers=vision_layers,
            vision_width=vision_width,
            patch_size=patch_size,
            head_channels=head_channels,
            activation=activation,
            mask_prompts=mask_prompts,
            remat=remat,
            rngs=rngs,
        )
        self.text_projection = normal(rngs, (text_width, embed_dim), text_width**-0.5)
        # The logarithm of the factor on cosine similarities in the contrastive loss.
        self.logit_scale = nnx.Param(jnp.log(1 / 0.07))

    @overload
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        *,
        features: Literal[False] = False,
        mask: Float[Array, "b s s"] | None = None,
    ) -> Float[Array, "b e"]: ...
    @overload
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        *,
        features: Literal[True],
        mask: Float[Array, "b s s"] | None = None,
    ) -> tuple[Float[Array, "b e"], list[Array]]: ...
    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        *,
        features: bool = False,
        mask: Float[Array, "b s s"] | None = None,
    ) -> Any:
        """The embedding of pictures, not normalised, float32.

        Args:
            images: Pictures in [-1, 1], resampled where they have not the tower's size (see
                `prepare_images`).
            features: Return also the list of the tower's five feature maps.
            mask: More than 0 where the pictures count, at the tower's size; patches that it leaves
                out are replaced by the mask prompt.
        """
        prepared = prepare_images(images, self.visual.image_size).astype(self.dtype)
        told: dict[str, Any] = {} if mask is None else {"mask": mask}
        embedding, maps = self.visual(prepared, **told)
        embedding = embedding.astype(jnp.float32)
        return (embedding, maps) if features else embedding

    def encode_text(self, tokens: Int[Array, "b n"]) -> Float[Array, "b e"]:
        """The embedding of texts, not normalised, float32.

        Args:
            tokens: Token indices with start and end, n at most `context_length`. The embedding is
                read at the first place of the largest index, which is the end token; what follows
                it is padding.
        """
        end = tokens.argmax(-1)
        hidden = jnp.take_along_axis(self.hidden_states(tokens), end[:, None, None], axis=1)[:, 0]
        return (hidden @ self.text_projection[...].astype(hidden.dtype)).astype(jnp.float32)

    def image_tokens(
        self, images: Float[Array, "b h w 3"], *, whole: bool = False
    ) -> Float[Array, "b n e"]:
        """The embedding of every patch of pictures, row by row, not normalised, float32.

        Of a ViT: every token goes through the last norm and the projection, as the class token
        does in `encode_image` (FILIP, Yao et al. 2022).

        Args:
            images: As in `encode_image`.
            whole: Return before them the class token's, which is `encode_image`'s embedding.

        Raises:
            UserError: the image tower is a ResNet.
        """
        if not isinstance(self.visual, VisionTransformer):
            raise UserError("a CLIP with a ResNet has no patch tokens: give one with a ViT")
        prepared = prepare_images(images, self.visual.image_size).astype(self.dtype)
        tokens = self.visual.positions(prepared)[:, 0 if whole else 1 :]
        return (tokens @ self.visual.proj[...].astype(tokens.dtype)).astype(jnp.float32)

    def text_tokens(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n e"]:
        """The embedding of every token of texts, likewise."""
        hidden = self.hidden_states(tokens)
        return (hidden @ self.text_projection[...].astype(hidden.dtype)).astype(jnp.float32)


# How names begin in Hugging Face's words and in OpenAI's, and what their layers are called.
_PLACES = (
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
)
_LAYERS = (
    (".self_attn.", ".attn."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
# Hugging Face keeps the two projections as linear layers, OpenAI as bare matrices.
_PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
# Under which OVSeg keeps its CLIP, in OpenAI's names and with the mask prompt.
_OVSEG = "clip_adapter.clip_model."
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_COUNTERS = ("num_batches_tracked", "position_ids")


def _openai_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """See `TextTransformer.published_names`."""
    renamed = {}
    if any(name.startswith(_OVSEG) for name in tensors):
        tensors = {n.removeprefix(_OVSEG): t for n, t in tensors.items() if n.startswith(_OVSEG)}
    for name, tensor in tensors.items():
        if name in _NO_WEIGHTS or name.endswith(_COUNTERS):
            continue
        # Since version 5 `transformers` writes a lone text tower without the prefix.
        if name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            name = f"text_model.{name}"
        if name in _PROJECTIONS:
            tensor = tensor.T
        for theirs, ours in _PLACES + _LAYERS:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    for kind in ("weight", "bias"):
        last = f".attn.q_proj.{kind}"
        for block in [name.removesuffix(last) for name in renamed if name.endswith(last)]:
            parts = [f"{block}.attn.{letter}_proj.{kind}" for letter in "qkv"]
            # An incomplete block keeps its names, and the importer lists them.
            if all(part in renamed for part in parts):
                joint = np.concatenate([renamed.pop(part) for part in parts])
                renamed[f"{block}.attn.in_proj_{kind}"] = joint
    return renamed


def _transformers_names(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """See `TextTransformer.folder_names`."""
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in _PLACES:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        for theirs, ours in _LAYERS:
            name = name.replace(ours, theirs)
        block, joint, kind = name.partition(".self_attn.in_proj_")
        if joint:
            for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[f"{block}.self_attn.{letter}_proj.{kind}"] = part
        else:
            renamed[name] = tensor.T if name in _PROJECTIONS else tensor
    return renamed
