"""Captioners: LSTMs that write what a grid of features shows, with attention or without.

- `ShowAndTell`: Vinyals et al., "Show and Tell: A Neural Image Caption Generator" (2015), section
  3.1. The picture is the first thing that the LSTM reads, and is not seen again.
- `ShowAttendAndTell`: Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with
  Visual Attention" (2015), section 3.1.2 and, for soft attention, 4.2. At every word the state
  gives weights over the grid.

The two have one interface, which is the decoder protocol (`vljax.models.decoding`) beside `look`:
what a picture is for a captioner is the same for all beams of it, and does not travel in the cache.

```
seen = captioner.look(features)
step = functools.partial(captioner.step, seen)
beam_search(step, captioner.start(seen), first, length, beams, end=END)
```

The authors' code of the second differs from the paper in two places; here the paper's is built: the
code passes the sum of equation 7 through a tanh, and puts the zero vector in the place of the word
before the first, for which there is a start mark here. The code's attention network has two linear
layers in a row over the grid, one here, which can do the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models.layers import Embedding, Linear, dropout
from vljax.models.recurrent import LSTM, LSTMState

#: What a captioner does with the grid of features.
ATTENTIONS = ("soft", "none")


class Told(NamedTuple):
    """What a captioner says of whole captions.

    Attributes:
        log_probs: Log p of the word after each that was read, float32 [b t v].
        attention: The weights α with which the grid was looked at for that word, float32
            [b t h w], each map summing to 1; None without attention.
        gate: How much what was looked at counts, β in [0, 1], float32 [b t]; None without
            attention.
    """

    log_probs: Float[Array, "b t v"]
    attention: Float[Array, "b t h w"] | None
    gate: Float[Array, "b t"] | None


class Seen(NamedTuple):
    """A picture as `ShowAttendAndTell` looks at it.

    Attributes:
        places: The annotation vectors a_i, n = h × w of them.
        keys: What of them the attention network reads, which no word changes.
    """

    places: Float[Array, "b n c"]
    keys: Float[Array, "b n a"]


class ShowAndTell(nnx.Module):
    """Reads the mean of the grid as if it were a word, then writes (Show and Tell, eq. 10 to 12).

    Args:
        words: Number of words.
        channels: Of the features.
        embedding: Features of a word; 512 as published.
        hidden: Of the LSTM; 512 as published.
        dropout_rate: Of what enters and leaves the LSTM, in training.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        words: int,
        channels: int,
        *,
        embedding: int = 512,
        hidden: int = 512,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout_rate = dropout_rate
        self.picture = Linear(channels, embedding, rngs=rngs)
        self.embedding = Embedding(words, embedding, rngs=rngs)
        self.lstm = LSTM(embedding, hidden, rngs=rngs)
        self.out = Linear(hidden, words, rngs=rngs)

    def look(self, features: Float[Array, "b h w c"]) -> Float[Array, "b e"]:
        """x_{-1}: the picture in the place of a word."""
        return self.picture(features.mean((1, 2)))

    def start(self, seen: Float[Array, "b e"]) -> LSTMState:
        """The state after the picture was read."""
        return self.lstm.step(seen, self.lstm.start(len(seen), seen.dtype))

    def step(
        self, seen: Float[Array, "b e"], state: LSTMState, token: Int[Array, " r"]
    ) -> tuple[Float[Array, "r v"], LSTMState]:
        """One more word read; log p of the next. The picture is in the state, not looked at."""
        state = self.lstm.step(self.embedding(token).astype(seen.dtype), state)
        return _log_probs(self.out(state[0])), state

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        tokens: Int[Array, "b t"],
        key: Key[Array, ""] | None = None,
    ) -> Told:
        """The same of whole captions, the first token being the start mark.

        Args:
            features: Of pictures.
            tokens: Words read.
            key: For dropout; without it there is none.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        seen = self.look(features)
        words = self.embedding(tokens).astype(seen.dtype)
        h, _ = self.lstm(dropout(words, self.dropout_rate, keys[0]), state=self.start(seen))
        log_probs = _log_probs(self.out(dropout(h, self.dropout_rate, keys[1])))
        return Told(log_probs, None, None)


class ShowAttendAndTell(nnx.Module):
    """Looks at the grid anew for every word, with soft attention.

    With a_i the places, E y the word before and h, c the LSTM's state:

    - h_0, c_0 = networks of the places' mean (section 3.1.2);
    - e_i = w · tanh(keys(a_i) + U h), α = softmax e (equations 4 to 6), keys = tanh(W a_i + b);
    - z = β Σ α_i a_i (equation 13), β = σ(f h) (section 4.2.1);
    - h, c = LSTM([E y, z], h, c) (equations 1 to 3);
    - p ∝ exp L_o (E y + L_h h + L_z z) (equation 7).

    Args:
        words: Number of words.
        channels: Of the features.
        embedding: Features of a word; 512 as published.
        hidden: Of the LSTM; 1,800 as published on COCO.
        attention: Hidden features of the attention network; 512 as published.
        dropout_rate: Of the initial network, of h and of the sum of equation 7, in training.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        words: int,
        channels: int,
        *,
        embedding: int = 512,
        hidden: int = 1800,
        attention: int = 512,
        dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout_rate = dropout_rate
        self.init = Linear(channels, channels, rngs=rngs)
        self.init_h = Linear(channels, hidden, rngs=rngs)
        self.init_c = Linear(channels, hidden, rngs=rngs)
        self.key = Linear(channels, attention, rngs=rngs)
        self.query = Linear(hidden, attention, bias=False, rngs=rngs)
        self.score = Linear(attention, 1, rngs=rngs)
        self.gate = Linear(hidden, 1, rngs=rngs)
        self.embedding = Embedding(words, embedding, rngs=rngs)
        self.lstm = LSTM(embedding + channels, hidden, rngs=rngs)
        self.out_h = Linear(hidden, embedding, rngs=rngs)
        self.out_z = Linear(channels, embedding, rngs=rngs)
        self.out = Linear(embedding, words, rngs=rngs)

    def look(self, features: Float[Array, "b h w c"]) -> Seen:
        """The places of the grid, in one row, and what the attention network reads of them."""
        places = features.reshape(len(features), -1, features.shape[-1])
        return Seen(places, jnp.tanh(self.key(places)))

    def start(self, seen: Seen, key: Key[Array, ""] | None = None) -> LSTMState:
        """h_0 and c_0; `key` is for dropout."""
        mean = jax.nn.relu(self.init(seen.places.mean(1)))
        mean = dropout(mean, self.dropout_rate, key)
        return jnp.tanh(self.init_h(mean)), jnp.tanh(self.init_c(mean)).astype(jnp.float32)

    def attend(
        self, seen: Seen, h: Float[Array, "r d"]
    ) -> tuple[Float[Array, "r c"], Float[Array, "r n"], Float[Array, " r"]]:
        """z, α and β by a state; r may be a multiple of the pictures, those of one side by side."""
        rows, places = seen.places.shape[0], seen.places.shape[1]
        query = self.query(h).reshape(rows, -1, 1, seen.keys.shape[-1])
        scores = self.score(jnp.tanh(seen.keys[:, None] + query))[..., 0]
        alpha = jax.nn.softmax(scores.astype(jnp.float32))
        beta = jax.nn.sigmoid(self.gate(h)[..., 0].astype(jnp.float32))
        z = jnp.einsum("bkn,bnc->bkc", alpha.astype(h.dtype), seen.places).reshape(len(h), -1)
        return beta[:, None].astype(h.dtype) * z, alpha.reshape(-1, places), beta

    def step(
        self, seen: Seen, state: LSTMState, token: Int[Array, " r"]
    ) -> tuple[Float[Array, "r v"], LSTMState]:
        """One more word read; log p of the next."""
        word = self.embedding(token).astype(seen.places.dtype)
        z, _, _ = self.attend(seen, state[0])
        state = self.lstm.step(jnp.concatenate([word, z], -1), state)
        return self._log_probs(word, state[0], z), state

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        tokens: Int[Array, "b t"],
        key: Key[Array, ""] | None = None,
    ) -> Told:
        """The same of whole captions, the first token being the start mark.

        Args:
            features: Of pictures.
            tokens: Words read.
            key: For dropout; without it there is none.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        seen = self.look(features)
        words = self.embedding(tokens).astype(features.dtype)

        def step(state: LSTMState, word: Array) -> tuple[LSTMState, tuple[Array, ...]]:
            z, alpha, beta = self.attend(seen, state[0])
            state = self.lstm.step(jnp.concatenate([word, z], -1), state)
            return state, (state[0], z, alpha, beta)

        _, read = lax.scan(step, self.start(seen, keys[0]), jnp.swapaxes(words, 0, 1))
        h, z, alpha, beta = (jnp.swapaxes(one, 0, 1) for one in read)
        log_probs = self._log_probs(words, h, z, keys[1:])
        return Told(log_probs, alpha.reshape(*tokens.shape, *features.shape[1:3]), beta)

    def _log_probs(self, word: Array, h: Array, z: Array, keys: Any = (None, None)) -> Array:
        h = dropout(h, self.dropout_rate, keys[0])
        joint = word + self.out_h(h) + self.out_z(z)  # equation 7
        return _log_probs(self.out(dropout(joint, self.dropout_rate, keys[1])))


Captioner = ShowAndTell | ShowAttendAndTell


def make_captioner(
    kind: str, words: int, channels: int, *, rngs: nnx.Rngs, attention: int, **fields: Any
) -> Captioner:
    """The captioner of a kind of attention.

    Args:
        kind: `"soft"` or `"none"`.
        words: Number of words.
        channels: Of the features.
        attention: Hidden features of the attention network, where there is one.
        rngs: Where the initial weights come from.
        **fields: What both have: `embedding`, `hidden`, `dropout_rate`.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in ATTENTIONS:
        raise UserError(f"attention={kind!r}: choose one of {', '.join(map(repr, ATTENTIONS))}")
    if kind == "none":
        return ShowAndTell(words, channels, rngs=rngs, **fields)
    return ShowAttendAndTell(words, channels, attention=attention, rngs=rngs, **fields)


def word_loss(
    log_probs: Float[Array, "b t v"], written: Int[Array, "b t"], counts: Array
) -> Float[Array, ""]:
    """−log p of captions, summed over their words and averaged over them, in nats.

    Args:
        log_probs: Of the next word.
        written: The words that come next.
        counts: Bool [b t], which of them are words or their end.
    """
    picked = jnp.take_along_axis(log_probs, written[..., None], axis=-1)[..., 0]
    return -(picked * counts).sum(1).mean()


def doubly_stochastic_penalty(
    attention: Float[Array, "b t h w"], counts: Array
) -> Float[Array, ""]:
    """Σ_i (1 − Σ_t α_ti)², averaged over captions (Show, Attend and Tell, equation 14).

    Maps already sum to 1 over places; this asks that places sum to 1 over words.

    Args:
        attention: α of every word.
        counts: Bool [b t], which of them are words or their end.
    """
    looked = (attention * counts[..., None, None]).sum(1)
    return ((1 - looked) ** 2).sum((1, 2)).mean()


def _log_probs(logits: Array) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32))
