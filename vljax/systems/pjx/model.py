"""PJ-X's parts: a trunk, the question's encoder, the answering model and the explainer."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.errors import UserError
from vljax.models.answerers import Answer, Attention, ModuleNetwork, make_answerer
from vljax.models.explainer import Encoded, Explainer
from vljax.models.fusion import Product
from vljax.models.question import ProgramWriter, Question, QuestionEncoder, QuestionSizes
from vljax.models.trunk import Convolutions, Recogniser, make_trunk
from vljax.ops.fusion import l2_normalise
from vljax.ops.pixels import to_unit
from vljax.systems.pjx.recipe import TASKS
from vljax.systems.pjx.words import PROGRAM_LENGTH, STEP_TABLE, open_words


class PJX(nnx.Module):
    """The model.

    A part that a run does without is None: `trunk` where features are read, `recogniser` where the
    trunk is published, `question` where nothing is asked, `writer` where no programs are written,
    `explainer` where a run is for answers alone. `without_attention` and `on_descriptions` are the
    explainers of table 2.2's ablations.
    """

    def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs) -> None:
        if config.task not in TASKS:
            raise UserError(f"task={config.task!r}: choose {' or '.join(map(repr, TASKS))}")
        fields, words = config.model, open_words(config)
        self.trunk, channels = make_trunk(fields.trunk, config.pretrained.trunk, rngs=rngs)
        labels = len(open_benchmark(config.data).labels)
        self.recogniser = (
            Recogniser(channels, labels, rngs=rngs) if "recognise" in config.stages else None
        )
        self.vector, self.dtype = fields.explainer.features, fields.dtype
        asks = config.task == "question"
        self.question = (
            QuestionEncoder(len(words.questions), **fields.question, dtype=fields.dtype, rngs=rngs)
            if asks
            else None
        )
        sizes = self.question.sizes if self.question else QuestionSizes(self.vector, 1, 1)
        kind = fields.answerer.kind
        own = dict(fields.answerer.get(kind, {}))
        if kind == "modules":
            own |= {"ops": len(STEP_TABLE.ops), "arguments": len(STEP_TABLE.arguments)}
        writes = kind == "modules" and fields.answerer.programs == "written"
        self.writer = (
            ProgramWriter(len(STEP_TABLE.steps), PROGRAM_LENGTH, sizes, rngs=rngs)
            if writes
            else None
        )
        self.answerer = make_answerer(kind, channels, sizes, len(words.answers), rngs=rngs, **own)
        explained, ablated = is_explained(config), is_explained(config) and config.ablations
        joins = asks or own.get("fusion") != "picture"
        if explained and not (
            kind == "attention"
            and own["rounds"] > 0
            and (not joins or own["fusion"] == "product")
            and (not joins or own["features"] == sizes.vector == self.vector)
        ):
            raise UserError(
                f"model.answerer.kind={kind!r}: the explainer takes on what PJ-X's own answering "
                "model fused: choose 'attention' of 1 round or more with fusion 'product' (or "
                "'picture' where nothing is asked), and as many features in answerer, explainer "
                "and question (hidden × layers); or leave the explainer out as "
                "configs/vqa_vqav2.py does"
            )
        explainer = functools.partial(
            Explainer,
            answers=len(words.answers),
            words=len(words.justifications),
            channels=channels,
            asks=joins,
            rngs=rngs,
            **fields.explainer,
        )
        described = ablated and open_benchmark(config.data).captioned
        self.explainer = explainer() if explained else None
        self.without_attention = explainer(attention=False) if ablated else None
        self.on_descriptions = explainer() if described else None


def make_model(config: ConfigDict) -> PJX:
    """The model at its random start."""
    return PJX(config, rngs=nnx.Rngs(config.seed))


def is_explained(config: ConfigDict) -> bool:
    """Whether the run has an explainer, or is for answers alone."""
    return not {"explain", "joint"}.isdisjoint(config.stages)


def features_of(model: PJX, batch: Mapping[str, Array]) -> Float[Array, "b h w c"]:
    """A batch's features, read or the trunk's; of published ones the map has norm 1."""
    if "features" in batch:
        features = batch["features"].astype(model.dtype)
    else:
        features = model.trunk(to_unit(batch["image"]).astype(model.dtype))
    return features if isinstance(model.trunk, Convolutions) else l2_normalise(features, "map")


def answer(
    model: PJX,
    features: Float[Array, "b h w c"],
    batch: Mapping[str, Array],
    key: Key[Array, ""] | None = None,
) -> tuple[Answer, Encoded]:
    """The answers to a batch's questions, and what the explainer takes on from there.

    Args:
        model: The model.
        features: From `features_of`.
        batch: `question` and `question_mask` where something is asked; `program` where a module
            network answers by the true one instead of one that the model writes.
        key: For dropout; without it there is none.
    """
    keys = (None, None) if key is None else jax.random.split(key)
    if model.question is None:
        asked = _unasked(features, model.vector)
    else:
        asked = model.question(batch["question"], batch["question_mask"], key=keys[0])
        if isinstance(model.answerer, ModuleNetwork):
            steps = batch.get("program")
            if steps is None:
                assert model.writer is not None
                steps = model.writer.write(asked)
            asked = asked._replace(program=STEP_TABLE.chain(steps))
    said = model.answerer(features, asked, key=keys[1])
    rounds = model.answerer.rounds if isinstance(model.answerer, Attention) else ()
    fusion = next((glance.fusion for glance in rounds), None)
    if not isinstance(fusion, Product):
        return said, Encoded(features, features, features, asked.vector)
    embedded = fusion.x(features)
    joint = embedded * asked.vector[:, None, None].astype(embedded.dtype)
    return said, Encoded(features, embedded, joint, asked.vector)


def _unasked(features: Float[Array, "b h w c"], vector: int) -> Question:
    """A question that leaves the picture as it is: a vector of ones (section 2.4)."""
    rows, dtype = len(features), features.dtype
    nothing = jnp.zeros((rows, 1, 1), dtype)
    return Question(jnp.ones((rows, vector), dtype), nothing, nothing, jnp.zeros((rows, 1), bool))
