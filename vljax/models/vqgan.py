"""VQGAN: pictures as maps of codes, and back.

Esser et al., *Taming Transformers for High-Resolution Image Synthesis* (2021), section 3.1; in
SeMani section 3.2.1 and equation 3. The towers are those of `vljax.models.autoencoder`, with
attention inside the levels that ask for it. Parameter names are those of a `diffusers` folder of a
`VQModel`; `VQGAN.published_names` brings taming-transformers' to them.

    skeleton = jax.eval_shape(lambda: VQGAN(**PUBLISHED["imagenet_f16_1024"], rngs=nnx.Rngs(0)))
    vqgan = pretrained.load(skeleton, "vqgan_imagenet_f16_1024/last.ckpt")
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.autoencoder import Decoder, Encoder, check_levels, check_sides, todays_names
from vljax.models.layers import Conv, Embedding, next_key
from vljax.models.parameters import copied
from vljax.ops.quantization import nearest, straight_through

Tensor = TypeVar("Tensor")

#: Arguments of `VQGAN` for taming-transformers' checkpoints.
PUBLISHED: dict[str, dict[str, Any]] = {
    "imagenet_f16_1024": {
        "num_codes": 1024,
        "code_channels": 256,
        "latent_channels": 256,
        "block_out_channels": (128, 128, 256, 256, 512),
        "attention_levels": (False, False, False, False, True),
        "layers_per_block": 2,
        "norm_groups": 32,
    }
}


class Quantized(NamedTuple):
    """Vectors replaced by their nearest codes.

    Attributes:
        vectors: The codes' vectors; their gradient is the encoder's, straight through.
        codes: Their indices.
        loss: Codebook and commitment together, the mean over all values.
    """

    vectors: Float[Array, "b h w d"]
    codes: Int[Array, "b h w"]
    loss: Float[Array, ""]


class Quantizer(nnx.Module):
    """The codebook (van den Oord et al. 2017, equation 3).

    Args:
        num_codes: How many codes.
        channels: Length of each.
        beta: Weight of the commitment: how strongly encodings are drawn to their codes.
        legacy: Whether beta weighs the other term, how strongly codes are drawn to encodings, as
            taming-transformers has it by default (a known fault of its code).
        rngs: Where the initial codes come from.
    """

    def __init__(
        self, num_codes: int, channels: int, beta: float, legacy: bool, *, rngs: nnx.Rngs
    ) -> None:
        self.beta, self.legacy = beta, legacy
        self.embedding = Embedding(num_codes, channels, rngs=rngs)
        bound = 1.0 / num_codes
        self.embedding.weight[...] = jax.random.uniform(
            next_key(rngs), (num_codes, channels), jnp.float32, -bound, bound
        )

    def __call__(self, z: Float[Array, "b h w d"]) -> Quantized:
        """The nearest codes."""
        codes = nearest(z, self.embedding.weight[...])
        chosen, z = self.embedding(codes), z.astype(jnp.float32)
        to_encoding = jnp.square(chosen - jax.lax.stop_gradient(z)).mean()
        to_code = jnp.square(jax.lax.stop_gradient(chosen) - z).mean()
        if self.legacy:
            loss = to_code + self.beta * to_encoding
        else:
            loss = to_encoding + self.beta * to_code
        return Quantized(straight_through(chosen, z), codes, loss)


@keeps_arguments
class VQGAN(nnx.Module):
    """The autoencoder of codes.

    Pictures are float32 in [-1, 1], their sides divisible by 2^(levels − 1);
    `folders.vqgan_arguments` reads the arguments from a `diffusers` folder.

    Args:
        in_channels: Channels of the pictures that go in.
        out_channels: Channels of the pictures that come out.
        latent_channels: Channels of what the encoder puts out and the decoder takes.
        code_channels: Length of a code.
        num_codes: How many codes there are.
        block_out_channels: Channels of each level, the finest first.
        attention_levels: Which levels have attention.
        layers_per_block: Residual blocks a level in the encoder; the decoder has one more.
        norm_groups: Groups of the norms.
        beta: See `Quantizer`.
        legacy: See `Quantizer`.
        remat: What a level keeps for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.

    Raises:
        UserError: a field does not fit the others.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 256,
        code_channels: int = 256,
        num_codes: int = 1024,
        block_out_channels: Sequence[int] = (128, 128, 256, 256, 512),
        attention_levels: Sequence[bool] = (False, False, False, False, True),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        beta: float = 0.25,
        legacy: bool = True,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        check_levels(block_out_channels, norm_groups)
        if len(attention_levels) != len(block_out_channels):
            raise UserError(
                f"attention_levels has {len(attention_levels)} entries, but block_out_channels "
                f"{len(block_out_channels)}: give one for each level"
            )
        self.dtype = dtype
        self.shrink = 2 ** (len(block_out_channels) - 1)
        self.num_codes = num_codes
        shared = (latent_channels, block_out_channels, layers_per_block, norm_groups, remat)
        self.encoder = Encoder(in_channels, *shared, attention=attention_levels, rngs=rngs)
        self.decoder = Decoder(out_channels, *shared, attention=attention_levels, rngs=rngs)
        self.quantize = Quantizer(num_codes, code_channels, beta, legacy, rngs=rngs)
        self.quant_conv = Conv(latent_channels, code_channels, 1, rngs=rngs)
        self.post_quant_conv = Conv(code_channels, latent_channels, 1, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """What the pictures' codes are nearest to, float32.

        Raises:
            UserError: the sides of the pictures cannot be halved often enough.
        """
        check_sides(images, self.shrink)
        return self.quant_conv(self.encoder(images.astype(self.dtype))).astype(jnp.float32)

    def codes(self, images: Float[Array, "b h w c"]) -> Int[Array, "b h2 w2"]:
        """The codes of pictures, int32."""
        return nearest(self.encode(images), self.quantize.embedding.weight[...])

    def vectors(self, codes: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """The vectors of codes."""
        return self.quantize.embedding(codes)

    def decode(self, vectors: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 c"]:
        """The pictures of codes' vectors, float32, about [-1, 1] but not clipped to it."""
        return self.decoder.conv_out(self.before_last(vectors)).astype(jnp.float32)

    def before_last(self, vectors: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 f"]:
        """What enters the decoder's last convolution."""
        return self.decoder.before_last(self.post_quant_conv(vectors.astype(self.dtype)))

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors by our names, from `diffusers`' (today's or former) or taming's.

        taming's files also hold its loss (`loss.`: LPIPS and discriminator), which is left out.
        """
        if not any(name.startswith("decoder.up.") for name in tensors):
            return todays_names(tensors)
        coarsest = max(int(m[1]) for n in tensors if (m := re.match(r"decoder\.up\.(\d+)\.", n)))
        renamed: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if name.startswith("loss."):
                continue
            ours = re.sub(
                r"^decoder\.up\.(\d+)\.",
                lambda m: f"decoder.up_blocks.{coarsest - int(m[1])}.",
                name,
            )
            for theirs, replacement in _TAMING_NAMES:
                ours = re.sub(theirs, replacement, ours)
            # Their attention projects by 1×1 convolutions.
            value: Any = tensor
            if re.search(r"\.to_(q|k|v|out\.0)\.weight$", ours) and value.shape[2:] == (1, 1):
                value = value[..., 0, 0]
            renamed[ours] = value
        return renamed


# Patterns of taming-transformers' names, and ours.
_TAMING_NAMES = (
    (r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def codebook_of_centres(
    vqgan: VQGAN, images: Float[Array, "b h w c"], key: Key[Array, ""]
) -> VQGAN:
    """The same network with a codebook of centres of what its encoder makes (Lloyd, 20 rounds).

    From codes near zero, as published, a short training would use a few of them only.

    Args:
        vqgan: Whose towers have learnt without codes.
        images: Pictures in [-1, 1].
        key: Chooses the first centres.
    """
    vectors = vqgan.encode(images)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    number = vqgan.num_codes
    chosen = jax.random.permutation(key, len(vectors))[:number]

    def improve(_: int, centres: Float[Array, "n d"]) -> Float[Array, "n d"]:
        own = jax.nn.one_hot(nearest(vectors, centres), number)
        members = own.sum(0)[:, None]
        return jnp.where(members > 0, own.T @ vectors / jnp.maximum(members, 1), centres)

    centres = jax.lax.fori_loop(0, 20, improve, vectors[chosen])
    begun = copied(vqgan)
    begun.quantize.embedding.weight[...] = centres
    return begun
