"""A captioner's training stages: what pictures show, then captions, with attention and without."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from vljax.data.source import Transform
from vljax.data.text.vocabulary import Vocabulary
from vljax.errors import UserError
from vljax.marks import END, PAD, START
from vljax.models.captioner import doubly_stochastic_penalty, word_loss
from vljax.systems.captioner.method import captioned_pictures, open_examples, read_example
from vljax.systems.captioner.model import Captioners, features_of, part_of
from vljax.systems.captioner.recipe import STAGES
from vljax.systems.captioner.words import open_words
from vljax.training.recognition import recognise
from vljax.training.stage import Stage


def stages(config: ConfigDict) -> list[Stage]:
    """`recognise`, `caption` and `caption_without_attention`, of these what there is.

    The trunk stays as it is where it is published or has learnt to recognise; else captions teach
    it, those with attention first.

    Raises:
        UserError: the data is not there, a field cannot be, or a stage has no such name.
    """
    names = ("recognise", *STAGES.values())
    if unknown := {*config.stages} - {*names}:
        raise UserError(f"stages.{min(unknown)}: choose one of {', '.join(map(repr, names))}")
    if not config.penalty >= 0:
        raise UserError(f"penalty={config.penalty}: give 0 or more")
    if config.data.max_words < 1:
        raise UserError(f"data.max_words={config.data.max_words}: give 1 or more")
    learnt = config.model.trunk.kind != "convolutions" or "recognise" in config.stages
    found = [recognise(config)] if "recognise" in config.stages else []
    words = open_words(config)
    for attention, name in STAGES.items():
        if name not in config.stages:
            continue
        train = [(rf"{attention}\.", 1.0)]
        if not learnt:
            train.append((r"trunk\.", 1.0))
            learnt = True
        found.append(
            Stage(
                name=name,
                loss=_loss(attention, config.penalty),
                train=train,
                source=open_examples(config, ("captions",)),
                transform=caption_transform(config, words),
                config=config.stages[name],
                pictures=captioned_pictures(config, attention),
            )
        )
    return found


def caption_transform(config: ConfigDict, words: Vocabulary) -> Transform:
    """An example's arrays: picture or features, and one of its captions.

    | field | value |
    |---|---|
    | `image` or `features` | uint8 [s s 3]; float32 [h w c] |
    | `read` | int32 [t]: `START` and the words |
    | `written` | int32 [t]: the words and `END`, then `PAD` |

    t is `data.max_words` + 1; of longer captions the end is cut off.
    """
    room = config.data.max_words + 1

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        told = example["captions"]
        ids = [*words.encode(told[rng.integers(len(told))]), END][:room]
        read, written = np.full((2, room), PAD, np.int32)
        written[: len(ids)] = ids
        read[0], read[1 : len(ids)] = START, ids[:-1]
        return {**read_example(config, example), "read": read, "written": written}

    return transform


def _loss(attention: str, penalty: float) -> Callable:
    """The loss of a stage: −log p of a caption and λ times the penalty (equation 14)."""

    def loss(model: Captioners, batch: Mapping[str, Array], key: Key[Array, ""]) -> Any:
        told = part_of(model, attention)(features_of(model, batch), batch["read"], key)
        counts = batch["written"] != PAD
        total = word_loss(told.log_probs, batch["written"], counts)
        metrics = {"word_loss": total / jnp.maximum(counts.sum(1).mean(), 1)}
        if told.attention is not None:
            metrics["penalty"] = doubly_stochastic_penalty(told.attention, counts)
            total += penalty * metrics["penalty"]
        return total, metrics

    return loss
