"""PJ-X's training stages: to answer, then to explain (section 2.5.1); ACT-X learns both at once.

With a stage `certify` it then learns from what can be certified of its explanations, see
`vljax.systems.pjx.certificate`.

A trunk of our own first learns to recognise what pictures show, and then stays as it is, as those
that are published do: answers alone teach it little of shapes, and unlearn what it knew of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from vljax.data.source import Transform
from vljax.data.text.published import explanation_ids
from vljax.errors import UserError
from vljax.models.explainer import explanation_loss
from vljax.systems.pjx.certificate import certified_loss
from vljax.systems.pjx.method import explained_pictures, open_examples, read_example
from vljax.systems.pjx.model import PJX, answer, features_of
from vljax.systems.pjx.words import Words, open_words
from vljax.training.recognition import recognise
from vljax.training.stage import Stage

# The explainer that a stage teaches, and the texts that it learns to write.
_EXPLAINERS = {
    "joint": ("explainer", "justifications"),
    "explain": ("explainer", "justifications"),
    "certify": ("explainer", "justifications"),
    "explain_without_attention": ("without_attention", "justifications"),
    "describe": ("on_descriptions", "captions"),
}


def stages(config: ConfigDict) -> list[Stage]:
    """`recognise`, `answer` and `explain`, or `joint`; `certify`; then table 2.2's ablations.

    Those that the config has.

    Raises:
        UserError: the data is not there, a field cannot be, or a stage has no such name.
    """
    names = ("recognise", "answer", *_EXPLAINERS)
    if unknown := {*config.stages} - {*names}:
        raise UserError(f"stages.{min(unknown)}: choose one of {', '.join(map(repr, names))}")
    if config.own_answer not in ("index", "distribution"):
        raise UserError(f"own_answer={config.own_answer!r}: choose 'index' or 'distribution'")
    words = open_words(config)
    answering = [(r"(question|writer|answerer)\.", 1.0)]
    if config.model.trunk.kind == "convolutions" and "recognise" not in config.stages:
        answering.append((r"trunk\.", 1.0))
    if config.task == "activity":
        answering[0] = (r"answerer\.", 1.0)
    found = [recognise(config)] if "recognise" in config.stages else []
    for name in names[1:]:
        if name not in config.stages:
            continue
        part, field = _EXPLAINERS.get(name, (None, None))
        if name in ("explain_without_attention", "describe") and not config.ablations:
            continue
        more = () if field is None else (field, "index") if name == "certify" else (field,)
        train = [] if part is None else [(rf"{part}\.", 1.0)]
        if name in ("answer", "joint"):
            train += answering
        elif name == "explain" and config.finetune:
            train += [(pattern, config.finetune) for pattern, _ in answering]
        found.append(
            Stage(
                name=name,
                loss=(
                    certified_loss(config, words)
                    if name == "certify"
                    else _loss(part, name == "joint")
                ),
                train=train,
                source=open_examples(config, more, data="" if part else config.data.answers_from),
                transform=_transform(config, words, field),
                config=config.stages[name],
                pictures=explained_pictures(config) if part == "explainer" else None,
            )
        )
    return found


def _transform(config: ConfigDict, words: Words, field: str | None) -> Transform:
    """An example's arrays: picture, question, an answer of the people's, one text to write.

    Examples without an answer of the vocabulary learn nothing of it: their answer is −1.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        arrays: dict[str, Any] = dict(read_example(config, words, example))
        people = example.get("answers", [example["answer"]])
        known = [one for one in people if one and one in words.answers]
        chosen = words.answers.id(known[rng.integers(len(known))]) if known else -1
        arrays["answer"] = np.int32(chosen)
        if "index" in example:
            arrays["scene"] = np.int32(example["index"])
        if field:
            told = example[field]
            text = told[rng.integers(len(told))] if told else ""
            read, written = explanation_ids(words.justifications, text, config.data.max_words)
            arrays |= {"read": read, "written": written}
        return arrays

    return transform


def _loss(part: str | None, joint: bool) -> Callable:
    """The loss of a stage: of answers, of the words of one explainer, or of both (ACT-X)."""

    def loss(model: PJX, batch: Mapping[str, Array], key: Key[Array, ""]) -> Any:
        answer_key, explain_key = jax.random.split(key)
        said, encoded = answer(model, features_of(model, batch), batch, answer_key)
        total, metrics = jnp.zeros(()), {}
        if part is None or joint:
            total, metrics["accuracy"] = answer_loss(said.logits, batch["answer"])
            metrics["answer_loss"] = total
            if model.writer is not None and model.question is not None:
                steps = batch["program"]
                question = model.question(batch["question"], batch["question_mask"])
                log_p = jax.nn.log_softmax(model.writer(question, steps))
                picked = jnp.take_along_axis(log_p, steps[..., None], axis=-1)
                metrics["program_loss"] = -picked.mean()
                total += metrics["program_loss"]
        if part is not None:
            explainer = getattr(model, part)
            metrics["word_loss"] = explanation_loss(explainer, encoded, batch, explain_key)
            total += metrics["word_loss"]
        return total, metrics

    return loss


def answer_loss(
    logits: Float[Array, "b n"], answers: Int[Array, " b"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the answers, and how many are right; those of −1 do not count."""
    known = answers >= 0
    log_p = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.maximum(answers, 0)[:, None], axis=-1
    )[:, 0]
    count = jnp.maximum(known.sum(), 1)
    right = known & (logits.argmax(-1) == answers)
    return -(log_p * known).sum() / count, right.sum() / count
