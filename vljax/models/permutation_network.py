"""The permutation network φ of VOI: from a source and its target to a distribution over orders.

Thesis, section 3.4. A Transformer without a causal mask reads the whole target and the source in
one pass; the result is not an order but the parameters of a distribution over all of them.
"""

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vljax.errors import UserError
from vljax.models.layers import LayerNorm, Linear
from vljax.models.transformer import SCHEMES, Layer, Scheme, SourceEncoder, with_places
from vljax.ops.insertion import movable
from vljax.ops.permutations import GumbelMatching, PlackettLuce

Distribution = Literal["gumbel_matching", "plackett_luce"]


class PermutationNetwork(nnx.Module):
    """A Transformer over the target whose head scores orders.

    For Gumbel-Matching the head is attention without its softmax: X = Σ over heads of Q Kᵀ / √d,
    row t of X scoring the places that step t may write (equation 3.4). For Plackett-Luce it is one
    score a place.

    Args:
        vocabulary_size: Words.
        region_features: Length of a region's features; 0 where the source is text.
        layers: Layers of the source's encoder, and over the target.
        features: Width of the model.
        heads: Attention heads.
        scheme: Position scheme over the target, one of table 3.2.
        source_scheme: Position scheme over a source text.
        distribution: What the head is for.
        dtype: Of the computation.
        rngs: Where the initial weights come from.
        **fields: Of `Layer`.

    Raises:
        UserError: an unknown scheme or distribution.
    """

    def __init__(
        self,
        vocabulary_size: int,
        region_features: int,
        layers: int,
        features: int,
        heads: int,
        *,
        scheme: Scheme = "xl",
        source_scheme: Scheme = "relative",
        distribution: Distribution = "gumbel_matching",
        dtype: str = "float32",
        rngs: nnx.Rngs,
        **fields: object,
    ) -> None:
        if scheme not in SCHEMES:
            raise UserError(f"model.permutation.scheme={scheme!r}: choose {', '.join(SCHEMES)}")
        if distribution not in ("gumbel_matching", "plackett_luce"):
            raise UserError(
                f"model.permutation.distribution={distribution!r}: choose 'gumbel_matching' or "
                "'plackett_luce'"
            )
        self.scheme, self.heads, self.dtype = scheme, heads, dtype
        self.source = SourceEncoder(
            vocabulary_size,
            region_features,
            layers,
            features,
            heads=heads,
            scheme=source_scheme,
            rngs=rngs,
            **fields,
        )
        self.layers = nnx.List(
            Layer(features, heads=heads, scheme=scheme, cross=True, rngs=rngs, **fields)  # type: ignore[arg-type]
            for _ in range(layers)
        )
        self.norm = LayerNorm(features)
        if distribution == "gumbel_matching":
            self.query = Linear(features, features, rngs=rngs)
            self.key = Linear(features, features, rngs=rngs)
            self.score = None
        else:
            self.score = Linear(features, 1, rngs=rngs)

    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, "b n n"] | Float[Array, "b n"]:
        """The logits, float32; entries of the marks and of padding have no meaning.

        Args:
            batch: `target` and `target_mask` (framed: start mark, words, end mark, padding), and
                the source as `SourceEncoder` takes it.
        """
        dtype = jnp.dtype(self.dtype)
        source, source_mask = self.source(batch, dtype)
        mask = batch["target_mask"]
        x = with_places(self.source.embedding(batch["target"]).astype(dtype), self.scheme)
        for layer in self.layers:
            x = layer(x, mask[:, None], layer.context(source, source_mask))
        x = self.norm(x).astype(jnp.float32)
        if self.score is not None:
            return self.score(x)[..., 0]
        size = x.shape[-1] // self.heads
        return jnp.einsum("bif,bjf->bij", self.query(x), self.key(x)) * size**-0.5

    def distribution(self, batch: Mapping[str, Array]) -> GumbelMatching | PlackettLuce:
        """The distribution over orders; the marks and padding stay in place."""
        kind = GumbelMatching if self.score is None else PlackettLuce
        return kind(self(batch), movable(batch["target_mask"]))
