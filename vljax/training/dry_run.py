"""`--dry_run`: what a run would take, from shapes alone."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from vljax.models.parameters import named_parameters, with_parameters
from vljax.training.loop import Program, abstract_batch
from vljax.training.mesh import parameter_shardings
from vljax.training.stage import Stage


def dry_run(
    stages: Sequence[Stage],
    programs: Sequence[Program],
    skeleton: Any,
    mesh: Mesh,
    config: ConfigDict,
) -> None:
    """Print parameters, memory a device, FLOPs a step, epochs and shardings of every stage."""
    console = Console(width=None)
    shapes = named_parameters(skeleton)
    console.print(f"{config.about}\nmesh {dict(mesh.shape)}\n")
    for stage, program in zip(stages, programs, strict=True):
        console.print(_summary(stage, program, skeleton, mesh, config))
    console.print(_sharding_table(shapes, config, mesh))


def _summary(
    stage: Stage, program: Program, skeleton: Any, mesh: Mesh, config: ConfigDict
) -> Table:
    state, shapes = program.shapes, named_parameters(skeleton)
    shardings = parameter_shardings(shapes, config.sharding, mesh)
    frozen = {name: shapes[name] for name in shapes if name not in state.parameters}
    batch = abstract_batch(stage, config.seed, config.data.on_corrupt)
    key = jax.eval_shape(lambda: jax.random.key(0))
    # XLA's count for the step as written, before compilation.
    flops = (program.traced.lower().cost_analysis() or {}).get("flops", 0.0)
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * stage.config.accumulate
    saved = _activation_bytes(stage, skeleton, state.parameters, frozen, batch, key, shares)
    examples, batch_size = len(stage.source), stage.config.batch_size
    epochs = stage.config.num_steps * batch_size / examples

    table = Table(title=f"stage {stage.name}", show_header=False, title_justify="left")
    parts = Counter[str]()
    for name in program.trained:
        parts[name.partition(".")[0]] += math.prod(shapes[name].shape)
    for part, count in parts.items():
        table.add_row(f"trained parameters in {part}", f"{count:,}")
    table.add_row("frozen parameters", f"{_count(frozen):,}")
    per_device = {
        "parameters": _bytes(state.parameters, program.shardings.parameters)
        + _bytes(frozen, {n: shardings[n] for n in frozen}),
        "moving average": _bytes(state.average, program.shardings.average),
        "optimizer": _bytes(state.optimizer, program.shardings.optimizer),
        "gradients": _bytes(state.parameters, program.shardings.parameters),
        "activations kept for the backward pass (estimate)": saved,
    }
    for what, size in per_device.items():
        table.add_row(f"{what}, a device", _mebibytes(size))
    table.add_row("sum, a device", _mebibytes(sum(per_device.values())))
    table.add_row("FLOPs a step, all devices", f"{flops:.3g}" if flops else "not known")
    table.add_row("steps × batch", f"{stage.config.num_steps:,} × {batch_size}")
    table.add_row("examples an epoch", f"{examples:,} ({epochs:.3g} epochs in all)")
    return table


def _sharding_table(shapes: dict[str, Any], config: ConfigDict, mesh: Mesh) -> Table:
    """Parameters that share a layer's kind, shape and split make one row."""
    table = Table("example", "shape", "split", "parameters", title="sharding", title_justify="left")
    rows: dict[tuple, list[str]] = {}
    for name, sharding in parameter_shardings(shapes, config.sharding, mesh).items():
        spec = ", ".join(str(axis or "·") for axis in sharding.spec) or "whole"
        rows.setdefault((shapes[name].shape, spec), []).append(name)
    largest = sorted(rows.items(), key=lambda row: -math.prod(row[0][0]) * len(row[1]))
    for (shape, spec), names in largest:
        table.add_row(names[0], " × ".join(map(str, shape)), spec, str(len(names)))
    return table


def _activation_bytes(
    stage: Stage, skeleton: Any, trained: dict, frozen: dict, batch: dict, key: Any, shares: int
) -> int:
    """Bytes that JAX keeps between forward and backward, on the device with 1/shares of the batch.

    These are the residuals of the loss's vector-Jacobian product, without the parameters among
    them. XLA may fuse or recompute some; its temporaries come on top.
    """

    def residuals(trained: dict, frozen: dict, batch: dict, key: Any) -> Any:
        def loss(trained: dict) -> Any:
            model = with_parameters(skeleton, frozen | trained)
            memory = (stage.memory(),) if stage.memory else ()
            return stage.loss(model, batch, key, *memory)

        return jax.vjp(loss, trained, has_aux=True)[1]

    part = {
        name: jax.ShapeDtypeStruct((value.shape[0] // shares, *value.shape[1:]), value.dtype)
        for name, value in batch.items()
    }
    kept = jax.eval_shape(residuals, trained, frozen, part, key)
    counted = Counter((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(kept))
    counted -= Counter((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves((trained, frozen)))
    return sum(
        math.prod(shape) * np.dtype(dtype).itemsize * number
        for (shape, dtype), number in counted.items()
        if not dtype.startswith("key")
    )


def _bytes(values: Any, shardings: Any) -> int:
    """Bytes of a pytree on one device."""

    def on_one(value: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(value.shape)) * value.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(on_one, values, shardings)))


def _count(values: dict) -> int:
    return sum(math.prod(value.shape) for value in values.values())


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
