"""A model's parameters by name.

A model is a pytree; the path to a parameter, joined with dots, is its name, as in the published
checkpoint (`input_blocks.1.0.in_layers.2.weight`). Training, sharding, checkpoints and weight
import all speak of parameters by these names, as flat dictionaries.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

Model = TypeVar("Model")


def variables(model: Any) -> dict[str, nnx.Variable]:
    """The model's `nnx.Variable`s by name, with their metadata (the published layout)."""
    flat, _ = jax.tree_util.tree_flatten_with_path(
        model, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def named_parameters(model: Any) -> dict[str, Any]:
    """The model's arrays by name (or their shapes, for a model made under `jax.eval_shape`)."""
    return {name: variable.get_value() for name, variable in variables(model).items()}


def with_parameters(model: Model, parameters: Mapping[str, Any]) -> Model:
    """The same model holding the given arrays.

    Args:
        model: Gives the structure; its own values are not used where others are given.
        parameters: Arrays by name; names not given keep the model's values.

    Raises:
        KeyError: for names that the model does not have.
    """
    if unknown := set(parameters) - set(names := variables(model)):
        raise KeyError(f"the model has no parameters {sorted(unknown)[:5]}")
    _, structure = jax.tree.flatten(model)
    values = {name: v.get_value() for name, v in names.items()} | dict(parameters)
    return jax.tree.unflatten(structure, [values[name] for name in names])


def copied(model: Model) -> Model:
    """The same model in new modules and variables: what is set there leaves this one as it is.

    Args:
        model: Its arrays are shared, not copied; it may come from `jax.eval_shape`.
    """
    return jax.tree.map(lambda leaf: leaf, model)
