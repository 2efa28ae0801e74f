"""CLIPSeg: the pixels that a text names.

Lüddecke & Ecker, *Image Segmentation Using Text and Image Prompts* (2022), section 3: CLIP's
vision transformer looks at the picture; a small decoder takes what stands after a few of its
blocks, the deepest first, and is conditioned on the text's CLIP embedding by a scale and a shift
(FiLM). With it Shape-Guided Diffusion infers shapes (thesis section 5.3).

Parameter names are those of Hugging Face's `CLIPSegForImageSegmentation` in the decoder, and
OpenAI's (see `vljax.models.clip`) in the CLIP; loading brings a folder's to them.

    folder = "clipseg-rd64-refined"
    arguments = clipseg_arguments(folder)
    model = jax.eval_shape(lambda: CLIPSeg(**arguments, rngs=nnx.Rngs(0)))
    model = pretrained.load(model, folder)
    logits = model(images, open_tokenizer(folder)(["dog"], model.clip.context_length))
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.clip import CLIP
from vljax.models.clip_towers import VisionTransformer
from vljax.models.layers import Conv, LayerNorm, Linear, apply, fan_in_uniform
from vljax.ops.attention import attention
from vljax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, standardise


class SelfAttention(nnx.Module):
    """Multi-head self-attention.

    Args:
        width: Features of input and output.
        num_heads: Number of heads; divides `width`.
        rngs: Where the initial weights come from.
    """

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.q_proj = Linear(width, width, rngs=rngs)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        q, k, v = (
            projection(x).reshape(*x.shape[:2], self.num_heads, -1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v).reshape(x.shape))


class RectifiedMLP(nnx.Module):
    """Two linear layers and a rectifier between them."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        return self.fc2(jax.nn.relu(self.fc1(x)))


class DecoderLayer(nnx.Module):
    """Attention, then an MLP, each added to its input and then normalised."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.self_attn = SelfAttention(width, num_heads, rngs=rngs)
        self.layer_norm1 = LayerNorm(width)
        self.mlp = RectifiedMLP(width, hidden, rngs=rngs)
        self.layer_norm2 = LayerNorm(width)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        x = self.layer_norm1(x + self.self_attn(x))
        return self.layer_norm2(x + self.mlp(x))


class Enlarge(nnx.Module):
    """A transposed convolution whose stride is its kernel: every pixel becomes a square.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        factor: Side of the squares.
        rngs: Where the initial weights come from.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, *, rngs: nnx.Rngs) -> None:
        shape = (factor, factor, in_channels, out_channels)
        weight = fan_in_uniform(rngs, shape, in_channels, zero=False)
        self.weight = nnx.Param(weight, published="i o h w -> h w i o")
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        weight = self.weight[...].astype(x.dtype)
        factor, (b, h, w, _) = weight.shape[0], x.shape
        squares = jnp.einsum("bhwi,pqio->bhpwqo", x, weight)
        return squares.reshape(b, h * factor, w * factor, -1) + self.bias[...].astype(x.dtype)


class MaskDecoder(nnx.Module):
    """From the picture's activations and the text's embedding to a logit per pixel.

    Args:
        vision_width: Features of the activations.
        embed_dim: Length of the text's embedding.
        depth: How many activations are read; one layer each.
        reduce_dim: Features inside.
        num_heads: Attention heads.
        hidden: Features inside the MLPs.
        conditional_layer: The layer before which the text comes in.
        patch_size: Side in pixels of what one position stands for.
        refined: Enlarge in two steps after a 3×3 convolution, not in one.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        vision_width: int,
        embed_dim: int,
        depth: int,
        reduce_dim: int,
        num_heads: int,
        hidden: int,
        conditional_layer: int,
        patch_size: int,
        refined: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.conditional_layer = conditional_layer
        self.film_mul = Linear(embed_dim, reduce_dim, rngs=rngs)
        self.film_add = Linear(embed_dim, reduce_dim, rngs=rngs)
        self.reduces = nnx.List[Any](
            [Linear(vision_width, reduce_dim, rngs=rngs) for _ in range(depth)]
        )
        self.layers = nnx.List[Any](
            [DecoderLayer(reduce_dim, num_heads, hidden, rngs=rngs) for _ in range(depth)]
        )
        self.transposed_convolution: Any
        if refined:
            self.transposed_convolution = nnx.List[Any](
                [
                    Conv(reduce_dim, reduce_dim, 3, rngs=rngs),
                    jax.nn.relu,
                    Enlarge(reduce_dim, reduce_dim // 2, patch_size // 4, rngs=rngs),
                    jax.nn.relu,
                    Enlarge(reduce_dim // 2, 1, 4, rngs=rngs),
                ]
            )
        else:
            self.transposed_convolution = Enlarge(reduce_dim, 1, patch_size, rngs=rngs)

    def __call__(
        self, activations: Sequence[Float[Array, "b n w"]], text: Float[Array, "b e"]
    ) -> Float[Array, "b s s"]:
        """Logits; `activations` begin with the class position and come in the order of depth."""
        x: Any = 0
        for i, activation in enumerate(reversed(activations)):
            x = self.reduces[i](activation) + x
            if i == self.conditional_layer:
                x = self.film_mul(text)[:, None] * x + self.film_add(text)[:, None]
            x = self.layers[i](x)
        side = math.isqrt(x.shape[1] - 1)
        x = x[:, 1:].reshape(len(x), side, side, -1)
        enlarge = self.transposed_convolution
        x = apply(enlarge, x) if isinstance(enlarge, nnx.List) else enlarge(x)
        return x[..., 0]


@keeps_arguments
class CLIPSeg(nnx.Module):
    """`model(images, tokens)` gives a logit per pixel: does it belong to what the text names?

    Nothing is frozen here: the paper trains the decoder alone, and so does a stage whose pattern
    names the decoder's parameters only.

    Args:
        embed_dim: Length of the common embedding.
        patch_size: Side of the image tower's patches.
        vision_layers: Blocks of the image tower.
        vision_width: Features of the image tower.
        extract_layers: The blocks of the image tower, from 0 and in order, that the decoder reads.
        reduce_dim: Features of the decoder.
        decoder_heads: Attention heads of the decoder.
        decoder_hidden: Features inside the decoder's MLPs.
        conditional_layer: The decoder layer, from 0, before which the text comes in.
        refined: Enlarge in two learned steps, as `clipseg-rd64-refined` does, not in one.
        input_size: Side at which pictures of any size are shown to the model.
        image_size: Side of the pictures that the positional embedding was made for; pictures of
            other sides use it resampled.
        text_width: See `CLIP`, as of all that follow.
        text_layers: See there.
        context_length: See there.
        vocabulary_size: See there.
        head_channels: See there.
        activation: See there.
        remat: See there.
        dtype: Compute dtype; logits are float32 whatever it is.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        patch_size: int,
        vision_layers: int,
        vision_width: int,
        extract_layers: Sequence[int] = (3, 6, 9),
        reduce_dim: int = 64,
        decoder_heads: int = 4,
        decoder_hidden: int = 2048,
        conditional_layer: int = 0,
        refined: bool = True,
        input_size: int = 352,
        image_size: int,
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
        extract_layers = tuple(extract_layers)
        ordered = sorted(set(extract_layers))
        if list(extract_layers) != ordered or not ordered:
            raise UserError(
                f"extract_layers={extract_layers}: give blocks of the image tower in rising order"
            )
        if not 0 <= ordered[0] <= ordered[-1] < vision_layers:
            raise UserError(
                f"extract_layers={extract_layers}: the image tower has blocks 0 to "
                f"{vision_layers - 1}, choose among them"
            )
        if not 0 <= conditional_layer < len(extract_layers):
            raise UserError(
                f"conditional_layer={conditional_layer}: the decoder has layers 0 to "
                f"{len(extract_layers) - 1}, choose one of them"
            )
        if reduce_dim % decoder_heads:
            raise UserError(
                f"reduce_dim={reduce_dim} does not divide by decoder_heads={decoder_heads}: choose "
                "a multiple"
            )
        if refined and patch_size % 4:
            raise UserError(
                f"patch_size={patch_size} with refined=True: choose a multiple of 4, or "
                "refined=False"
            )
        if input_size % patch_size:
            raise UserError(
                f"input_size={input_size} does not divide by patch_size={patch_size}: choose a "
                "multiple"
            )
        self.extract_layers = extract_layers
        self.input_size = input_size
        self.clip = CLIP(
            embed_dim=embed_dim,
            vision_layers=vision_layers,
            vision_width=vision_width,
            patch_size=patch_size,
            image_size=image_size,
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
        self.decoder = MaskDecoder(
            vision_width=vision_width,
            embed_dim=embed_dim,
            depth=len(extract_layers),
            reduce_dim=reduce_dim,
            num_heads=decoder_heads,
            hidden=decoder_hidden,
            conditional_layer=conditional_layer,
            patch_size=patch_size,
            refined=refined,
            rngs=rngs,
        )

    def __call__(
        self, images: Float[Array, "b s s 3"], tokens: Int[Array, "b n"]
    ) -> Float[Array, "b s s"]:
        """Logits, float32, of square pictures in [-1, 1] whose side is a multiple of the patch's.

        Args:
            images: The pictures.
            tokens: A text for each, with start and end.

        Raises:
            ValueError: the pictures are not square, or of no such side.
        """
        patch = self.clip.visual.conv1.weight.shape[0]
        height, width = images.shape[1:3]
        if height != width or height % patch:
            raise ValueError(f"pictures of {height}×{width}: give squares of a multiple of {patch}")
        activations = self._activations(images)
        text = self.clip.encode_text(tokens).astype(self.clip.dtype)
        return self.decoder(activations, text).astype(jnp.float32)

    def _activations(self, images: Float[Array, "b s s 3"]) -> list[Float[Array, "b n w"]]:
        """What stands after each of `extract_layers`, the class position first."""
        tower = self.clip.visual
        assert isinstance(tower, VisionTransformer)
        # Unlike CLIP, CLIPSeg was trained with ImageNet's statistics.
        pixels = standardise(images.astype(jnp.float32), IMAGENET_MEAN, IMAGENET_STD)
        patches = tower.conv1(pixels.astype(self.clip.dtype))
        b, side, _, width = patches.shape
        first = jnp.broadcast_to(tower.class_embedding[...].astype(patches.dtype), (b, 1, width))
        x = jnp.concatenate([first, patches.reshape(b, -1, width)], axis=1)
        positions = resample_positions(tower.positional_embedding[...], side)
        x = tower.ln_pre(x + positions.astype(x.dtype))
        outputs = tower.transformer(x)
        return [outputs[i] for i in self.extract_layers]


# Numerics --------------------------------------------------------------------------------------


def resample_positions(positions: Float[Array, "n w"], side: int) -> Float[Array, "m w"]:
    """A positional embedding for a grid of `side`², by cubic convolution as PyTorch defines it.

    Args:
        positions: The class position's, then those of a square grid, row by row.
        side: Side of the new grid.
    """
    old = math.isqrt(len(positions) - 1)
    if old == side:
        return positions
    weights = jnp.asarray(_cubic_weights(old, side))
    grid = positions[1:].reshape(old, old, -1)
    grid = jnp.einsum("pi,qj,ijw->pqw", weights, weights, grid, precision="highest")
    return jnp.concatenate([positions[:1], grid.reshape(side**2, -1)])


@functools.lru_cache(maxsize=8)
def _cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Row i: what each old sample gives to new sample i (Keys 1981 with a = −0.75).

    No antialiasing; what lies beyond the border is the border.
    """
    a = -0.75
    weights = np.zeros((new, old), np.float64)
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        left = math.floor(place)
        for j in range(left - 1, left + 3):
            d = abs(place - j)
            if d <= 1:
                weight = ((a + 2) * d - (a + 3)) * d * d + 1
            else:
                weight = a * (((d - 5) * d + 8) * d - 4)
            weights[i, min(max(j, 0), old - 1)] += weight
    return weights.astype(np.float32)
