"""The Transformer of SeMani-Trans: one sequence of gray codes, words and a picture's codes.

Wang et al., *Entity-Level Text-Guided Image Manipulation* (2023), section 3.2; its sizes and blocks
are those of the published code, a descendant of DALLE-pytorch (Ramesh et al., *Zero-Shot
Text-to-Image Generation*, 2021). Parameter names are those of the authors' checkpoints.

The sequence is [BOV] gray codes, [BOT] words, picture codes, row by row; without a gray picture it
begins at [BOT]. Position k predicts token k + 1, also from one segment into the next. Which
position sees which is a mask of allowed pairs (section 3.2.2 and the code): all see what is before
them, but words never see the gray picture, and the picture's codes see it only in the examples that
use it.

It follows the decoder protocol of `vljax.models.decoding` (`start`, `step`) with a cache of keys
and values. `vljax.models.completion` draws a part of a picture's codes with it: one after the
other, or with the variant `masked`, which sees all codes at once, in a few passes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from vljax.models.layers import Embedding, LayerNorm, Linear, dropout, normal
from vljax.models.remat import rematerialised
from vljax.ops.attention import attention

Tensor = TypeVar("Tensor")

#: Keys and values of a layer, [b n h d] each.
KeysValues = tuple[Float[Array, "b n h d"], Float[Array, "b n h d"]]


class StableNorm(LayerNorm):
    """Layer normalisation of each position at a fixed scale, so that epsilon never matters.

    The published norm first divides by the largest absolute value of the whole batch, times 8,
    which makes an example depend, by the effect of epsilon, on those beside it. Here each position
    has its own scale; the difference is of the order of epsilon.
    """

    def __call__(self, x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
        h = x.astype(jnp.float32)
        largest = lax.stop_gradient(jnp.abs(h).max(-1, keepdims=True))
        return super().__call__(h * (8.0 / jnp.maximum(largest, 1e-30))).astype(x.dtype)


class Sandwich(nnx.Module):
    """A function of each position between two norms, scaled by channel ("LayerScale")."""

    def __init__(self, features: int, depth: int, function: Any) -> None:
        self.fn = _Normed(features, function)
        start = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nnx.Param(jnp.full(features, start), published="1 1 f -> f")

    def enter(self, x: Float[Array, "b n f"]) -> Float[Array, "b n f"]:
        """What the function reads."""
        return self.fn.pre_norm(x)

    def add(self, x: Float[Array, "b n f"], change: Float[Array, "b n f"]) -> Array:
        """The stream with what the function gave."""
        return x + self.fn.post_norm(change) * self.scale[...].astype(x.dtype)


class _Normed(nnx.Module):
    def __init__(self, features: int, function: Any) -> None:
        self.pre_norm = StableNorm(features)
        self.fn: Any = function
        self.post_norm = StableNorm(features)


class Attention(nnx.Module):
    """Self-attention; queries, keys and values by one projection without bias."""

    def __init__(self, features: int, heads: int, head_channels: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        inner = heads * head_channels
        self.to_qkv = Linear(features, 3 * inner, bias=False, rngs=rngs)
        # The empty place is the checkpoint's dropout.
        self.to_out = nnx.List[Any]([Linear(inner, features, rngs=rngs), None])

    def project(self, x: Float[Array, "b n f"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values, [b n h d] each."""
        b, n, _ = x.shape
        q, k, v = jnp.moveaxis(self.to_qkv(x).reshape(b, n, 3, self.heads, -1), 2, 0)
        return q, k, v

    def mix(self, query: Array, seen: KeysValues, mask: Bool[Array, "#b q n"]) -> Array:
        """What queries get of the keys that they may see."""
        mixed = attention(query, *seen, mask=mask[:, None])
        return self.to_out[0](mixed.reshape(*mixed.shape[:2], -1))


class FeedForward(nnx.Module):
    """GEGLU to four times the width, and back."""

    def __init__(self, features: int, *, rngs: nnx.Rngs) -> None:
        # The empty places are the checkpoint's activation and dropout.
        self.net = nnx.List[Any](
            [
                Linear(features, 8 * features, rngs=rngs),
                None,
                None,
                Linear(4 * features, features, rngs=rngs),
            ]
        )

    def __call__(
        self, x: Float[Array, "b n f"], rate: float = 0.0, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b n f"]:
        value, gate = jnp.split(self.net[0](x), 2, axis=-1)
        return self.net[3](dropout(value * jax.nn.gelu(gate, approximate=False), rate, key))


class _Layers(nnx.Module):
    """Its own class so that names are the checkpoint's: `transformer.layers.layers`."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = nnx.List[Any](layers)


class Transformer(nnx.Module):
    """The stack of blocks: attention, then a feed-forward network, each a `Sandwich`."""

    def __init__(
        self, features: int, layers: int, heads: int, head_channels: int, *, rngs: nnx.Rngs
    ) -> None:
        blocks = []
        for depth in range(1, layers + 1):
            mixes = Attention(features, heads, head_channels, rngs=rngs)
            feeds = FeedForward(features, rngs=rngs)
            pair = [Sandwich(features, depth, mixes), Sandwich(features, depth, feeds)]
            blocks.append(nnx.List[Any](pair))
        self.layers = _Layers(blocks)

    @property
    def blocks(self) -> list[tuple[Sandwich, Sandwich]]:
        """Attention and feed-forward network of each block."""
        return [(pair[0], pair[1]) for pair in self.layers.layers]


class Axial(nnx.Module):
    """Learned positions on a grid: a row's vector plus a column's."""

    def __init__(self, side: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.weights_0 = normal(rngs, (side, features), 1.0, published="1 r 1 f -> r f")
        self.weights_1 = normal(rngs, (side, features), 1.0, published="1 1 c f -> c f")

    def __call__(self) -> Float[Array, "n f"]:
        rows, columns = self.weights_0[...], self.weights_1[...]
        return (rows[:, None] + columns).reshape(-1, rows.shape[-1])


class Logits(NamedTuple):
    """What each position of a sequence expects next, float32.

    Attributes:
        text: Of the words.
        image: Of the picture's codes.
        gray: Of the gray picture's codes, where there is one.
    """

    text: Float[Array, "b t v"]
    image: Float[Array, "b n k"]
    gray: Float[Array, "b n k"] | None


class Cache(NamedTuple):
    """What has been read.

    Attributes:
        layers: Keys and values of each layer, with room for the whole sequence.
        sees_gray: Which rows' codes see the gray picture.
        at: How many positions have been read.
    """

    layers: tuple[KeysValues, ...]
    sees_gray: Bool[Array, " b"]
    at: Int[Array, ""]


class TokenTransformer(nnx.Module):
    """The network. Words are ids without start and end marks, 0 being padding.

    The id 0 becomes a token of its own for each place, as published; so does an exclamation mark
    before another sign, whose id is 0 in CLIP's vocabulary.

    Args:
        features: Width.
        layers: Number of blocks.
        heads: Attention heads.
        head_channels: Width of a head.
        num_codes: Codes of the picture.
        grid: Side of the map of codes.
        vocabulary_size: Words.
        text_length: Most words of a text.
        vision: Whether it has the marks that begin a gray picture.
        masked: Whether it fills in masked codes, seeing all the others: then it has a mask's vector
            and no prediction of words.
        dropout_rate: On what a block adds and inside its feed-forward network.
        remat: What a block keeps for the backward pass, see `vljax.models.remat`.
        dtype: Compute dtype.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        features: int = 512,
        layers: int = 24,
        heads: int = 8,
        head_channels: int = 64,
        num_codes: int = 1024,
        grid: int = 16,
        vocabulary_size: int = 49_408,
        text_length: int = 128,
        vision: bool = True,
        masked: bool = False,
        dropout_rate: float = 0.0,
        remat: bool | str = "off",
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ) -> None:
        self.num_codes, self.grid, self.codes = num_codes, grid, grid * grid
        self.vocabulary_size, self.text_length = vocabulary_size, text_length
        self.vision, self.masked = vision, masked
        self.dropout_rate, self.remat, self.dtype = dropout_rate, remat, dtype
        words = vocabulary_size + text_length  # each place has a pad of its own
        self.text_emb = Embedding(words, features, rngs=rngs)
        self.image_emb = Embedding(num_codes, features, rngs=rngs)
        self.text_pos_emb = Embedding(text_length + 1, features, rngs=rngs)
        self.image_pos_emb = Axial(grid, features, rngs=rngs)
        self.bov_emb = normal(rngs, (features,), 1.0, published="1 1 f -> f") if vision else None
        self.bov_pos_emb = (
            normal(rngs, (features,), 1.0, published="1 1 f -> f") if vision else None
        )
        self.mask_emb = normal(rngs, (features,), 1.0) if masked else None
        self.transformer = Transformer(features, layers, heads, head_channels, rngs=rngs)

        def head(count: int) -> nnx.List[Any]:
            return nnx.List[Any]([LayerNorm(features), Linear(features, count, rngs=rngs)])

        self.to_im_logits = head(num_codes)
        self.to_text_logits = None if masked else head(words)

    # Sequences ---------------------------------------------------------------------------------

    def padded(self, text: Int[Array, "b t"]) -> Int[Array, "b t"]:
        """Words with each place's own pad for 0: what the network reads and predicts."""
        return jnp.where(text == 0, self.vocabulary_size + jnp.arange(self.text_length), text)

    def prompt(self, text: Int[Array, "b t"], gray: Int[Array, "b n"] | None) -> Array:
        """The embedded sequence before the picture's codes."""
        text = jnp.pad(self.padded(text), ((0, 0), (1, 0)))  # [BOT] is word 0
        x = self.text_emb(text) + self.text_pos_emb.weight[...]
        if gray is not None:
            if self.bov_emb is None or self.bov_pos_emb is None:
                raise ValueError("a TokenTransformer without vision takes no gray picture")
            begin = jnp.broadcast_to(
                self.bov_emb[...] + self.bov_pos_emb[...], (len(x), 1, x.shape[-1])
            )
            x = jnp.concatenate([begin, self.image_emb(gray) + self.image_pos_emb(), x], axis=1)
        return x.astype(self.dtype)

    def picture(
        self, codes: Int[Array, "b n"], unknown: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n f"]:
        """The embedded codes of a whole picture; of those unknown the mask's vector."""
        x = self.image_emb(codes)
        if unknown is not None:
            assert self.mask_emb is not None
            x = jnp.where(unknown[..., None], self.mask_emb[...], x)
        return (x + self.image_pos_emb()).astype(self.dtype)

    def stretch(
        self, codes: Int[Array, "b n"], at: Int[Array, ""], count: int
    ) -> Float[Array, "b count f"]:
        """The embedded codes of the places `at` … `at + count − 1` of a picture."""
        x = self.image_emb(lax.dynamic_slice_in_dim(codes, at, count, axis=1))
        return (x + lax.dynamic_slice_in_dim(self.image_pos_emb(), at, count)).astype(self.dtype)

    def allowed(
        self, queries: Int[Array, " q"], length: int, sees_gray: Bool[Array, " b"]
    ) -> Bool[Array, "b q n"]:
        """Which of `length` positions each query may see.

        A masked network's codes see all codes, before and after. `length` tells whether the
        sequence begins with a gray picture.
        """
        words = length - self.codes - 1 - self.text_length  # where [BOT] stands
        last = words + self.text_length  # the last word, which predicts the first code
        keys, query = jnp.arange(length), queries[:, None]
        seen = keys <= query
        if self.masked:
            seen |= query > last
        hidden_from_words = (query >= words) & (query < last)
        hidden_from_codes = (query >= last) & ~sees_gray[:, None, None]
        return seen & ~((keys < words) & (hidden_from_words | hidden_from_codes))

    def _through(self, x: Array, mask: Array, key: Key[Array, ""] | None) -> Array:
        """All blocks over a whole sequence."""

        def block(pair: tuple[Sandwich, Sandwich], x: Array, key: Array | None) -> Array:
            mixes, feeds = pair
            keys = (None,) * 3 if key is None else jax.random.split(key, 3)
            query, k, v = mixes.fn.fn.project(mixes.enter(x))
            change = mixes.fn.fn.mix(query, (k, v), mask)
            x = mixes.add(x, dropout(change, self.dropout_rate, keys[0]))
            change = feeds.fn.fn(feeds.enter(x), self.dropout_rate, keys[1])
            return feeds.add(x, change)

        run = rematerialised(block, self.remat)
        for i, pair in enumerate(self.transformer.blocks):
            x = run(pair, x, None if key is None else jax.random.fold_in(key, i))
        return x

    def read(self, x: Float[Array, "b q f"], cache: Cache) -> tuple[Float[Array, "b q f"], Cache]:
        """All blocks over the next positions, given what has been read.

        Args:
            x: The embedded positions from `cache.at` on.
            cache: With keys and values of those before.

        Returns:
            What each of them gives, for `next_code`, and the cache with them.
        """
        at, layers = cache.at, []
        length = cache.layers[0][0].shape[1]
        mask = self.allowed(at + jnp.arange(x.shape[1]), length, cache.sees_gray)
        for (mixes, feeds), old in zip(self.transformer.blocks, cache.layers, strict=True):
            query, *new = mixes.fn.fn.project(mixes.enter(x))
            k, v = (
                lax.dynamic_update_slice_in_dim(room, one.astype(room.dtype), at, axis=1)
                for room, one in zip(old, new, strict=True)
            )
            seen = (k, v)
            x = mixes.add(x, mixes.fn.fn.mix(query, seen, mask))
            x = feeds.add(x, feeds.fn.fn(feeds.enter(x)))
            layers.append(seen)
        return x, cache._replace(layers=tuple(layers), at=at + x.shape[1])

    def next_code(self, x: Float[Array, "*b f"]) -> Float[Array, "*b k"]:
        """Logits of the code that comes next, float32."""
        return self._expected(self.to_im_logits, x)

    def _expected(self, head: nnx.List[Any], x: Array) -> Float[Array, "b n k"]:
        norm, linear = head
        return linear(norm(x)).astype(jnp.float32)

    def __call__(
        self,
        text: Int[Array, "b t"],
        codes: Int[Array, "b n"],
        gray: Int[Array, "b n"] | None = None,
        uses_gray: Bool[Array, " b"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Logits:
        """What is expected of whole sequences (equation 4), for training.

        Args:
            text: Words, 0 for padding.
            codes: The picture's codes in raster order.
            gray: The gray picture's, where the sequence has one.
            uses_gray: Which examples' codes see it; all by default.
            key: Of dropout; without it there is none.
        """
        assert self.to_text_logits is not None
        x = jnp.concatenate([self.prompt(text, gray), self.picture(codes)], axis=1)
        before = x.shape[1] - self.codes
        mask = self.allowed(jnp.arange(x.shape[1]), x.shape[1], uses(text, gray, uses_gray))
        # The last code predicts nothing.
        x = self._through(x[:, :-1], mask[:, :-1, :-1], key)
        words = before - 1 - self.text_length
        return Logits(
            self._expected(self.to_text_logits, x[:, words : before - 1]),
            self._expected(self.to_im_logits, x[:, before - 1 :]),
            None if gray is None else self._expected(self.to_im_logits, x[:, : self.codes]),
        )

    def fill(
        self,
        text: Int[Array, "b t"],
        codes: Int[Array, "b n"],
        unknown: Bool[Array, "b n"],
        gray: Int[Array, "b n"] | None = None,
        uses_gray: Bool[Array, " b"] | None = None,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b n k"]:
        """What a masked network expects at each code when those `unknown` are masked.

        Args:
            text: Words, 0 for padding.
            codes: The picture's codes; what stands at unknown ones does not matter.
            unknown: Which are masked.
            gray: The gray picture's, where the sequence has one.
            uses_gray: Which examples' codes see it; all by default.
            key: Of dropout; without it there is none.
        """
        x = jnp.concatenate([self.prompt(text, gray), self.picture(codes, unknown)], axis=1)
        mask = self.allowed(jnp.arange(x.shape[1]), x.shape[1], uses(text, gray, uses_gray))
        x = self._through(x, mask, key)
        return self._expected(self.to_im_logits, x[:, -self.codes :])

    # The decoder protocol -----------------------------------------------------------------------

    def start(
        self,
        text: Int[Array, "b t"],
        gray: Int[Array, "b n"] | None = None,
        uses_gray: Bool[Array, " b"] | None = None,
    ) -> Cache:
        """The cache before the first code: all is read but the last word, see `first`."""
        x = self.prompt(text, gray)
        cache = self.empty(len(x), x.shape[1], uses(text, gray, uses_gray))
        return self.read(x[:, :-1], cache)[1]

    def first(self, text: Int[Array, "b t"]) -> Int[Array, " b"]:
        """The token that the first step reads: the last word, as `step` counts words."""
        return self.num_codes + self.padded(text)[:, -1]

    def step(self, cache: Cache, token: Int[Array, " b"]) -> tuple[Float[Array, "b k"], Cache]:
        """Reads a token and predicts the next code.

        Args:
            cache: From `start` or the step before.
            token: A code, or `num_codes` + a word (only the last word is read here).
        """
        length = cache.layers[0][0].shape[1]
        place = jnp.maximum(cache.at - (length - self.codes), 0)
        word = self.text_emb(jnp.maximum(token - self.num_codes, 0))
        word = word + self.text_pos_emb.weight[...][-1]
        code = self.image_emb(jnp.minimum(token, self.num_codes - 1)) + self.image_pos_emb()[place]
        x = jnp.where((token >= self.num_codes)[:, None], word, code).astype(self.dtype)
        x, cache = self.read(x[:, None], cache)
        return jax.nn.log_softmax(self.next_code(x[:, 0])), cache

    def empty(self, rows: int, prompt: int, sees_gray: Bool[Array, " b"]) -> Cache:
        """The cache of sequences of which nothing is read.

        Args:
            rows: How many.
            prompt: How many positions come before the codes.
            sees_gray: Which rows' codes see the gray picture.
        """
        mixes, _ = self.transformer.blocks[0]
        inner = mixes.fn.fn.to_out[0].weight.shape[0]
        heads, length = mixes.fn.fn.heads, prompt + self.codes
        room = jnp.zeros((rows, length, heads, inner // heads), self.dtype)
        layers = ((room, room),) * len(self.transformer.blocks)
        return Cache(layers, sees_gray, jnp.zeros((), jnp.int32))

    @staticmethod
    def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors by our names, which are the authors' of late 2021.

        Today's package of axial positions lists its tables as `weights.0` and `weights.1`.
        """
        return {
            name.replace("pos_emb.weights.", "pos_emb.weights_"): tensors[name] for name in tensors
        }


def uses(text: Array, gray: Array | None, uses_gray: Array | None) -> Bool[Array, " b"]:
    """Which rows' codes see the gray picture: as told, else all where there is one."""
    if uses_gray is None:
        return jnp.full(len(text), gray is not None)
    return uses_gray
