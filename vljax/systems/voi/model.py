"""The model of VOI, and the texts it is made for."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from vljax.data.benchmarks import open_benchmark
from vljax.data.text import Text
from vljax.models.insertion_decoder import InsertionDecoder
from vljax.models.parameters import named_parameters, with_parameters
from vljax.models.permutation_network import PermutationNetwork
from vljax.systems.voi.recipe import order_of


class VOI(nnx.Module):
    """The model: `decoder`, and for the order `"voi"` `permutation` (otherwise None)."""

    def __init__(self, config: ConfigDict, source: Text, *, rngs: nnx.Rngs) -> None:
        fields = config.model.to_dict()
        own = fields.pop("permutation")
        sizes = (source.vocabulary.size, source.feature_size, fields.pop("layers"))
        rate = fields.pop("dropout_rate")
        self.decoder = InsertionDecoder(*sizes, dropout_rate=rate, rngs=rngs, **fields)
        uses = [order_of(stage) for stage in config.stages.values()]
        self.permutation = (
            PermutationNetwork(*sizes, rngs=rngs, **(fields | own)) if "voi" in uses else None
        )


@functools.lru_cache(maxsize=8)
def _open(data: str, held_out: bool) -> Text:
    return open_benchmark(ConfigDict(json.loads(data))).text(held_out=held_out)


def texts(config: ConfigDict, *, held_out: bool = False) -> Text:
    """The training examples, or those to evaluate on; opened once."""
    return _open(json.dumps(config.data.to_dict(), sort_keys=True), held_out)


def make_model(config: ConfigDict) -> VOI:
    """The model at its random start; what a stage shares starts equal in both networks.

    Raises:
        UserError: the data, whose vocabulary it needs, is not there, or a field cannot be.
    """
    model = VOI(config, texts(config), rngs=nnx.Rngs(config.seed))
    if model.permutation is None or not any(s.shared for s in config.stages.values()):
        return model
    names = named_parameters(model)
    return with_parameters(model, {name: names[other] for name, other in shared_names(names)})


def shared_names(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The parameters of φ that θ has too, with θ's name for them."""
    for name in names:
        if name.startswith("permutation.source."):
            yield name, name.replace("permutation.", "decoder.", 1)


def tied(model: VOI) -> VOI:
    """The model as if both networks had one table of words and one source encoder.

    Both copies get the sum of both gradients: equal at the start, they stay equal.
    """
    names = named_parameters(model)
    values = {}
    for name, other in shared_names(names):
        own = names[name]
        values[name] = values[other] = names[other] + (own - jax.lax.stop_gradient(own))
    return with_parameters(model, values)
