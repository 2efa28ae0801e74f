"""CLIP's towers: its ResNet, its vision transformer, and the transformer of the text tower too.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision* (2021),
sections 2.4 and 2.5. Parameter names are those of OpenAI's checkpoints.

A tower's norms can be adapted, each by its own scale and shift of every example: so the noise-aware
CLIP tells it the time. (Long: two towers that share attention and adaptation.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.blocks import average_pool
from vljax.models.layers import Conv, LayerNorm, Linear, apply, fresh_norm, normal
from vljax.models.remat import rematerialised
from vljax.ops.attention import attention
from vljax.ops.pixels import standardise
from vljax.ops.projection import project

# What CLIP subtracts from and divides by, for red, green and blue in [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

# What follows a norm: nothing, or a scale and a shift of its output, each [b c].
Adaptation = tuple[Float[Array, "b c"], Float[Array, "b c"]] | None


def quick_gelu(x: Array) -> Array:
    """GELU's stand-in with which OpenAI trained CLIP: x · σ(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    """The exact one, x · Φ(x)."""
    return jax.nn.gelu(x, approximate=False)


# By the names of `hidden_act` in Hugging Face configs.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


def normalise_pixels(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """From [-1, 1] to what CLIP's image towers see: zero mean, unit variance on its data."""
    return standardise(images, PIXEL_MEAN, PIXEL_STD)


def prepare_images(images: Float[Array, "b h w 3"], size: int) -> Float[Array, "b size size 3"]:
    """Pictures in [-1, 1] as a tower of side `size` takes them; differentiable.

    Other sizes are resampled with the antialiased bicubic filter of CLIP's own preprocessing
    (which, unlike this, rounds to 8 bits and clips). Sides are not kept in proportion: crop first.
    """
    images = images.astype(jnp.float32)
    if images.shape[1:3] != (size, size):
        images = jax.image.resize(images, (images.shape[0], size, size, 3), "cubic")
    return normalise_pixels(images)


def adapt(x: Float[Array, "b *n c"], adaptation: Adaptation) -> Float[Array, "b *n c"]:
    """Scale by 1 + scale and shift, each example by its own; nothing without an adaptation."""
    if adaptation is None:
        return x
    scale, shift = (
        jnp.expand_dims(a, tuple(range(1, x.ndim - 1))).astype(x.dtype) for a in adaptation
    )
    return x * (1 + scale) + shift


class MultiheadAttention(nnx.Module):
    """Self-attention with one joint projection to queries, keys and values.

    Args:
        width: Features of input and output.
        num_heads: Number of heads; divides `width`.
        causal: Whether a position sees only itself and those before it.
        rngs: Where the initial weights come from.
    """

    def __init__(self, width: int, num_heads: int, causal: bool, *, rngs: nnx.Rngs) -> None:
        self.num_heads = num_heads
        self.causal = causal
        self.in_proj_weight = normal(rngs, (width, 3 * width), width**-0.5, published="o i -> i o")
        self.in_proj_bias = nnx.Param(jnp.zeros(3 * width))
        self.out_proj = Linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        qkv = project(x, self.in_proj_weight[...].astype(x.dtype))
        qkv = qkv + self.in_proj_bias[...].astype(x.dtype)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.num_heads, -1), 2, 0)
        return self.out_proj(attention(q, k, v, causal=self.causal).reshape(x.shape))


class MLP(nnx.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int, activation: str, *, rngs: nnx.Rngs) -> None:
        self.activation = ACTIVATIONS[activation]
        self.c_fc = Linear(width, 4 * width, rngs=rngs)
        self.c_proj = Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        return self.c_proj(self.activation(self.c_fc(x)))


class ResidualAttentionBlock(nnx.Module):
    """Attention, then an MLP, each after a norm and added to its input."""

    def __init__(
        self, width: int, num_heads: int, causal: bool, activation: str, *, rngs: nnx.Rngs
    ) -> None:
        self.attn = MultiheadAttention(width, num_heads, causal, rngs=rngs)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, activation, rngs=rngs)
        self.ln_2 = LayerNorm(width)

    def __call__(
        self, x: Float[Array, "b n w"], adaptations: Sequence[Adaptation]
    ) -> Float[Array, "b n w"]:
        first, second = adaptations
        x = x + self.attn(adapt(self.ln_1(x), first))
        return x + self.mlp(adapt(self.ln_2(x), second))


class Transformer(nnx.Module):
    """A stack of attention blocks.

    Args:
        width: Features of a position.
        layers: Number of blocks.
        head_channels: Features of a head; divides `width`.
        causal: Whether a position sees only itself and those before it.
        activation: A key of `ACTIVATIONS`.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        head_channels: int,
        causal: bool,
        activation: str,
        remat: bool | str,
        rngs: nnx.Rngs,
    ) -> None:
        if width % head_channels:
            raise UserError(
                f"head_channels={head_channels}: a tower's width of {width} does not divide by it; "
                "choose a divisor"
            )
        if activation not in ACTIVATIONS:
            raise UserError(f"activation={activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        self.remat = remat
        heads = width // head_channels
        self.resblocks = nnx.List[Any](
            [
                ResidualAttentionBlock(width, heads, causal, activation, rngs=rngs)
                for _ in range(layers)
            ]
        )

    def __call__(
        self,
        x: Float[Array, "b n w"],
        adaptations: Sequence[Adaptation] | None = None,
        after: Callable[[int, Array], Array] = lambda number, x: x,
    ) -> list[Float[Array, "b n w"]]:
        """What each block puts out, passed through `after`, which is told the block's number."""
        remaining = iter(adaptations or [None] * 2 * len(self.resblocks))
        block = rematerialised(_run, self.remat)
        outputs = []
        for number, layer in enumerate(self.resblocks):
            x = after(number, block(layer, x, [next(remaining) for _ in range(2)]))
            outputs.append(x)
        return outputs


class AntialiasedBottleneck(nnx.Module):
    """A residual block of 1×1, 3×3 and 1×1 convolutions; strides are average pools.

    Args:
        in_channels: Channels of the input.
        channels: Channels inside; the output has four times as many.
        stride: Factor by which the picture shrinks.
        rngs: Where the initial weights come from.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, rngs: nnx.Rngs) -> None:
        out = 4 * channels
        self.stride = stride
        self.conv1 = Conv(in_channels, channels, 1, bias=False, rngs=rngs)
        self.bn1 = fresh_norm(channels)
        self.conv2 = Conv(channels, channels, 3, bias=False, rngs=rngs)
        self.bn2 = fresh_norm(channels)
        self.conv3 = Conv(channels, out, 1, bias=False, rngs=rngs)
        self.bn3 = fresh_norm(out)
        # The block starts as the identity, as in OpenAI's training.
        self.bn3.weight[...] = jnp.zeros(out)
        self.downsample = (
            nnx.List[Any]([Conv(in_channels, out, 1, bias=False, rngs=rngs), fresh_norm(out)])
            if stride > 1 or in_channels != out
            else None
        )

    def __call__(
        self, x: Float[Array, "b h w c"], adaptations: Sequence[Adaptation]
    ) -> Float[Array, "b h2 w2 c2"]:
        first, second, third = adaptations
        h = jax.nn.relu(adapt(self.bn1(self.conv1(x)), first))
        h = jax.nn.relu(adapt(self.bn2(self.conv2(h)), second))
        h = adapt(self.bn3(self.conv3(average_pool(h, self.stride))), third)
        if self.downsample is not None:
            x = apply(self.downsample, average_pool(x, self.stride))
        return jax.nn.relu(h + x)


class AttentionPool(nnx.Module):
    """The mean of a feature map asks all its positions and itself; their answer is projected.

    Args:
        grid: Side of the feature map.
        width: Channels of the feature map.
        embed_dim: Length of the output.
        num_heads: Attention heads.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self, grid: int, width: int, embed_dim: int, num_heads: int, *, rngs: nnx.Rngs
    ) -> None:
        self.num_heads = num_heads
        self.positional_embedding = normal(rngs, (grid**2 + 1, width), width**-0.5)
        self.k_proj = Linear(width, width, rngs=rngs)
        self.q_proj = Linear(width, width, rngs=rngs)
        self.v_proj = Linear(width, width, rngs=rngs)
        self.c_proj = Linear(width, embed_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b e"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        mean = x.mean(1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1) + self.positional_embedding[...].astype(x.dtype)

        def heads(y: Float[Array, "b n c"]) -> Float[Array, "b n h d"]:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        pooled = attention(
            heads(self.q_proj(x[:, :1])), heads(self.k_proj(x)), heads(self.v_proj(x))
        )
        return self.c_proj(pooled.reshape(x.shape[0], -1))


class ModifiedResNet(nnx.Module):
    """CLIP's ResNet: a stem of three convolutions, antialiased strides, attention pooling.

    `tower(x)` takes normalised pictures [b s s 3] and returns the embedding [b e] and five feature
    maps: after the stem and after each of the four groups of blocks, from s/4 to s/32 pixels wide.

    Args:
        image_size: Side of the pictures, a multiple of 32.
        layers: Bottlenecks in each of the four groups.
        width: Channels after the stem.
        embed_dim: Length of the embedding.
        head_channels: Channels of a head of the attention pool.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        image_size: int,
        layers: Sequence[int],
        width: int,
        embed_dim: int,
        head_channels: int = 64,
        remat: bool | str = "off",
        rngs: nnx.Rngs,
    ) -> None:
        if image_size % 32:
            raise UserError(f"image_size={image_size} of a CLIP ResNet: choose a multiple of 32")
        if width % 2 or 32 * width % head_channels:
            raise UserError(
                f"vision_width={width}: choose an even number of which 32 times divides by "
                f"head_channels={head_channels}"
            )
        self.image_size = image_size
        self.remat = remat
        self.conv1 = Conv(3, width // 2, 3, stride=2, bias=False, rngs=rngs)
        self.bn1 = fresh_norm(width // 2)
        self.conv2 = Conv(width // 2, width // 2, 3, bias=False, rngs=rngs)
        self.bn2 = fresh_norm(width // 2)
        self.conv3 = Conv(width // 2, width, 3, bias=False, rngs=rngs)
        self.bn3 = fresh_norm(width)

        channels = width

        def group(level: int) -> nnx.List[Any]:
            nonlocal channels
            blocks = []
            for i in range(layers[level]):
                stride = 2 if level and not i else 1
                blocks.append(AntialiasedBottleneck(channels, width * 2**level, stride, rngs=rngs))
                channels = 4 * width * 2**level
            return nnx.List[Any](blocks)

        self.layer1 = group(0)
        self.layer2 = group(1)
        self.layer3 = group(2)
        self.layer4 = group(3)
        self.attnpool = AttentionPool(
            image_size // 32, channels, embed_dim, channels // head_channels, rngs=rngs
        )

    @property
    def adaptable(self) -> tuple[int, ...]:
        """Channels of each norm that takes an adaptation, in order; a shortcut's takes none."""
        blocks = [b for group in self._groups for b in group]
        norms = [n for part in (self, *blocks) for n in (part.bn1, part.bn2, part.bn3)]
        return tuple(norm.weight.shape[0] for norm in norms)

    @property
    def _groups(self) -> tuple[nnx.List[Any], ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def __call__(
        self, x: Float[Array, "b s s 3"], adaptations: Sequence[Adaptation] | None = None
    ) -> tuple[Float[Array, "b e"], list[Float[Array, "b h w c"]]]:
        remaining = iter(adaptations or [None] * len(self.adaptable))
        block = rematerialised(_run, self.remat)
        stem = ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3))
        for conv, norm in stem:
            x = jax.nn.relu(adapt(norm(conv(x)), next(remaining)))
        x = average_pool(x, 2)
        maps = [x]
        for group in self._groups:
            for layer in group:
                x = block(layer, x, [next(remaining) for _ in range(3)])
            maps.append(x)
        return self.attnpool(x), maps

    def positions(
        self, x: Float[Array, "b s s 3"], adaptations: Sequence[Adaptation] | None = None
    ) -> Float[Array, "b n+1 c"]:
        """The last feature map place by place, before them their mean; see `VisionTransformer`."""
        places = self(x, adaptations)[1][-1]
        places = places.reshape(len(places), -1, places.shape[-1])
        mean = places.mean(1, keepdims=True, dtype=jnp.float32).astype(places.dtype)
        return jnp.concatenate([mean, places], axis=1)


class PatchEmbedding(nnx.Module):
    """One linear map of every patch of a picture."""

    def __init__(self, patch_size: int, width: int, *, rngs: nnx.Rngs) -> None:
        shape = (patch_size, patch_size, 3, width)
        self.weight = normal(
            rngs, shape, (3 * patch_size**2) ** -0.5, published="o i h w -> h w i o"
        )

    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b g g w"]:
        weight = self.weight[...].astype(x.dtype)
        patch, (b, size, _, c) = weight.shape[0], x.shape
        patches = x.reshape(b, size // patch, patch, size // patch, patch, c)
        return jnp.einsum("bgphqc,pqcw->bghw", patches, weight)


class VisionTransformer(nnx.Module):
    """CLIP's vision transformer.

    `tower(x)` takes normalised pictures [b s s 3] and returns the embedding [b e] and, as
    `ModifiedResNet` does, five feature maps [b s/p s/p w]: what enters the transformer and what
    stands after each quarter of its blocks (the choice of places is ours).

    Args:
        image_size: Side of the pictures, a multiple of `patch_size`.
        patch_size: Side of a patch.
        layers: Attention blocks.
        width: Features of a position.
        embed_dim: Length of the embedding.
        head_channels: Features of a head.
        activation: A key of `ACTIVATIONS`.
        mask_prompts: At how many places the patches outside of a mask are replaced (OVSeg, Liang et
            al. 2023, section 3.3: 3): before the transformer, and after its first blocks.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        layers: int,
        width: int,
        embed_dim: int,
        head_channels: int = 64,
        activation: str = "quick_gelu",
        mask_prompts: int = 0,
        remat: bool | str = "off",
        rngs: nnx.Rngs,
    ) -> None:
        if not 0 <= mask_prompts <= layers:
            raise UserError(
                f"mask_prompts={mask_prompts}: a tower of {layers} blocks has places for 0 to "
                f"{layers}"
            )
        if image_size % patch_size:
            raise UserError(
                f"image_size={image_size} does not divide by patch_size={patch_size}: choose a "
                "multiple"
            )
        self.image_size = image_size
        std = width**-0.5
        self.conv1 = PatchEmbedding(patch_size, width, rngs=rngs)
        self.class_embedding = normal(rngs, (width,), std)
        positions = (image_size // patch_size) ** 2 + 1
        self.positional_embedding = normal(rngs, (positions, width), std)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width,
            layers,
            head_channels=head_channels,
            causal=False,
            activation=activation,
            remat=remat,
            rngs=rngs,
        )
        self.ln_post = LayerNorm(width)
        self.proj = normal(rngs, (width, embed_dim), std)
        self.mask_embedding = (
            normal(rngs, (mask_prompts, positions - 1, width), 0.02) if mask_prompts else None
        )

    @property
    def adaptable(self) -> tuple[int, ...]:
        """Features of each norm that takes an adaptation, in order."""
        return self.class_embedding.shape * (2 * len(self.transformer.resblocks) + 2)

    def __call__(
        self,
        x: Float[Array, "b s s 3"],
        adaptations: Sequence[Adaptation] | None = None,
        mask: Float[Array, "b s s"] | None = None,
    ) -> tuple[Float[Array, "b e"], list[Float[Array, "b g g w"]]]:
        outputs, after = self._outputs(x, adaptations, mask)
        embedded = adapt(self.ln_post(outputs[-1][:, 0]), after)
        quarters = [(len(outputs) - 1) * quarter // 4 for quarter in range(5)]
        b, positions, width = outputs[0].shape
        grid = math.isqrt(positions - 1)
        maps = [outputs[i][:, 1:].reshape(b, grid, grid, width) for i in quarters]
        return embedded @ self.proj[...].astype(x.dtype), maps

    def positions(
        self, x: Float[Array, "b s s 3"], adaptations: Sequence[Adaptation] | None = None
    ) -> Float[Array, "b n+1 w"]:
        """Every position after the last norm: the class token's, then the patches' row by row.

        The first, projected, is the embedding of a call.
        """
        outputs, after = self._outputs(x, adaptations)
        return adapt(self.ln_post(outputs[-1]), after)

    def _outputs(
        self,
        x: Float[Array, "b s s 3"],
        adaptations: Sequence[Adaptation] | None,
        mask: Float[Array, "b s s"] | None = None,
    ) -> tuple[list[Float[Array, "b n+1 w"]], Adaptation]:
        """What enters the transformer and what each block puts out; what adapts the last norm."""
        before, *between, after = adaptations or [None] * len(self.adaptable)
        prompt = self._mask_prompt(mask, x.dtype)
        patches = self.conv1(x)
        b, _, _, width = patches.shape
        patches = prompt(0, patches.reshape(b, -1, width))
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (b, 1, width))
        x = jnp.concatenate([first, patches], axis=1)
        x = adapt(self.ln_pre(x + self.positional_embedding[...].astype(x.dtype)), before)

        def prompted(number: int, x: Float[Array, "b n+1 w"]) -> Float[Array, "b n+1 w"]:
            return jnp.concatenate([x[:, :1], prompt(number + 1, x[:, 1:])], axis=1)

        own = {} if mask is None else {"after": prompted}
        return [x, *self.transformer(x, between, **own)], after

    def _mask_prompt(
        self, mask: Float[Array, "b s s"] | None, dtype: Any
    ) -> Callable[[int, Float[Array, "b n w"]], Float[Array, "b n w"]]:
        """Puts the learned vectors of a place where no pixel of a patch is in the mask."""
        if mask is None:
            return lambda place, patches: patches
        if self.mask_embedding is None:
            raise ValueError("a mask needs a tower with mask prompts: give mask_prompts=3")
        vectors = self.mask_embedding[...].astype(dtype)
        side = self.conv1.weight.shape[0]
        cells = mask.reshape(len(mask), mask.shape[1] // side, side, -1, side)
        kept = (cells > 0).any((2, 4)).reshape(len(mask), -1, 1)

        def prompt(place: int, patches: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
            if place >= len(vectors):
                return patches
            return jnp.where(kept, patches, vectors[place])

        return prompt


ImageTower = ModifiedResNet | VisionTransformer


def image_tower(
    *,
    embed_dim: int,
    image_size: int,
    vision_layers: int | Sequence[int],
    vision_width: int,
    patch_size: int | None = None,
    head_channels: int = 64,
    activation: str = "quick_gelu",
    mask_prompts: int = 0,
    remat: bool | str = "off",
    rngs: nnx.Rngs,
) -> ImageTower:
    """The image tower that the arguments of a `CLIP` describe.

    Raises:
        UserError: they are neither a ResNet's nor a ViT's.
    """
    if isinstance(vision_layers, int) and patch_size is not None:
        return VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            layers=vision_layers,
            width=vision_width,
            embed_dim=embed_dim,
            head_channels=head_channels,
            activation=activation,
            mask_prompts=mask_prompts,
            remat=remat,
            rngs=rngs,
        )
    if not isinstance(vision_layers, int) and patch_size is None and not mask_prompts:
        return ModifiedResNet(
            image_size=image_size,
            layers=vision_layers,
            width=vision_width,
            embed_dim=embed_dim,
            head_channels=head_channels,
            remat=remat,
            rngs=rngs,
        )
    raise UserError(
        f"vision_layers={vision_layers!r} with patch_size={patch_size} and mask_prompts="
        f"{mask_prompts}: a ResNet has four numbers of layers, no patch size and no mask prompts, "
        "a ViT one number and a patch size"
    )


def _run(layer: Any, x: Array, adaptations: Sequence[Adaptation]) -> Array:
    return layer(x, adaptations)
