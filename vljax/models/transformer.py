"""Transformer layers with the position schemes of VOI.

Vaswani et al., "Attention Is All You Need" (2017). Of the thesis's table 3.2 the schemes are

- `"sinusoid"`: sinusoids of the place are added to what enters the first layer;
- `"sinusoid_attention"`: as before, and every layer has a positional attention besides, whose
  queries and keys are the sinusoids (Gu et al., "Non-Autoregressive Neural Machine Translation",
  2018, section 3.2.2);
- `"relative"`: a learned vector for the distance of query and key, clipped, is added to the key
  (Shaw et al., "Self-Attention with Relative Position Representations", 2018, equation 4);
- `"xl"`: sinusoids of the distance, projected, with a bias of their own (Dai et al.,
  "Transformer-XL", 2019, section 3.3).

`"none"` leaves places out, for sets. A fifth use serves the insertion decoder: `"insertion"` is the
relative scheme with the labels −1, 0, 1 of tokens written in any order, given from outside (Gu et
al., "Insertion-based Decoding with automatically Inferred Generation Order", 2019, section 3.2).
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.errors import UserError
from vljax.models.layers import Embedding, LayerNorm, Linear, dropout, next_key
from vljax.models.remat import rematerialised
from vljax.ops.attention import ATTENTION, MASKED, attention

Scheme = Literal["none", "sinusoid", "sinusoid_attention", "relative", "xl", "insertion"]
SCHEMES = ("sinusoid", "sinusoid_attention", "relative", "xl")


def sinusoids(position: Array, features: int, max_period: float = 10_000.0) -> Array:
    """Sines, then cosines of positions [*b]; [*b, features], float32 (Vaswani et al., section 3.5).

    Periods rise from 2π to 2π `max_period`. Positions may be negative.
    """
    half = features // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / max(half - 1, 1)
    angles = position.astype(jnp.float32)[..., None] * max_period**-exponent
    both = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(both, [(0, 0)] * position.ndim + [(0, features - 2 * half)])


def by_distance(
    scores: Float[Array, "*b q 2n-1"], place: int | Int[Array, ""] = 0
) -> Float[Array, "*b q n"]:
    """From scores of distances to scores of keys.

    Args:
        scores: [i, d]: of query i and the distance d − (n − 1).
        place: Of the first query among the n keys; the others follow.

    Returns:
        [i, j]: of query i and key j, whose distance is j − (place + i).
    """
    *batch, queries, distances = scores.shape
    n = (distances + 1) // 2
    if queries < n:
        keys, at = jnp.arange(n), place + jnp.arange(queries)
        index = jnp.broadcast_to(keys - at[:, None] + n - 1, (*batch, queries, n))
        return jnp.take_along_axis(scores, index, axis=-1)
    # A row one entry longer than the distances shifts each row by one against the row before.
    flat = jnp.pad(scores, [(0, 0)] * (len(batch) + 1) + [(0, 1)]).reshape(*batch, -1)
    flat = flat[..., n - 1 : n - 1 + n * (2 * n - 1)]
    return flat.reshape(*batch, n, 2 * n - 1)[..., :n]


class Attention(nnx.Module):
    """Multi-head attention, optionally with relative places.

    Args:
        features: Size of the last axis of input and output.
        heads: Number of heads; divides `features`.
        scheme: `"relative"`, `"xl"` or `"insertion"`; the others change nothing here.
        max_distance: `"relative"`: greater distances share a vector.
        rngs: Where the initial weights come from.

    Raises:
        UserError: `heads` does not divide `features`.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        scheme: Scheme = "none",
        max_distance: int = 16,
    ) -> None:
        if features % heads:
            raise UserError(f"model.heads={heads}: choose a divisor of model.features={features}")
        self.heads, self.scheme, self.max_distance = heads, scheme, max_distance
        self.query = Linear(features, features, rngs=rngs)
        self.key = Linear(features, features, rngs=rngs)
        self.value = Linear(features, features, rngs=rngs)
        self.out = Linear(features, features, rngs=rngs)
        size = features // heads
        if scheme in ("relative", "insertion"):
            count = 3 if scheme == "insertion" else 2 * max_distance + 1
            start = jax.random.normal(next_key(rngs), (count, size)) * size**-0.5
            self.distances = nnx.Param(start)
        if scheme == "xl":
            self.distance = Linear(features, features, rngs=rngs, bias=False)
            self.content_bias = nnx.Param(jnp.zeros((heads, size)))
            self.distance_bias = nnx.Param(jnp.zeros((heads, size)))

    def keys_values(
        self, keys: Float[Array, "b k f"], values: Float[Array, "b k f"]
    ) -> tuple[Float[Array, "b k h d"], Float[Array, "b k h d"]]:
        """Projected keys and values."""
        return self._split(self.key(keys)), self._split(self.value(values))

    def __call__(
        self,
        queries: Float[Array, "b q f"],
        keys_values: tuple[Float[Array, "c k h d"], Float[Array, "c k h d"]],
        mask: Bool[Array, "#c #q k"],
        relation: Int[Array, "b q k"] | None = None,
        place: int | Int[Array, ""] = 0,
    ) -> Float[Array, "b q f"]:
        """Attends.

        Args:
            queries: what asks. Without relative places there may be several rows of queries to
                every row of keys, b being a multiple of c.
            keys_values: from `keys_values`.
            mask: True where a query may see a key. One that may see none gets zeros.
            relation: `"insertion"`: the labels −1, 0, 1 of queries against keys.
            place: `"relative"` and `"xl"`: the place of the first query among the keys.
        """
        key, value = keys_values
        rows, length, features = queries.shape
        query = self._split(self.query(queries))
        if self.scheme in ("relative", "xl", "insertion"):
            scores = self._scores(query, key, relation, place)
            scores = jnp.where(mask[:, None], scores, MASKED)
            weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
            mixed = checkpoint_name(jnp.einsum("bhqk,bkhd->bqhd", weights, value), ATTENTION)
        else:
            query = query.reshape(len(key), -1, *query.shape[2:])
            mixed = attention(query, key, value, mask=mask[:, None])
        mixed = jnp.where(mask.any(-1)[..., None, None], mixed, 0)
        mixed = mixed.reshape(rows, length, features)
        return self.out(mixed)

    def _split(self, x: Float[Array, "b n f"]) -> Float[Array, "b n h d"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def _scores(
        self,
        query: Float[Array, "b q h d"],
        key: Float[Array, "b k h d"],
        relation: Int[Array, "b q k"] | None,
        place: int | Int[Array, ""],
    ) -> Float[Array, "b h q k"]:
        """Scores of content and place, float32."""
        scale = 1 / math.sqrt(query.shape[-1])
        if self.scheme == "xl":
            length = key.shape[1]
            features = self.heads * key.shape[-1]
            distance = sinusoids(jnp.arange(1 - length, length), features).astype(query.dtype)
            by_place = self._split(self.distance(distance))
            content = query + self.content_bias[...].astype(query.dtype)
            query = query + self.distance_bias[...].astype(query.dtype)
            by = jnp.einsum("bqhd,rhd->bhqr", query, by_place, preferred_element_type=jnp.float32)
            at_place = by_distance(by, place)
        else:
            content, length, k = query, key.shape[1], self.max_distance
            table = self.distances[...].astype(query.dtype)
            if self.scheme == "relative":
                table = table[jnp.clip(jnp.arange(1 - length, length), -k, k) + k]
            by = jnp.einsum("bqhd,rd->bhqr", query, table, preferred_element_type=jnp.float32)
            if self.scheme == "relative":
                at_place = by_distance(by, place)
            else:
                # Three selections: a gather's gradient is slow on CPU.
                at_place = jnp.select(
                    [relation[:, None] == -1, relation[:, None] == 0],  # type: ignore[index]
                    [by[..., :1], by[..., 1:2]],
                    by[..., 2:],
                )
        at_content = jnp.einsum("bqhd,bkhd->bhqk", content, key, preferred_element_type=jnp.float32)
        return (at_content + at_place) * scale


class FeedForward(nnx.Module):
    """Linear, ReLU, linear (Vaswani et al., equation 2)."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.inner = Linear(features, hidden, rngs=rngs)
        self.outer = Linear(hidden, features, rngs=rngs)

    def __call__(self, x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
        return self.outer(jax.nn.relu(self.inner(x)))


#: Keys and values of the positions so far, [b, n, h, d] each.
KeysValues = tuple[Float[Array, "b n h d"], Float[Array, "b n h d"]]


class Context(NamedTuple):
    """What a decoder layer attends to: keys and values of the source, and which of them count."""

    keys_values: tuple[Float[Array, "c m h d"], Float[Array, "c m h d"]]
    mask: Bool[Array, "c m"]


class Layer(nnx.Module):
    """One Transformer layer: of an encoder, or with `cross` of a decoder.

    Args:
        features: Width of the model.
        hidden: Width inside the feed-forward block.
        heads: Attention heads.
        rngs: Where the initial weights come from.
        norm: `"pre"` normalises what enters a block (as published for VOI), `"post"` what leaves
            its residual sum (as Vaswani et al.).
        scheme: Position scheme.
        max_distance: `"relative"`: greater distances share a vector.
        cross: Whether it attends to a source as well.
        dropout_rate: On what a block adds.
        remat: What it keeps for the backward pass, see `vljax.models.remat`.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        norm: Literal["pre", "post"] = "pre",
        scheme: Scheme = "none",
        max_distance: int = 16,
        cross: bool = False,
        dropout_rate: float = 0.0,
        remat: bool | str = "off",
    ) -> None:
        if norm not in ("pre", "post"):
            raise UserError(f"model.norm={norm!r}: choose 'pre' or 'post'")
        self.norm, self.dropout_rate, self.remat = norm, dropout_rate, remat
        self.self_attention = Attention(
            features, heads, rngs=rngs, scheme=scheme, max_distance=max_distance
        )
        self.self_attention_norm = LayerNorm(features)
        self.position_attention = (
            Attention(features, heads, rngs=rngs) if scheme == "sinusoid_attention" else None
        )
        if scheme == "sinusoid_attention":
            self.position_attention_norm = LayerNorm(features)
        if cross:
            self.cross_attention = Attention(features, heads, rngs=rngs)
            self.cross_attention_norm = LayerNorm(features)
        self.feed_forward = FeedForward(features, hidden, rngs=rngs)
        self.feed_forward_norm = LayerNorm(features)

    def context(self, source: Float[Array, "c m f"], mask: Bool[Array, "c m"]) -> Context:
        """The source as this layer's cross-attention reads it."""
        return Context(self.cross_attention.keys_values(source, source), mask)

    def __call__(
        self,
        x: Float[Array, "b n f"],
        mask: Bool[Array, "#b #n n"],
        context: Context | None = None,
        *,
        relation: Int[Array, "b n n"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b n f"]:
        """Transforms a sequence.

        Args:
            x: The sequence.
            mask: True where a position (second axis) may see another (third).
            context: The source, for a layer with `cross`; b may be a multiple of its rows.
            relation: For the scheme `"insertion"`.
            key: Of dropout; None for none.
        """
        run = rematerialised(Layer._transform, self.remat)
        return run(self, x, mask, context, relation, key)

    def _transform(
        self,
        x: Array,
        mask: Array,
        context: Context | None,
        relation: Array | None,
        key: Key[Array, ""] | None,
    ) -> Array:
        entering = self._enter(x, self.self_attention_norm)
        seen = self.self_attention.keys_values(entering, entering)
        mixed = self.self_attention(entering, seen, mask, relation)
        return self._after_self_attention(x, mixed, mask, context, key)

    def start(self, rows: int, length: int, dtype: str | jnp.dtype = jnp.float32) -> KeysValues:
        """An empty cache for `rows` sequences of at most `length` positions."""
        heads, width = self.self_attention.heads, self.self_attention_norm.weight.shape[0]
        empty = jnp.zeros((rows, length, heads, width // heads), dtype)
        return empty, empty

    def step(
        self,
        x: Float[Array, "b q f"],
        cache: KeysValues,
        step: Int[Array, ""],
        context: Context | None = None,
        relation: Int[Array, "b q n"] | None = None,
    ) -> tuple[Float[Array, "b q f"], KeysValues]:
        """The next positions, causally: each sees itself and those before it.

        Args:
            x: The next position, or several (a prompt).
            cache: Keys and values of the positions before; from `start` or the step before.
            step: Index of the first.
            context: The source, for a layer with `cross`.
            relation: For the scheme `"insertion"`: labels against all positions.

        Returns:
            The positions transformed, and the cache with them.

        Raises:
            ValueError: the scheme is `"sinusoid_attention"`, which reads whole sequences.
        """
        if self.position_attention is not None:
            raise ValueError("a layer of the scheme 'sinusoid_attention' has no steps")
        entering = self._enter(x, self.self_attention_norm)
        new = self.self_attention.keys_values(entering, entering)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(old, one, step, axis=1)
            for old, one in zip(cache, new, strict=True)
        )
        at = step + jnp.arange(x.shape[1])
        mask = (jnp.arange(keys.shape[1]) <= at[:, None])[None]
        mixed = self.self_attention(entering, (keys, values), mask, relation, step)
        return self._after_self_attention(x, mixed, mask, context, None), (keys, values)

    def _after_self_attention(
        self,
        x: Array,
        mixed: Array,
        mask: Array,
        context: Context | None,
        key: Key[Array, ""] | None,
    ) -> Array:
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        x = self._add(x, mixed, self.self_attention_norm, keys[0])
        if self.position_attention is not None:
            entering = self._enter(x, self.position_attention_norm)
            place = sinusoids(jnp.arange(x.shape[1]), x.shape[2]).astype(x.dtype)
            place = jnp.broadcast_to(place, x.shape)
            seen = self.position_attention.keys_values(place, entering)
            mixed = self.position_attention(place, seen, mask)
            x = self._add(x, mixed, self.position_attention_norm, keys[1])
        if context is not None:
            entering = self._enter(x, self.cross_attention_norm)
            mixed = self.cross_attention(entering, context.keys_values, context.mask[:, None])
            x = self._add(x, mixed, self.cross_attention_norm, keys[2])
        entering = self._enter(x, self.feed_forward_norm)
        return self._add(x, self.feed_forward(entering), self.feed_forward_norm, keys[3])

    def _enter(self, x: Array, norm: LayerNorm) -> Array:
        return norm(x) if self.norm == "pre" else x

    def _add(self, x: Array, change: Array, norm: LayerNorm, key: Key[Array, ""] | None) -> Array:
        x = x + dropout(change, self.dropout_rate, key)
        return norm(x) if self.norm == "post" else x


class Encoder(nnx.Module):
    """Layers without a causal mask over a source: words or a set of regions.

    Args:
        layers: Number of layers.
        features: Width of the model.
        scheme: Position scheme; `"none"` for sets.
        rngs: Where the initial weights come from.
        **fields: Of `Layer`.
    """

    def __init__(
        self, layers: int, features: int, *, scheme: Scheme, rngs: nnx.Rngs, **fields: object
    ) -> None:
        self.scheme = scheme
        self.layers = nnx.List(
            Layer(features, scheme=scheme, rngs=rngs, **fields)  # type: ignore[arg-type]
            for _ in range(layers)
        )
        self.norm = LayerNorm(features)

    def __call__(
        self,
        x: Float[Array, "b m f"],
        mask: Bool[Array, "b m"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b m f"]:
        """Transforms embedded sources; what `mask` leaves out changes nothing else."""
        x = with_places(x, self.scheme)
        for i, layer in enumerate(self.layers):
            x = layer(x, mask[:, None], key=None if key is None else jax.random.fold_in(key, i))
        return self.norm(x)


class SourceEncoder(nnx.Module):
    """What both networks of VOI know of the words and of the source.

    The words of source and target share one table, as published for text. Pictures come as regions
    (detections or cells of a grid): features beside boxes, projected.

    Args:
        vocabulary_size: Words.
        region_features: Length of a region's features; 0 where the source is text.
        layers: Number of layers.
        features: Width of the model.
        scheme: Position scheme of a text; regions are a set and have none.
        rngs: Where the initial weights come from.
        **fields: Of `Layer`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        region_features: int,
        layers: int,
        features: int,
        *,
        scheme: Scheme,
        rngs: nnx.Rngs,
        **fields: object,
    ) -> None:
        self.embedding = Embedding(vocabulary_size, features, rngs=rngs)
        self.regions = Linear(region_features + 4, features, rngs=rngs) if region_features else None
        self.encoder = Encoder(
            layers, features, scheme="none" if region_features else scheme, rngs=rngs, **fields
        )

    def __call__(
        self,
        batch: Mapping[str, Array],
        dtype: jnp.dtype,
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b m f"], Bool[Array, "b m"]]:
        """The source transformed, and which of its entries count.

        Args:
            batch: `source` and `source_mask`, or `regions`, `boxes` and `regions_mask`.
            dtype: Of the computation.
            key: Of dropout.
        """
        if self.regions is None:
            mask = batch["source_mask"]
            x = self.embedding(batch["source"]).astype(dtype)
        else:
            mask = batch["regions_mask"]
            x = jnp.concatenate([batch["regions"], batch["boxes"]], axis=-1).astype(dtype)
            x = self.regions(x)
        return self.encoder(x, mask, key=key), mask


def with_places(x: Float[Array, "b n f"], scheme: Scheme) -> Float[Array, "b n f"]:
    """Adds sinusoids of the places where the scheme has them."""
    if scheme not in ("sinusoid", "sinusoid_attention"):
        return x
    return x + sinusoids(jnp.arange(x.shape[1]), x.shape[2]).astype(x.dtype)
