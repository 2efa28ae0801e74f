"""Pictures from a vector and a text, and back: the networks of a text-conditional VAE and GAN.

Kingma & Welling, *Auto-Encoding Variational Bayes* (2014), with the text as in Sohn et al.,
*Learning Structured Output Representation using Deep Conditional Generative Models* (2015); Reed
et al., *Generative Adversarial Text to Image Synthesis* (2016, GAN-INT-CLS) and Zhang et al.,
*StackGAN* (2017) for the discriminator and the conditioning augmentation. Their convolutions are
residual blocks here, and no norm depends on the batch.

All pictures are square; a level halves them, down to 4×4 and less for three levels of 32 pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.blocks import Downsample, ResnetBlock, Upsample
from vljax.models.layers import Conv, GroupNorm, Linear

_EPSILON = 1e-5


class Drawer(nnx.Module):
    """A picture from a vector, every block of it under another vector.

    Args:
        side: Of the pictures; divides by 2 for every width.
        latents: Length of the vector.
        embedding: Length of the other one, such as an embedded text.
        widths: Channels of each level, the finest first.
        norm_groups: Groups of the norms.
        rngs: Where the initial weights come from.

    Raises:
        UserError: the side does not divide so.
    """

    def __init__(
        self,
        *,
        side: int,
        latents: int,
        embedding: int,
        widths: Sequence[int],
        norm_groups: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.cells = _cells(side, widths)
        deepest = widths[-1]
        self.first = Linear(latents + embedding, self.cells**2 * deepest, rngs=rngs)
        self.levels = _levels_up(deepest, [*reversed(widths)], embedding, norm_groups, rngs)
        self.norm = GroupNorm(widths[0], norm_groups, _EPSILON)
        self.last = Conv(widths[0], 3, 3, rngs=rngs)

    def __call__(
        self, z: Float[Array, "b z"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h w 3"]:
        """Pictures, about [-1, 1]."""
        h = self.first(jnp.concatenate([z, embedding], axis=-1))
        h = h.reshape(len(z), self.cells, self.cells, -1)
        for block, up in self.levels:
            h = up(block(h, embedding))
        return self.last(jax.nn.silu(self.norm(h)))


class Viewer(nnx.Module):
    """A vector of a picture under a text: what an encoder or a discriminator ends with.

    Where the picture has become small the text stands beside every place of it, and a further
    convolution sees both (GAN-INT-CLS, section 4.1).

    Args:
        side: Of the pictures; divides by 2 for every width.
        features: Length of the vector that comes out.
        embedding: Length of the embedded texts.
        widths: Channels of each level, the finest first.
        norm_groups: Groups of the norms.
        rngs: Where the initial weights come from.

    Raises:
        UserError: the side does not divide so.
    """

    def __init__(
        self,
        *,
        side: int,
        features: int,
        embedding: int,
        widths: Sequence[int],
        norm_groups: int,
        rngs: nnx.Rngs,
    ) -> None:
        cells = _cells(side, widths)
        self.first = Conv(3, widths[0], 3, rngs=rngs)
        self.levels = _levels_down(widths, norm_groups, rngs)
        deepest = widths[-1]
        self.joined = Conv(deepest + embedding, deepest, 1, rngs=rngs)
        self.last = Linear(cells**2 * deepest, features, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w 3"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b f"]:
        return self.compare(self.look(images), embedding)

    def look(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 c"]:
        """What is seen of pictures before their texts are known."""
        h = self.first(images)
        for block, down in self.levels:
            h = down(block(h))
        return h

    def compare(
        self, h: Float[Array, "b h2 w2 c"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b f"]:
        """The vector, from what `look` saw."""
        told = jnp.broadcast_to(embedding[:, None, None], (*h.shape[:3], embedding.shape[-1]))
        h = jax.nn.silu(self.joined(jnp.concatenate([jax.nn.silu(h), told], axis=-1)))
        return self.last(h.reshape(len(h), -1))


class TextVAE(nnx.Module):
    """A variational autoencoder of pictures under texts.

    p(x | z, text) is normal around what is drawn, with one learned deviation for all values; z is
    standard normal whatever the text.

    Args:
        side: Of the pictures.
        latents: Length of z.
        embedding: Length of the embedded texts.
        widths: Channels of each level.
        norm_groups: Groups of the norms.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        side: int,
        latents: int,
        embedding: int,
        widths: Sequence[int],
        norm_groups: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.latents = latents
        sizes: dict[str, Any] = {
            "side": side,
            "embedding": embedding,
            "widths": widths,
            "rngs": rngs,
        }
        self.encoder = Viewer(features=2 * latents, norm_groups=norm_groups, **sizes)
        self.decoder = Drawer(latents=latents, norm_groups=norm_groups, **sizes)
        self.log_scale = nnx.Param(jnp.zeros(()))

    def draw(self, z: Float[Array, "b z"], embedding: Float[Array, "b e"]) -> Array:
        """The means of pictures, about [-1, 1] [b h w 3]."""
        return self.decoder(z, embedding)

    def sample(self, embedding: Float[Array, "b e"], keys: Key[Array, " b"]) -> Array:
        """The means at z drawn from p(z), a key for each [b h w 3]."""
        z = jax.vmap(lambda key: jax.random.normal(key, (self.latents,)))(keys)
        return self.draw(z, embedding)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        embedding: Float[Array, "b e"],
        noise: Float[Array, "b z"],
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, " b"]]:
        """The means of pictures drawn anew, and KL(q(z | picture, text) ‖ p(z)) of each, in nats.

        Args:
            images: Pictures in [-1, 1].
            embedding: Their texts.
            noise: Standard normal; draws z (the reparameterisation, ibid., section 2.4).
        """
        mean, log_variance = jnp.split(self.encoder(images, embedding), 2, axis=-1)
        log_variance = jnp.clip(log_variance, -20, 10)
        drawn = self.draw(mean + jnp.exp(0.5 * log_variance) * noise, embedding)
        return drawn, _divergence(mean, log_variance)


class Condition(NamedTuple):
    """An augmented text.

    Attributes:
        vector: What the generator is told.
        divergence: KL of the vector's distribution from the standard normal, in nats.
    """

    vector: Float[Array, "b c"]
    divergence: Float[Array, " b"]


class Generator(nnx.Module):
    """The GAN's generator: conditioning augmentation (StackGAN, section 3.2), then a `Drawer`.

    Args:
        side: Of the pictures.
        latents: Length of the noise.
        condition: Length of the augmented text.
        embedding: Length of the embedded texts.
        widths: Channels of each level.
        norm_groups: Groups of the norms.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        side: int,
        latents: int,
        condition: int,
        embedding: int,
        widths: Sequence[int],
        norm_groups: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.latents = latents
        self.augment = Linear(embedding, 2 * condition, rngs=rngs)
        self.drawer = Drawer(
            side=side,
            latents=latents,
            embedding=condition,
            widths=widths,
            norm_groups=norm_groups,
            rngs=rngs,
        )

    def __call__(
        self, embedding: Float[Array, "b e"], key: Key[Array, ""] | Key[Array, " b"]
    ) -> tuple[Float[Array, "b h w 3"], Float[Array, " b"]]:
        """Pictures in [-1, 1] and the divergence of their texts.

        Args:
            embedding: The texts.
            key: Of all noise, or one key a row: then a picture depends on its own only.
        """
        length = self.augment.weight.shape[-1] // 2
        noise = _noise(key, len(embedding), self.latents + length)
        z, apart = noise[:, : self.latents], noise[:, self.latents :]
        vector, divergence = _augmented(self.augment, embedding, apart)
        return jnp.tanh(self.drawer(z, vector)), divergence


class Refiner(nnx.Module):
    """StackGAN's second generator (section 3.4): a picture drawn anew, larger, under its text.

    It sees the small picture as many levels down as there are widths, there beside every place the
    augmented text, changes both in residual blocks, and draws up from there. No noise but the
    text's: the small picture brings its own.

    Args:
        small: Side of the pictures that it sees.
        side: Of those it draws; a multiple of `small` by a power of 2.
        condition: Length of the augmented text.
        embedding: Length of the embedded texts.
        widths: Channels of each level of the small picture, the finest first.
        blocks: Residual blocks in the middle.
        norm_groups: Groups of the norms.
        rngs: Where the initial weights come from.

    Raises:
        UserError: the sides do not fit.
    """

    def __init__(
        self,
        *,
        small: int,
        side: int,
        condition: int,
        embedding: int,
        widths: Sequence[int],
        blocks: int,
        norm_groups: int,
        rngs: nnx.Rngs,
    ) -> None:
        _cells(small, widths)
        factor = side // small
        if side % small or factor < 2 or factor & (factor - 1):
            raise UserError(
                f"model.refiner.side={side}: give data.image_size={small} times a power of 2"
            )
        self.augment = Linear(embedding, 2 * condition, rngs=rngs)
        self.first = Conv(3, widths[0], 3, rngs=rngs)
        self.seen = _levels_down(widths, norm_groups, rngs)
        deepest = widths[-1]
        self.joined = Conv(deepest + condition, deepest, 3, rngs=rngs)
        self.middle = nnx.List(
            [_block(deepest, deepest, condition, norm_groups, rngs) for _ in range(blocks)]
        )
        larger = [widths[0]] * (factor.bit_length() - 1)
        self.levels = _levels_up(
            deepest, [*reversed(widths), *larger], condition, norm_groups, rngs
        )
        self.norm = GroupNorm(widths[0], norm_groups, _EPSILON)
        self.last = Conv(widths[0], 3, 3, rngs=rngs)

    def __call__(
        self,
        small: Float[Array, "b h w 3"],
        embedding: Float[Array, "b e"],
        key: Key[Array, ""] | Key[Array, " b"],
    ) -> tuple[Float[Array, "b h2 w2 3"], Float[Array, " b"]]:
        """Pictures in [-1, 1] and the divergence of their texts.

        Args:
            small: The first generator's pictures.
            embedding: The texts.
            key: As of `Generator`.
        """
        length = self.augment.weight.shape[-1] // 2
        noise = _noise(key, len(embedding), length)
        vector, divergence = _augmented(self.augment, embedding, noise)
        h = self.first(small)
        for block, down in self.seen:
            h = down(block(h))
        told = jnp.broadcast_to(vector[:, None, None], (*h.shape[:3], length))
        h = self.joined(jnp.concatenate([jax.nn.silu(h), told], axis=-1))
        for block in self.middle:
            h = block(h, vector)
        for block, up in self.levels:
            h = up(block(h, vector))
        return jnp.tanh(self.last(jax.nn.silu(self.norm(h)))), divergence


def _augmented(
    layer: Linear, embedding: Float[Array, "b e"], noise: Float[Array, "b c"]
) -> Condition:
    """A text's vector, drawn around it."""
    mean, log_variance = jnp.split(layer(embedding), 2, axis=-1)
    vector = mean + jnp.exp(0.5 * log_variance) * noise
    return Condition(vector, _divergence(mean, log_variance))


def _noise(key: Key[Array, ""] | Key[Array, " b"], rows: int, length: int) -> Float[Array, "b z"]:
    """Standard normal; of one key, or of one a row."""
    if key.ndim:
        return jax.vmap(lambda k: jax.random.normal(k, (length,)))(key)
    return jax.random.normal(key, (rows, length))


def _divergence(mean: Float[Array, "b z"], log_variance: Float[Array, "b z"]) -> Float[Array, " b"]:
    """KL of a normal distribution from the standard one, in nats."""
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(1)


def _cells(side: int, widths: Sequence[int]) -> int:
    shrink = 2 ** len(widths)
    if side % shrink:
        raise UserError(
            f"data.image_size={side}: {len(widths)} widths halve it {len(widths)} times, give a "
            f"multiple of {shrink}"
        )
    return side // shrink


def _levels_down(widths: Sequence[int], groups: int, rngs: nnx.Rngs) -> nnx.List:
    """A block and a halving for each width, from the finest."""
    levels, channels = [], widths[0]
    for width in widths:
        down = Downsample(width, (1, 1), rngs=rngs)
        levels.append(nnx.List([_block(channels, width, None, groups, rngs), down]))
        channels = width
    return nnx.List(levels)


def _levels_up(
    channels: int, widths: Sequence[int], embedding: int, groups: int, rngs: nnx.Rngs
) -> nnx.List:
    """A block under an embedding and a doubling for each width, from the coarsest."""
    levels = []
    for width in widths:
        block = _block(channels, width, embedding, groups, rngs)
        levels.append(nnx.List([block, Upsample(width, rngs=rngs)]))
        channels = width
    return nnx.List(levels)


def _block(
    channels: int, out: int, embedding: int | None, groups: int, rngs: nnx.Rngs
) -> ResnetBlock:
    return ResnetBlock(
        channels, out, embedding=embedding, groups=groups, epsilon=_EPSILON, rngs=rngs
    )
