"""The stage in which a trunk of our own learns what pictures show, to begin with.

It stands for the classification by which published trunks were trained before they serve here; the
trunk then stays as it is, as those do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.pictures.images import stretched
from vljax.errors import UserError
from vljax.ops.pixels import to_unit
from vljax.training.stage import Stage


def recognise(config: ConfigDict) -> Stage:
    """The stage `recognise` of a model with the parts `trunk` and `recogniser`, and a `dtype`.

    Raises:
        UserError: the trunk is published, or the data has no classes.
    """
    benchmark = open_benchmark(config.data)
    if config.model.trunk.kind != "convolutions" or not benchmark.labels:
        raise UserError(
            f"stages.recognise: model.trunk.kind={config.model.trunk.kind!r} on "
            f"data.name={config.data.name!r} has nothing to learn there; leave the stage out"
        )

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = stretched(example["image"], config.data.image_size)
        return {"image": image, "shows": example["shows"]}

    def loss(model: Any, batch: Mapping[str, Array], key: Key[Array, ""]) -> Any:
        logits = model.recogniser(model.trunk(to_unit(batch["image"]).astype(model.dtype)))
        loss = optax.sigmoid_binary_cross_entropy(logits, batch["shows"]).mean()
        return loss, {"label_accuracy": ((logits > 0) == batch["shows"]).mean()}

    return Stage(
        name="recognise",
        loss=loss,
        train=[(r"(trunk|recogniser)\.", 1.0)],
        source=benchmark.pictures(("image", "shows")),
        transform=transform,
        config=config.stages.recognise,
    )
