"""The weights of a run: one safetensors file a finished stage, in published layouts.

`weights/<stage>.safetensors` holds the parts that the stage trained, averaged where it asks for
it; tensors are named by their path in the system's model. `weights/stages.json` lists the finished
stages in the order in which they trained, each with its parts: of two that trained the same part,
the later one's weights count. `generate`, `evaluate` and other runs read them.
"""

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vljax import files, pretrained
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, variables, with_parameters
from vljax.training import mesh as meshes
from vljax.training.optimizer import learning_rate_factors
from vljax.training.stage import Stage


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
    parts = parts_of(trained)
    tensors = {}
    for name in (
        name for name in names if name.partition(".")[0] in parts
    ):  # one after the other: only one parameter at a time is gathered whole
        value = meshes.gather(parameters[name])
        if jax.process_index() == 0:
            tensors[name] = pretrained.to_published(value, names[name])
    if jax.process_index() == 0:
        pretrained.write_tensors(tensors, file(workdir, stage), metadata={"stage": stage})


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts of the model to which parameters belong, sorted."""
    return sorted({name.partition(".")[0] for name in names})


def stages_to_train(stages: Sequence[Stage], skeleton: Any, config: ConfigDict) -> list[Stage]:
    """The stages that are run, in order: all but those whose every part is given.

    A part is given by `config.pretrained`, as long as no stage has trained it further: where a
    decoder is given and a stage trains it together with another part, those after it run as well.

    Raises:
        UserError: a stage's training pattern matches no parameter.
    """
    names = named_parameters(skeleton)
    given = {part for part, path in config.pretrained.items() if path}
    run = []
    for stage in stages:
        trained = set(parts_of(learning_rate_factors(names, stage.train)))
        if not trained <= given:
            run.append(stage)
            given -= trained
    return run


def list_stages(workdir: Path, stages: Sequence[Stage], trained: Sequence[Sequence[str]]) -> None:
    """Write `weights/stages.json`: the stages that have ended; process 0 writes.

    Args:
        workdir: The run.
        stages: Its stages in order; those without a file of weights have not ended.
        trained: Names of the parameters that each of them trains.
    """
    ended = [
        {"name": stage.name, "parts": parts_of(names)}
        for stage, names in zip(stages, trained, strict=True)
        if file(workdir, stage.name).is_file()
    ]
    if jax.process_index() == 0:
        files.write(workdir / "weights" / "stages.json", json.dumps(ended, indent=1) + "\n")


def _ended_stages(workdir: Path, config: ConfigDict) -> list[str]:
    """Names of the stages whose weights a run has left, in the order in which they trained.

    Raises:
        UserError: `stages.json` is damaged, or a file that it names is gone.
    """
    listed = workdir / "weights" / "stages.json"
    if not listed.is_file():
        names = [name for name in sorted(config.stages) if file(workdir, name).is_file()]
        if len(names) > 1:
            print(
                f"{listed} is missing, as in runs of older versions: weights are loaded in the "
                f"order {', '.join(names)}, of a part that several hold the last",
                file=sys.stderr,
            )
        return names
    try:
        names = [str(stage["name"]) for stage in json.loads(listed.read_text())]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{listed} is damaged ({error}): start the training again with the same command, it "
            "writes the file anew"
        ) from error
    for name in names:
        if not file(workdir, name).is_file():
            raise UserError(
                f"{file(workdir, name)} is missing, though {listed} names it: start the training "
                "again with the same command, it writes the file anew"
            )
    return names


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
    draw = jax.jit(lambda: named_parameters(make_model()), out_shardings=shardings)
    # It runs once, and a CPU compiles it three times as fast without LLVM's optimizations.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"} if on_cpu else {}
    parameters = draw.lower().compile(compiler_options=options)()
    for name, value in pretrained_parameters(skeleton, config).items():
        parameters[name] = meshes.place(value, shardings[name])
    return parameters


def pretrained_parameters(
    skeleton: Any, config: ConfigDict, known: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """The parameters that `config.pretrained` gives, by name: {part of the model: checkpoint}.

    Args:
        skeleton: The model's structure.
        config: `pretrained`.
        known: Parts whose weights are there already: what is given for them is not read.

    Raises:
        UserError: no such part, or its weights do not fit.
    """
    parameters: dict[str, np.ndarray] = {}
    for part, path in config.pretrained.items():
        if not path or part in known:
            continue
        network = getattr(skeleton, part, None)
        if network is None:
            raise UserError(
                f"--config.pretrained.{part}={path}: this config's model has no {part}; leave the "
                "field empty"
            )
        tensors = pretrained.read_tensors(path)
        own = {
            n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")
        }
        # A stage's file, or an example, names its tensors by their path in a whole model, which may
        # be another system's.
        ours = all(hasattr(skeleton, name.partition(".")[0]) for name in tensors)
        if own and (ours or own.keys() == variables(network).keys()):
            tensors = own
        loaded = pretrained.assign(network, pretrained.our_names(network, tensors), origin=path)
        parameters |= {f"{part}.{name}": v for name, v in named_parameters(loaded).items()}
    return parameters


def load_model(skeleton: Any, config: ConfigDict, workdir: Path | None) -> Any:
    """The model with the weights of a run's finished stages, or published ones.

    The stages follow each other as they trained (`weights/stages.json`); in a run without that
    list, one of an older version, by name, which is said on the console. They hold their parts
    whole: what a run began with need not be there any more.

    Args:
        skeleton: The model's structure (from `jax.eval_shape`).
        config: `pretrained` weights, and the `param_dtype` that they are held in. Layers compute
            in the dtype of what enters them whatever it is.
        workdir: The run, or None for published weights alone.

    Raises:
        UserError: weights of a part are nowhere, or damaged, or of another network than the
            config's.
    """
    trained: dict[str, Any] = {}
    ended = [file(workdir, stage) for stage in _ended_stages(workdir, config)] if workdir else []
    for path in ended:
        tensors = pretrained.read_tensors(path)
        parts = {part: getattr(skeleton, part, None) for part in parts_of(tensors)}
        trained |= named_parameters(pretrained.assign(parts, tensors, origin=path))
    published = pretrained_parameters(skeleton, config, known=parts_of(trained))
    model = with_parameters(skeleton, published | trained)
    absent = parts_of(
        name
        for name, value in named_parameters(model).items()
        if isinstance(value, jax.ShapeDtypeStruct)
    )
    if absent:
        where = f" in {workdir / 'weights'}" if workdir else ""
        fields = [
            f"--config.pretrained.{part}=FILE" for part in absent if part in config.pretrained
        ]
        given = f", or give published weights with {' '.join(fields)}" if fields else ""
        raise UserError(
            f"no weights of {', '.join(absent)}{where}: let `python -m vljax.train` finish "
            f"its stage{given}"
        )
    dtype = jnp.dtype(config.get("param_dtype", "float32"))

    def held(value: np.ndarray) -> jax.Array:
        floating = jnp.issubdtype(value.dtype, jnp.floating)
        # Cast on the host: the device never holds more than is asked for.
        return jnp.asarray(np.asarray(value).astype(dtype) if floating else value)

    return jax.tree.map(held, model)
