"""unCLIP's prior: from a text to the CLIP embedding of a picture of it.

Ramesh et al., *Hierarchical Text-Conditional Image Generation with CLIP Latents* (2022), section
2.2: a causal Transformer denoises the embedding. It reads the text's tokens, the text's embedding,
the time, the noisy embedding, and last a learned query, whose output is the prediction. Parameter
names are those of a `diffusers` folder of a `PriorTransformer` (Karlo, Kandinsky 2).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vljax.errors import UserError
from vljax.models.arguments import keeps_arguments
from vljax.models.conditional_unet import TimestepEmbedding
from vljax.models.layers import LayerNorm, Linear, normal, timestep_embedding
from vljax.models.remat import rematerialised
from vljax.ops.attention import attention

# Positions after the text's tokens: its embedding, the time, the noisy embedding, the query.
_AFTER = 4


class _Attention(nnx.Module):
    """Causal attention that sees no padding."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.to_q = Linear(features, features, rngs=rngs)
        self.to_k = Linear(features, features, rngs=rngs)
        self.to_v = Linear(features, features, rngs=rngs)
        self.to_out = nnx.List([Linear(features, features, rngs=rngs)])

    def __call__(self, x: Float[Array, "b n f"], real: Bool[Array, "b n"]) -> Float[Array, "b n f"]:
        query, key, value = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        mixed = attention(query, key, value, mask=real[:, None, None], causal=True)
        return self.to_out[0](mixed.reshape(x.shape))


class _FeedForward(nnx.Module):
    """A GELU at four times the width."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        # The empty place is the checkpoint's dropout, so that indices are the checkpoint's.
        wide = _Projection(features, 4 * features, rngs=rngs)
        self.net = nnx.List[Any]([wide, None, Linear(4 * features, features, rngs=rngs)])

    def __call__(self, x: Float[Array, "b n f"]) -> Float[Array, "b n f"]:
        wide, _, narrow = self.net
        return narrow(jax.nn.gelu(wide.proj(x), approximate=False))


class _Projection(nnx.Module):
    """Its own class so that names are the checkpoint's: `ff.net.0.proj`."""

    def __init__(self, features: int, out: int, *, rngs: nnx.Rngs) -> None:
        self.proj = Linear(features, out, rngs=rngs)


class _Block(nnx.Module):
    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs) -> None:
        # The checkpoint's norm2 belongs to an attention to something else, which is not there.
        self.norm1, self.norm3 = LayerNorm(features), LayerNorm(features)
        self.attn1 = _Attention(features, heads, rngs=rngs)
        self.ff = _FeedForward(features, rngs=rngs)

    def __call__(self, x: Float[Array, "b n f"], real: Bool[Array, "b n"]) -> Float[Array, "b n f"]:
        x = x + self.attn1(self.norm1(x), real)
        return x + self.ff(self.norm3(x))


@keeps_arguments
class PriorTransformer(nnx.Module):
    """The prior.

    Embeddings are whitened where they are noised: their mean is subtracted and they are divided by
    their deviation, value by value; `whiten` and `unwhiten` do it.

    Args:
        embedding: Length of CLIP's embeddings, and of its text tower's features.
        text_length: Tokens of a text; every text has as many positions.
        layers: Blocks.
        heads: Attention heads.
        head_channels: Features of a head.
        remat: What blocks keep for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype; what comes out is float32.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        embedding: int = 768,
        text_length: int = 77,
        layers: int = 20,
        heads: int = 32,
        head_channels: int = 64,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        features = heads * head_channels
        self.text_length = text_length
        self.remat = remat
        self.dtype = dtype
        as_is = {"published": "a n f -> a n f"}
        self.time_embedding = TimestepEmbedding(features, features, rngs=rngs)
        self.proj_in = Linear(embedding, features, rngs=rngs)
        self.embedding_proj = Linear(embedding, features, rngs=rngs)
        self.encoder_hidden_states_proj = Linear(embedding, features, rngs=rngs)
        self.positional_embedding = normal(rngs, (1, text_length + _AFTER, features), 0.01, **as_is)
        self.prd_embedding = normal(rngs, (1, 1, features), 0.01, **as_is)
        self.transformer_blocks = nnx.List(
            [_Block(features, heads, rngs=rngs) for _ in range(layers)]
        )
        self.norm_out = LayerNorm(features)
        self.proj_to_clip_embeddings = Linear(features, embedding, rngs=rngs)
        # No gradient reaches them: they are measured, or loaded.
        self.clip_mean = nnx.BatchStat(jnp.zeros((1, embedding)), published="a e -> a e")
        self.clip_std = nnx.BatchStat(jnp.ones((1, embedding)), published="a e -> a e")

    def whiten(self, embedding: Float[Array, "b e"]) -> Float[Array, "b e"]:
        """CLIP's embedding of a picture as the prior denoises it."""
        mean, std = jax.lax.stop_gradient((self.clip_mean[...], self.clip_std[...]))
        return (embedding - mean) / std

    def unwhiten(self, whitened: Float[Array, "b e"]) -> Float[Array, "b e"]:
        """The inverse of `whiten`."""
        mean, std = jax.lax.stop_gradient((self.clip_mean[...], self.clip_std[...]))
        return whitened * std + mean

    def __call__(
        self,
        noisy: Float[Array, "b e"],
        t: Float[Array, " b"] | Int[Array, " b"],
        text: Float[Array, "b e"],
        hidden: Float[Array, "b n e"],
        real: Bool[Array, "b n"],
    ) -> Float[Array, "b e"]:
        """The clean embedding, whitened.

        Args:
            noisy: Whitened embeddings under noise.
            t: Their times, in steps of the schedule.
            text: CLIP's embedding of the text, not normalised.
            hidden: Features of the text tower's positions after its last norm.
            real: False at the text's padding.

        Raises:
            UserError: there are not `text_length` tokens.
        """
        if hidden.shape[1] != self.text_length:
            raise UserError(
                f"a text of {hidden.shape[1]} positions, but text_length={self.text_length}: pad "
                "or cut texts to that"
            )
        time = self.time_embedding(timestep_embedding(t, self.proj_in.weight.shape[-1]))
        query = jnp.broadcast_to(self.prd_embedding[...], (len(noisy), 1, time.shape[-1]))
        x = jnp.concatenate(
            [
                self.encoder_hidden_states_proj(hidden),
                self.embedding_proj(text)[:, None],
                time[:, None],
                self.proj_in(noisy)[:, None],
                query,
            ],
            axis=1,
        )
        x = (x + self.positional_embedding[...]).astype(self.dtype)
        real = jnp.pad(real, ((0, 0), (0, _AFTER)), constant_values=True)
        run = rematerialised(lambda block, x, real: block(x, real), self.remat)
        for block in self.transformer_blocks:
            x = run(block, x, real)
        return self.proj_to_clip_embeddings(self.norm_out(x[:, -1].astype(jnp.float32)))
