"""The weights of a run: one safetensors file a finished stage, in published layouts.

`weights/<stage>.safetensors` holds the parts that the stage trained, averaged where it asks for
it; tensors are named by their path in the system's model. Later stages, `generate`, `evaluate` and
other runs read it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vljax import pretrained
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.training import mesh as meshes


def file(workdir: Path, stage: str) -> Path:
    """Where a stage leaves its weights."""
    return workdir / "weights" / f"{stage}.safetensors"


def save(
    workdir: Path, stage: str, skeleton: Any, parameters: dict, trained: Sequence[str]
) -> None:
    """Write the parts that a stage trained; all processes call it, process 0 writes.

    Parts are written whole: a norm's statistics, which no stage trains, belong to its weights.
    """
    names = variables(skeleton)
    parts = {name.partition(".")[0] for name in trained}
    tensors = {}
    for name in (
        name for name in names if name.partition(".")[0] in parts
    ):  # one after the other: only one parameter at a time is gathered whole
        value = meshes.gather(parameters[name])
        if jax.process_index() == 0:
            tensors[name] = pretrained.to_published(value, names[name])
    if jax.process_index() == 0:
        pretrained.write_tensors(tensors, file(workdir, stage), metadata={"stage": stage})


def initial(make_model: Any, skeleton: Any, config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
    """All parameters at the start of training, made on the devices that will hold them.

    Args:
        make_model: `make_model() -> model`, pure.
        skeleton: Its structure (from `jax.eval_shape`).
        config: `sharding`, and `pretrained` weights that replace the random ones.
        mesh: The devices.

    Raises:
        UserError: pretrained weights do not fit.
    """
    shardings = meshes.parameter_shardings(named_parameters(skeleton), config.sharding, mesh)
    parameters = jax.jit(lambda: named_parameters(make_model()), out_shardings=shardings)()
    for name, value in pretrained_parameters(skeleton, config).items():
        parameters[name] = meshes.place(value, shardings[name])
    return parameters


def pretrained_parameters(skeleton: Any, config: ConfigDict) -> dict[str, np.ndarray]:
    """The parameters that `config.pretrained` gives, by name: {part of the model: checkpoint}.

    Raises:
        UserError: no such part, or its weights do not fit.
    """
    parameters: dict[str, np.ndarray] = {}
    for part, path in config.pretrained.items():
        if not path:
            continue
        tensors = pretrained.read_tensors(path)
        if all(name.startswith(f"{part}.") for name in tensors):
            # A file of ours names its tensors by their path in the whole model.
            tensors = {name.removeprefix(f"{part}."): t for name, t in tensors.items()}
        network = getattr(skeleton, part)
        loaded = pretrained.assign(network, pretrained.our_names(network, tensors), origin=path)
        parameters |= {f"{part}.{name}": v for name, v in named_parameters(loaded).items()}
    return parameters


def load_model(
    skeleton: Any, config: ConfigDict, workdir: Path | None, stages: Sequence[str]
) -> Any:
    """The model with the weights of a run's finished stages, or published ones.

    Args:
        skeleton: The model's structure (from `jax.eval_shape`).
        config: `pretrained` weights.
        workdir: The run, or None for published weights alone.
        stages: The system's stages in order.

    Raises:
        UserError: weights of a part are nowhere.
    """
    model = with_parameters(skeleton, pretrained_parameters(skeleton, config))
    layouts = variables(skeleton)
    for stage in stages:
        if workdir and (path := file(workdir, stage)).is_file():
            model = with_parameters(
                model,
                {
                    name: pretrained.from_published(tensor, layouts[name])
                    for name, tensor in pretrained.read_tensors(path).items()
                },
            )
    absent = {
        name.partition(".")[0]
        for name, value in named_parameters(model).items()
        if isinstance(value, jax.ShapeDtypeStruct)
    }
    if absent:
        where = f" in {workdir / 'weights'}" if workdir else ""
        fields = [
            f"--config.pretrained.{part}=FILE" for part in sorted(absent & {*config.pretrained})
        ]
        given = f", or give published weights with {' '.join(fields)}" if fields else ""
        raise UserError(
            f"no weights of {', '.join(sorted(absent))}{where}: let `python -m vljax.train` finish "
            f"its stage{given}"
        )
    return jax.tree.map(jax.numpy.asarray, model)
