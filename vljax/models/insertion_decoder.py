"""The insertion decoder θ of VOI, Transformer-InDIGO: p(y, z | x), a word and its slot at a time.

Thesis, equation 3.1; Gu et al., "Insertion-based Decoding with automatically Inferred Generation
Order" (2019). Sequences are framed: step 0 writes the start mark, the last step the end mark, and
`order` (see `vljax.ops.insertion`) keeps both, and the padding behind them, in place. From what
steps 0 … t wrote, the decoder predicts the word of step t + 1 and then, knowing the word, its slot.

A slot lies between two words, right of one and left of another, and either may be pointed at: its
probability is the sum of both, over a softmax of the two sides of all words. Left of the start mark
means right of the last word, as if the sequence were a ring, so that the slots' probabilities sum
to one. The end mark needs no slot, and the words 0 and 1 (padding, start mark) have probability
zero; hence p(y, z | x) sums to one over all sequences and orders.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.marks import END
from vljax.models.layers import LayerNorm, Linear, dropout
from vljax.models.transformer import Context, KeysValues, Layer, Scheme, SourceEncoder
from vljax.ops.insertion import in_order, movable, neighbours, relations


class Scores(NamedTuple):
    """What the decoder gives the steps that write a sequence, after the start mark; float32.

    Attributes:
        word: log p of the word written.
        slot: log p of its slot.
        spread: mean of log p over all words that may be written, for label smoothing.
        valid: which steps there are: words and the end mark.
    """

    word: Float[Array, "b k t"]
    slot: Float[Array, "b k t"]
    spread: Float[Array, "b k t"]
    valid: Bool[Array, "b 1 t"]

    def log_prob(self) -> Float[Array, "b k"]:
        """Log p(y, z | x) of every order (equation 3.1)."""
        return jnp.where(self.valid, self.word + self.slot, 0).sum(-1)

    def smoothed(self, share: float | Float[Array, ""]) -> Float[Array, "b k"]:
        """As `log_prob`, the words' labels mixed with so large a share of all words."""
        word = (1 - share) * self.word + share * self.spread
        return jnp.where(self.valid, word + self.slot, 0).sum(-1)


class Cache(NamedTuple):
    """What later steps need of earlier ones.

    Attributes:
        layers: keys and values of every layer.
        slot_keys: of the right and the left side of every word.
    """

    layers: tuple[KeysValues, ...]
    slot_keys: Float[Array, "r t 2 f"]


class InsertionDecoder(nnx.Module):
    """A Transformer whose decoder writes in any order.

    Args:
        vocabulary_size: Words, the four special ones included.
        region_features: Length of a region's features; 0 where the source is text.
        layers: Layers of the source's encoder, and of the decoder.
        features: Width of the model.
        heads: Attention heads.
        source_scheme: Position scheme over a source text.
        dropout_rate: On words and on what a block adds.
        dtype: Of the computation.
        rngs: Where the initial weights come from.
        **fields: Of `Layer`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        region_features: int,
        layers: int,
        features: int,
        heads: int,
        *,
        source_scheme: Scheme = "relative",
        dropout_rate: float = 0.0,
        dtype: str = "float32",
        rngs: nnx.Rngs,
        **fields: object,
    ) -> None:
        self.dropout_rate, self.dtype = dropout_rate, dtype
        self.source = SourceEncoder(
            vocabulary_size,
            region_features,
            layers,
            features,
            heads=heads,
            scheme=source_scheme,
            dropout_rate=dropout_rate,
            rngs=rngs,
            **fields,
        )
        self.layers = nnx.List(
            Layer(
                features,
                heads=heads,
                scheme="insertion",
                cross=True,
                dropout_rate=dropout_rate,
                rngs=rngs,
                **fields,  # type: ignore[arg-type]
            )
            for _ in range(layers)
        )
        self.norm = LayerNorm(features)
        self.word = Linear(features, features, rngs=rngs)
        self.slot_query = Linear(features, features, rngs=rngs)
        self.slot_keys = Linear(features, 2 * features, rngs=rngs)

    def encode(
        self, batch: Mapping[str, Array], *, key: Key[Array, ""] | None = None
    ) -> tuple[Context, ...]:
        """The source as each layer reads it; see `SourceEncoder` for `batch`."""
        source, mask = self.source(batch, jnp.dtype(self.dtype), key=key)
        return tuple(layer.context(source, mask) for layer in self.layers)

    def scores(
        self,
        batch: Mapping[str, Array],
        order: Int[Array, "b k n"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Scores:
        """Teacher forcing: all steps of k orders of every target, in one pass.

        Args:
            batch: `target` and `target_mask`, framed, and the source.
            order: Orders of the framed targets.
            key: Of dropout; None for none.
        """
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        rows, k, n = order.shape
        target = jnp.broadcast_to(batch["target"][:, None], order.shape)
        written = in_order(target, order).reshape(rows * k, n)
        before, label = written[:, :-1], written[:, 1:]
        relation = relations(order).reshape(rows * k, n, n)[:, :-1, :-1]
        x = self._read(before, relation, self.encode(batch, key=keys[0]), keys[1])

        word, spread = self._word_scores(x, label)
        left, right = (side.reshape(rows * k, n)[:, 1:, None] for side in neighbours(order))
        score = self._slot_scores(x, self.source.embedding(label), self._keys_of_slots(x))
        score = jnp.where(jnp.tri(n - 1, dtype=bool)[:, :, None], score, -jnp.inf)
        ends = (
            jnp.take_along_axis(score[..., side], step, axis=-1)[..., 0]
            for side, step in enumerate((left, right))
        )
        slot = jnp.logaddexp(*ends) - jax.nn.logsumexp(score, axis=(-2, -1))
        mask = batch["target_mask"]
        slot = jnp.where(movable(mask)[:, None, 1:], slot.reshape(rows, k, n - 1), 0)
        return Scores(
            word.reshape(rows, k, n - 1),
            slot,
            spread.reshape(rows, k, n - 1),
            mask[:, None, 1:],
        )

    def start(self, rows: int, length: int) -> Cache:
        """An empty cache for `rows` sequences of at most `length` steps."""
        slot_keys = jnp.zeros((rows, length, 2, self.norm.weight.shape[0]), jnp.float32)
        return Cache(
            tuple(layer.start(rows, length, self.dtype) for layer in self.layers), slot_keys
        )

    def step(
        self,
        word: Int[Array, " r"],
        relation: Int[Array, "r t"],
        cache: Cache,
        step: Int[Array, ""],
        contexts: tuple[Context, ...],
    ) -> tuple[Float[Array, "r f"], Cache]:
        """Reads the word that a step wrote.

        Args:
            word: The word.
            relation: Labels of the step against all steps; those to come do not count.
            cache: Of the steps before.
            step: Index of the step.
            contexts: From `encode`; r may be a multiple of their rows.

        Returns:
            The state from which the next word and slot are predicted, and the cache.
        """
        x = self.source.embedding(word).astype(self.dtype)[:, None]
        layers = []
        for layer, seen, context in zip(self.layers, cache.layers, contexts, strict=True):
            x, seen = layer.step(x, seen, step, context, relation[:, None])
            layers.append(seen)
        x = self.norm(x)
        slot_keys = jax.lax.dynamic_update_slice_in_dim(
            cache.slot_keys, self._keys_of_slots(x), step, axis=1
        )
        return x[:, 0], Cache(tuple(layers), slot_keys)

    def word_log_probs(self, x: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        """Log p of every word, float32; the table of words serves the output too."""
        table = self.source.embedding.weight[...]
        scale = table.shape[1] ** -0.5
        logits = jnp.einsum(
            "...f,vf->...v",
            self.word(x),
            table.astype(x.dtype),
            preferred_element_type=jnp.float32,
        )
        barred = jnp.arange(len(table)) < END
        return jax.nn.log_softmax(jnp.where(barred, -jnp.inf, logits * scale), axis=-1)

    def _word_scores(
        self, x: Float[Array, "r t f"], label: Int[Array, "r t"]
    ) -> tuple[Float[Array, "r t"], Float[Array, "r t"]]:
        """Log p of one word of each step, and its mean over all words that may be written.

        Neither needs more than the logits' sum of exponentials: training on a large vocabulary
        spends most of its time here, so no table of log p is ever written.
        """
        table = self.source.embedding.weight[...].astype(x.dtype)
        query = self.word(x) * table.shape[1] ** -0.5
        rows = query.reshape(-1, query.shape[-1])  # one product, see `project`
        logits = jnp.dot(rows, table[END:].T, preferred_element_type=jnp.float32)
        total = jax.nn.logsumexp(logits, axis=-1).reshape(label.shape)
        query, table = query.astype(jnp.float32), table.astype(jnp.float32)
        word = (query * table[label]).sum(-1)
        return word - total, query @ table[END:].mean(0) - total

    def slot_log_probs(
        self,
        x: Float[Array, "r f"],
        word: Int[Array, "r c"],
        cache: Cache,
        step: Int[Array, ""],
        right_neighbour: Int[Array, "r t"],
    ) -> Float[Array, "r c t"]:
        """Log p of the slots for each of c words: entry s is the slot right of step s.

        Args:
            x: From `step`.
            word: The candidates for the next word.
            cache: From `step`.
            step: The newest step; slots of later ones have probability zero.
            right_neighbour: The step that stands right of each step, the last one's being 0.
        """
        score = self.side_log_probs(x, word, cache, step)
        right = jnp.broadcast_to(right_neighbour[:, None], score.shape[:-1])
        both = jnp.logaddexp(score[..., 0], jnp.take_along_axis(score[..., 1], right, axis=-1))
        return jnp.where(jnp.arange(both.shape[-1]) <= step, both, -jnp.inf)

    def side_log_probs(
        self, x: Float[Array, "r f"], word: Int[Array, "r c"], cache: Cache, step: Int[Array, ""]
    ) -> Float[Array, "r c t 2"]:
        """As `slot_log_probs`, of pointing at the right or the left side of every step."""
        query = jnp.broadcast_to(x[:, None], (*word.shape, x.shape[-1]))
        score = self._slot_scores(query, self.source.embedding(word), cache.slot_keys)
        written = jnp.arange(score.shape[-2]) <= step
        score = jnp.where(written[:, None], score, -jnp.inf)
        return score - jax.nn.logsumexp(score, axis=(-2, -1), keepdims=True)

    def _read(
        self,
        words: Int[Array, "r t"],
        relation: Int[Array, "r t t"],
        contexts: tuple[Context, ...],
        key: Key[Array, ""] | None,
    ) -> Float[Array, "r t f"]:
        x = self.source.embedding(words).astype(self.dtype)
        x = dropout(x, self.dropout_rate, key)
        causal = jnp.tri(words.shape[1], dtype=bool)[None]
        for i, (layer, context) in enumerate(zip(self.layers, contexts, strict=True)):
            at = None if key is None else jax.random.fold_in(key, i)
            x = layer(x, causal, context, relation=relation, key=at)
        return self.norm(x)

    def _keys_of_slots(self, x: Float[Array, "*b f"]) -> Float[Array, "*b 2 f"]:
        return self.slot_keys(x).astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)

    def _slot_scores(
        self, x: Float[Array, "r c f"], word: Float[Array, "r c f"], keys: Float[Array, "r t 2 f"]
    ) -> Float[Array, "r c t 2"]:
        query = self.slot_query(x).astype(jnp.float32) + word.astype(jnp.float32)
        return jnp.einsum("rcf,rtsf->rcts", query, keys) * query.shape[-1] ** -0.5
