"""PJ-X's answering model, and stacked attention."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vljax.errors import UserError
from vljax.models.answerers.answer import Answer, logits, split
from vljax.models.fusion import Fusion, xavier_linear
from vljax.models.fusion import fusion as make_fusion
from vljax.models.layers import dropout
from vljax.models.question import Question, QuestionSizes
from vljax.ops.fusion import Over


class Glance(nnx.Module):
    """One look at the picture: fuse, score every place, and take the mean by those weights.

    Args:
        pool: Joins features and vector at every place.
        over: What of the fused map has norm 1.
        hidden: Features between the two linear layers of the score.
        glimpses: Maps.
        rate: Of dropout on the fused map.
        rngs: Where the initial weights come from.
    """

    def __init__(
        self, pool: Fusion, *, over: Over, hidden: int, glimpses: int, rate: float, rngs: nnx.Rngs
    ) -> None:
        self.over, self.rate = over, rate
        self.fusion = pool
        self.att_conv1 = xavier_linear(pool.features, hidden, rngs=rngs)
        self.att_conv2 = xavier_linear(hidden, glimpses, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        vector: Float[Array, "b q"],
        key: Key[Array, ""] | None,
    ) -> tuple[Float[Array, "b h w g"], Float[Array, "b n"]]:
        """The maps, float32, and what each saw, side by side."""
        inside, outside = (None, None) if key is None else jax.random.split(key)
        fused = self.fusion(features, vector[:, None, None], self.over, inside)
        fused = dropout(fused, self.rate, outside)
        scores = self.att_conv2(jax.nn.relu(self.att_conv1(fused))).astype(jnp.float32)
        maps = jax.nn.softmax(scores, axis=(1, 2))
        seen = jnp.einsum("bhwg,bhwc->bgc", maps.astype(features.dtype), features)
        return maps, seen.reshape(seen.shape[0], -1)


class Attention(nnx.Module):
    """PJ-X's answering model: attend by the fused map, fuse what was seen, classify.

    What is seen are the features themselves, not their projection. PJ-X's explainer starts from the
    raw joint map, `rounds[0].fusion.join(features, question.vector[:, None, None])`.

    Several rounds are stacked attention: what a round saw is added to the question for the next
    (Yang et al. 2016, equation 18). SAN classifies that sum; here the last round's too is fused
    with what it saw.

    Args:
        channels: Of the picture's features.
        sizes: Of the question.
        answers: Number of answers.
        fusion: A key of `FUSIONS`.
        features: Of the fused map and vector, 2,048 as published.
        hidden: Of the score, 512 as published.
        over: What of the fused map has norm 1, the `"map"` as published or each `"place"`.
        rounds: Looks one after the other; 0 sees the mean of all places (no attention).
        glimpses: Maps a look.
        rate: Of dropout after a fusion.
        fields: Of the fusion.
        rngs: Where the initial weights come from.

    Raises:
        UserError: an unknown fusion or `over`, fewer than no rounds, or no glimpse.
    """

    # Layers of the published caffemodel, and where they are here.
    caffe_layers = {  # noqa: RUF012
        "i_emb": "rounds.0.fusion.x",
        "att_conv1": "rounds.0.att_conv1",
        "att_conv2": "rounds.0.att_conv2",
        "i_emb2": "fusion.x",
        "prediction": "prediction",
    }

    def __init__(
        self,
        channels: int,
        sizes: QuestionSizes,
        answers: int,
        *,
        fusion: str = "product",
        features: int = 2048,
        hidden: int = 512,
        over: Over = "map",
        rounds: int = 1,
        glimpses: int = 1,
        rate: float = 0.3,
        fields: dict[str, Any] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if over not in ("map", "place"):
            raise UserError(f"over={over!r}: choose 'map' or 'place'")
        if rounds < 0 or glimpses < 1:
            raise UserError(
                f"rounds={rounds}, glimpses={glimpses}: choose 0 rounds or more, 1 glimpse or more"
            )
        self.rate = rate

        def pool(seen: int) -> Fusion:
            return make_fusion(fusion, seen, sizes.vector, features, rngs=rngs, **(fields or {}))

        self.rounds = nnx.List[Any](
            [
                Glance(
                    pool(channels),
                    over=over,
                    hidden=hidden,
                    glimpses=glimpses,
                    rate=rate,
                    rngs=rngs,
                )
                for _ in range(rounds)
            ]
        )
        seen = glimpses * channels if rounds else channels
        self.refine = nnx.List[Any](
            [xavier_linear(seen, sizes.vector, rngs=rngs) for _ in range(rounds - 1)]
        )
        self.fusion = pool(seen)
        self.prediction = xavier_linear(self.fusion.features, answers, rngs=rngs)

    def __call__(
        self,
        features: Float[Array, "b h w c"],
        question: Question,
        *,
        key: Key[Array, ""] | None = None,
    ) -> Answer:
        keys = split(key, len(self.rounds) + 2)
        vector = question.vector.astype(features.dtype)
        maps, seen = None, features.mean((1, 2))
        for i, glance in enumerate(self.rounds):
            if i:
                vector = vector + self.refine[i - 1](seen)
            maps, seen = glance(features, vector, keys[i])
        fused = dropout(self.fusion(seen, vector, key=keys[-2]), self.rate, keys[-1])
        return Answer(logits(self.prediction(fused)), None if maps is None else maps.mean(-1))
