"""PJ-X's explainer: where to look for the reasons of an answer, and a decoder that words them.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 2.4, equations
2.1 to 2.10; Park et al., "Multimodal Explanations" (2018). Attributes have the names of the
published Caffe model's layers.

Thesis and code differ in three places; the thesis is the default:

- `attended`, what equation 2.7 sums: `"embedded"`, f^I after its 1×1 convolution; in the code
  `"raw"`, the trunk's features;
- `decoder`, equation 2.9: `"single"`, one LSTM that reads f^X and the word; in the code `"double"`,
  where f^X multiplies the output of a first LSTM, and a second one reads that;
- `decoder_norm`, what the norm between the two is over: `"example"`; in the code `"batch"`, all
  examples of a step together, so that an example's words depend on its batch mates.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.models.layers import Linear, dropout
from vljax.models.recurrent import LSTM
from vljax.ops.fusion import Over, l2_normalise, signed_sqrt

CONV = "o i 1 1 -> i o"
"""How a published 1×1 convolution becomes a `Linear`."""


class Encoded(NamedTuple):
    """What the answering model hands to the explainer.

    Attributes:
        features: Of the trunk.
        embedded: f^I, after the 1×1 convolution.
        joint: f̄^IQ: embedded features times the question, not normalised.
        question: f^Q.
    """

    features: Float[Array, "b h w c"]
    embedded: Float[Array, "b h w q"]
    joint: Float[Array, "b h w q"]
    question: Float[Array, "b q"]


class Embedding(nnx.Module):
    """Caffe's embedding: a table and one bias, uniform on ±0.08 at the start.

    Args:
        count: Number of vectors.
        features: Length of each.
        rngs: Where the table comes from.
    """

    def __init__(self, count: int, features: int, *, rngs: nnx.Rngs) -> None:
        table = jax.random.uniform(rngs.params(), (count, features), minval=-0.08, maxval=0.08)
        self.weight = nnx.Param(table)
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, index: Int[Array, "*b"]) -> Float[Array, "*b f"]:
        return self.weight[...][index] + self.bias[...]

    def mix(self, shares: Float[Array, "*b n"]) -> Float[Array, "*b f"]:
        """The mean vector of a distribution over the table."""
        return shares @ self.weight[...] + self.bias[...]


class Decoder(NamedTuple):
    """The cache of the word decoder: what it explains and the states of its LSTMs."""

    cause: Float[Array, "b f"]
    states: tuple[Any, ...]


class Explainer(nnx.Module):
    """Points at evidence and writes why (section 2.4).

    Args:
        answers: Number of answers.
        words: Number of words.
        channels: Of the trunk's features.
        features: Of the question, the fused maps and f^X; 2048 as published.
        hidden: Of the attention; 512.
        embedding: Of answers and words; 300.
        decoder_features: Of the LSTMs; (2048, 1024) for `"double"`, the last of them for
            `"single"`.
        attention: Whether it points; without (table 2.2's ablation) every place counts alike.
        attended: See the module.
        decoder: See the module.
        decoder_norm: See the module.
        over: What the fused map's norm is over, see `vljax.ops.fusion.l2_normalise`.
        dropout_rate: After each fusion and between the LSTMs.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self,
        *,
        answers: int,
        words: int,
        channels: int,
        features: int,
        hidden: int,
        embedding: int,
        decoder_features: tuple[int, int],
        attention: bool = True,
        attended: Literal["embedded", "raw"] = "embedded",
        decoder: Literal["single", "double"] = "single",
        decoder_norm: Literal["example", "batch"] = "example",
        over: Over = "map",
        dropout_rate: float = 0.3,
        rngs: nnx.Rngs,
    ) -> None:
        self.attended, self.decoder, self.decoder_norm = attended, decoder, decoder_norm
        self.over, self.dropout_rate = over, dropout_rate
        self.exp_emb_ans = Embedding(answers, embedding, rngs=rngs)
        self.exp_emb_ans2 = Linear(embedding, features, rngs=rngs)
        if attention:
            self.eltwise_emb = Linear(features, features, rngs=rngs, published=CONV)
            self.exp_att_conv1 = Linear(features, hidden, rngs=rngs, published=CONV)
            self.exp_att_conv2 = Linear(hidden, 1, rngs=rngs, published=CONV)
        self.attention = attention
        seen = features if attended == "embedded" else channels
        self.exp_att_feature_embed = Linear(seen, features, rngs=rngs)
        self.exp_lstm12_embed = Linear(features, features, rngs=rngs)
        self.exp_embed_ba = Embedding(words, embedding, rngs=rngs)
        first, last = decoder_features
        if decoder == "single":
            self.exp_lstm1 = LSTM(features + embedding, last, rngs=rngs)
        else:
            if first != features:
                raise ValueError(
                    f"decoder_features={decoder_features}: the first LSTM's output is multiplied "
                    f"by f^X of {features} features; give as many"
                )
            self.exp_lstm1 = LSTM(embedding, first, rngs=rngs)
            self.exp_lstm2 = LSTM(first, last, rngs=rngs)
        self.exp_prediction = Linear(last, words, rngs=rngs)

    def embed_answer(self, answer: Array) -> Float[Array, "b q"]:
        """f^yEmbed of answers' indices [b], or of a distribution over answers [b n]."""
        look = self.exp_emb_ans.mix if answer.ndim == 2 else self.exp_emb_ans
        return self.exp_emb_ans2(jnp.tanh(look(answer)))

    def explain(
        self, encoded: Encoded, answer: Array, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b q"], Float[Array, "b h w"]]:
        """f^X and the map α^pointX (equations 2.1 to 2.8).

        Args:
            encoded: From the answering model.
            answer: Indices [b], or probabilities [b n].
            key: For dropout; without it there is none.
        """
        said = self.embed_answer(answer)
        seen = encoded.embedded if self.attended == "embedded" else encoded.features
        if self.attention:
            joint = self.eltwise_emb(encoded.joint) * said[:, None, None]  # 2.1, 2.2
            fused = l2_normalise(signed_sqrt(joint), self.over)  # 2.3
            fused = dropout(fused, self.dropout_rate, key)
            scores = self.exp_att_conv2(jax.nn.relu(self.exp_att_conv1(fused)))[..., 0]  # 2.4, 2.5
            points = jax.nn.softmax(scores, axis=(1, 2))  # 2.6
        else:
            places = seen.shape[1] * seen.shape[2]
            points = jnp.full(seen.shape[:3], 1 / places, seen.dtype)
        looked = jnp.einsum("bhw,bhwc->bc", points, seen)
        cause = self.exp_att_feature_embed(looked) * self.exp_lstm12_embed(encoded.question) * said
        return cause, points  # 2.7, 2.8

    def start(self, cause: Float[Array, "b q"]) -> Decoder:
        """The decoder before its first word; see `vljax.models.decoding`."""
        lstms = (self.exp_lstm1,) if self.decoder == "single" else (self.exp_lstm1, self.exp_lstm2)
        return Decoder(cause, tuple(lstm.start(len(cause), cause.dtype) for lstm in lstms))

    def step(self, cache: Decoder, token: Int[Array, " b"]) -> tuple[Float[Array, "b v"], Decoder]:
        """One more word read; log p of the next (equations 2.9, 2.10)."""
        word = jnp.tanh(self.exp_embed_ba(token))
        if self.decoder == "single":
            state = self.exp_lstm1.step(jnp.concatenate([cache.cause, word], -1), cache.states[0])
            return self._log_probs(state[0]), cache._replace(states=(state,))
        first = self.exp_lstm1.step(word, cache.states[0])
        fused = self._fused(first[0][:, None], cache.cause)[:, 0]
        second = self.exp_lstm2.step(fused, cache.states[1])
        return self._log_probs(second[0]), cache._replace(states=(first, second))

    def __call__(
        self,
        cause: Float[Array, "b q"],
        tokens: Int[Array, "b t"],
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b t v"]:
        """Log p of the word after each of `tokens`, the first of which is the start mark.

        The same as `step` word by word, as whole sequences.
        """
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        words = jnp.tanh(self.exp_embed_ba(tokens))
        if self.decoder == "single":
            causes = jnp.broadcast_to(cause[:, None], (*tokens.shape, cause.shape[-1]))
            h, _ = self.exp_lstm1(jnp.concatenate([causes, words], -1))
        else:
            h, _ = self.exp_lstm1(words)
            h = dropout(h, self.dropout_rate, keys[0])
            h = dropout(self._fused(h, cause), self.dropout_rate, keys[1])
            h, _ = self.exp_lstm2(h)
        return self._log_probs(dropout(h, self.dropout_rate, keys[2]))

    def _fused(self, h: Float[Array, "b t f"], cause: Float[Array, "b f"]) -> Float[Array, "b t f"]:
        joint = signed_sqrt(h * cause[:, None])
        if self.decoder_norm == "batch":  # a step's norm is over all examples
            return l2_normalise(joint.swapaxes(0, 1), "map").swapaxes(0, 1)
        return l2_normalise(joint, "place")

    def _log_probs(self, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        return jax.nn.log_softmax(self.exp_prediction(h).astype(jnp.float32))
