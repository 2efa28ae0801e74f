"""PJ-X's explainer: where to look for the reasons of an answer, and a decoder that words them.

Park, *Vision and Language Understanding Through Generative Modeling* (2023), section 2.4, equations
2.1 to 2.10; Park et al., "Multimodal Explanations" (2018). Attributes have the names of the
published Caffe model's layers.

Thesis and code differ in these places; the thesis is the default:

- `attended`, what equation 2.7 sums: `"embedded"`, f^I after its 1×1 convolution; in the code
  `"raw"`, the trunk's features;
- `decoder`, equation 2.9: `"single"`, one LSTM that reads f^X and the word; in the code `"double"`,
  where f^X multiplies the output of a first LSTM, and a second one reads that;
- `decoder_norm`, what the norm between the two is over: `"example"`; in the code `"batch"`, all
  examples of a step together, so that an example's words depend on its batch mates;
- `decoder_root`, whether that product's signed root is taken: in the code for VQA-X, not for ACT-X;
- `asks`, whether f^Q is a factor: in the code for ACT-X, where nothing is asked, it is left out
  instead of being a vector of ones.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from vljax.errors import UserError
from vljax.models import decoding
from vljax.models.fusion import xavier_linear
from vljax.models.layers import dropout
from vljax.models.question import BOUND, WordVectors, uniform_lstm
from vljax.ops.fusion import Over, l2_normalise, signed_sqrt


class Encoded(NamedTuple):
    """What the answering model hands to the explainer.

    Attributes:
        features: Of the trunk.
        embedded: f^I, after the 1×1 convolution.
        joint: f̄^IQ: embedded features times the question, not normalised.
        question: f^Q; not read by an explainer to which nothing is asked.
    """

    features: Float[Array, "b h w c"]
    embedded: Float[Array, "b h w q"]
    joint: Float[Array, "b h w q"]
    question: Float[Array, "b q"]


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
        decoder_root: See the module.
        asks: See the module.
        over: What the fused map's norm is over, see `vljax.ops.fusion.l2_normalise`.
        dropout_rate: After each fusion and between the LSTMs.
        bound: Embeddings and LSTMs start uniform on ±bound; as published for thousands of features.
        rngs: Where the initial weights come from.

    Raises:
        UserError: `decoder_features` does not fit the decoder.
    """

    # Layers of the published caffemodels, and where they are here.
    caffe_layers = {  # noqa: RUF012
        name: name
        for name in (
            *("exp_emb_ans", "exp_emb_ans2", "eltwise_emb", "img_embed"),
            *("exp_att_conv1", "exp_att_conv2", "exp_att_feature_embed", "exp_lstm12_embed"),
            *("exp_embed_ba", "exp_lstm1", "exp_lstm2", "exp_prediction"),
        )
    }

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
        decoder_root: bool = True,
        asks: bool = True,
        over: Over = "map",
        dropout_rate: float = 0.3,
        bound: float = BOUND,
        rngs: nnx.Rngs,
    ) -> None:
        self.attended, self.over, self.dropout_rate = attended, over, dropout_rate
        self.decoder_norm, self.decoder_root, self.asks = decoder_norm, decoder_root, asks
        self.exp_emb_ans = WordVectors(answers, embedding, bound=bound, rngs=rngs)
        self.exp_emb_ans2 = xavier_linear(embedding, features, rngs=rngs)
        self.attention = attention
        seen = channels if attended == "raw" or not asks else features
        if attention:
            if asks:
                self.eltwise_emb = xavier_linear(features, features, rngs=rngs)
            else:
                self.img_embed = xavier_linear(channels, features, rngs=rngs)
            self.exp_att_conv1 = xavier_linear(features, hidden, rngs=rngs)
            self.exp_att_conv2 = xavier_linear(hidden, 1, rngs=rngs)
        self.exp_att_feature_embed = xavier_linear(seen, features, rngs=rngs)
        if asks:
            self.exp_lstm12_embed = xavier_linear(features, features, rngs=rngs)
        self.exp_embed_ba = WordVectors(words, embedding, bound=bound, rngs=rngs)
        first, last = decoder_features
        if decoder == "double" and first != features:
            raise UserError(
                f"decoder_features={tuple(decoder_features)} of a double decoder: the first LSTM's "
                f"output is multiplied by f^X of {features} features; give as many"
            )
        inputs = embedding if decoder == "double" else features + embedding
        outputs = first if decoder == "double" else last
        self.exp_lstm1 = uniform_lstm(inputs, outputs, bound=bound, rngs=rngs)
        self.exp_lstm2 = (
            uniform_lstm(first, last, bound=bound, rngs=rngs) if decoder == "double" else None
        )
        self.exp_prediction = xavier_linear(last, words, rngs=rngs)

    def embed_answer(self, answer: Array) -> Float[Array, "b q"]:
        """f^yEmbed of answers' indices [b], or of a distribution over answers [b n]."""
        look = self.exp_emb_ans.mix if answer.ndim == 2 else self.exp_emb_ans
        return self.exp_emb_ans2(look(answer))

    def explain(
        self, encoded: Encoded, answer: Array, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b q"], Float[Array, "b h w"]]:
        """f^X and the map α^pointX (equations 2.1 to 2.8).

        Args:
            encoded: From the answering model.
            answer: Indices [b], or probabilities [b n].
            key: For dropout; without it there is none.
        """
        seen = encoded.features if self.attended == "raw" else encoded.embedded
        said = self.embed_answer(answer).astype(seen.dtype)
        if self.attention:
            embed = self.eltwise_emb if self.asks else self.img_embed
            joint = embed(encoded.joint) * said[:, None, None]  # 2.1, 2.2
            fused = l2_normalise(signed_sqrt(joint), self.over)  # 2.3
            fused = dropout(fused, self.dropout_rate, key)
            scores = self.exp_att_conv2(jax.nn.relu(self.exp_att_conv1(fused)))[..., 0]  # 2.4, 2.5
            points = jax.nn.softmax(scores.astype(jnp.float32), axis=(1, 2))  # 2.6
        else:
            places = seen.shape[1] * seen.shape[2]
            points = jnp.full(seen.shape[:3], 1 / places)
        looked = jnp.einsum("bhw,bhwc->bc", points.astype(seen.dtype), seen)
        cause = self.exp_att_feature_embed(looked) * said  # 2.7, 2.8
        if self.asks:
            cause = cause * self.exp_lstm12_embed(encoded.question.astype(seen.dtype))
        return cause, points

    def start(self, cause: Float[Array, "b q"]) -> Decoder:
        """The decoder before its first word; see `vljax.models.decoding`."""
        lstms = [one for one in (self.exp_lstm1, self.exp_lstm2) if one is not None]
        return Decoder(cause, tuple(lstm.start(len(cause), cause.dtype) for lstm in lstms))

    def step(self, cache: Decoder, token: Int[Array, " b"]) -> tuple[Float[Array, "b v"], Decoder]:
        """One more word read; log p of the next (equations 2.9, 2.10)."""
        word = self.exp_embed_ba(token).astype(cache.cause.dtype)
        if self.exp_lstm2 is None:
            state = self.exp_lstm1.step(jnp.concatenate([cache.cause, word], -1), cache.states[0])
            return self._log_probs(state[0]), cache._replace(states=(state,))
        first = self.exp_lstm1.step(word, cache.states[0])
        fused = self._fused(first[0][:, None], cache.cause)[:, 0]
        second = self.exp_lstm2.step(fused, cache.states[1])
        return self._log_probs(second[0]), cache._replace(states=(first, second))

    def write(
        self,
        cause: Float[Array, "b q"],
        keys: Key[Array, " b"],
        length: int,
        end: int,
        *,
        temperature: float | Float[Array, ""] = 0.0,
        top_p: float | Float[Array, ""] = 1.0,
    ) -> decoding.Decoded:
        """Draw words, each row by its own key; see `vljax.models.decoding.sample`.

        Args:
            cause: f^X, from `explain`.
            keys: One a row.
            length: Most words; static.
            end: The word that ends a justification, and begins it; static.
            temperature: 0 takes the most probable word.
            top_p: Draw from this share.
        """
        return decoding.sample(
            self.step,
            self.start(cause),
            jnp.full(len(cause), end),
            length,
            keys,
            end=end,
            pad=end,
            temperature=temperature,
            top_p=top_p,
        )

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
        words = self.exp_embed_ba(tokens).astype(cause.dtype)
        if self.exp_lstm2 is None:
            causes = jnp.broadcast_to(cause[:, None], (*tokens.shape, cause.shape[-1]))
            h, _ = self.exp_lstm1(jnp.concatenate([causes, words], -1))
        else:
            h, _ = self.exp_lstm1(words)
            h = dropout(h, self.dropout_rate, keys[0])
            h = dropout(self._fused(h, cause), self.dropout_rate, keys[1])
            h, _ = self.exp_lstm2(h)
        return self._log_probs(dropout(h, self.dropout_rate, keys[2]))

    def _fused(self, h: Float[Array, "b t f"], cause: Float[Array, "b f"]) -> Float[Array, "b t f"]:
        joint = h * cause[:, None]
        joint = signed_sqrt(joint) if self.decoder_root else joint
        if self.decoder_norm == "batch":  # a step's norm is over all examples
            return l2_normalise(joint.swapaxes(0, 1), "map").swapaxes(0, 1)
        return l2_normalise(joint, "place")

    def _log_probs(self, h: Float[Array, "*b f"]) -> Float[Array, "*b v"]:
        return jax.nn.log_softmax(self.exp_prediction(h).astype(jnp.float32))


def explanation_loss(
    explainer: Explainer,
    encoded: Encoded,
    batch: Mapping[str, Array],
    key: Key[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of a text's words given the true answer, over words that count (eq. 2.10).

    Args:
        explainer: Which learns.
        encoded: From the answering model.
        batch: `answer` [b], and the text as `read` and `written` [b t], −1 where it has ended.
        key: For dropout; without it there is none.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    cause, _ = explainer.explain(encoded, jnp.maximum(batch["answer"], 0), keys[0])
    log_p = explainer(cause, batch["read"], keys[1])
    written = batch["written"]
    counts = (written >= 0) & (batch["answer"] >= 0)[:, None]
    picked = jnp.take_along_axis(log_p, jnp.maximum(written, 0)[..., None], axis=-1)[..., 0]
    return -(picked * counts).sum() / jnp.maximum(counts.sum(), 1)
