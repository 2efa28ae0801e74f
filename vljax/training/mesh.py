"""One mesh for every run, and sharding by rule.

The mesh has three axes: `data` (batch split, parameters whole), `fsdp` (batch split, parameters
and optimizer split too) and `tensor` (features split). A rule is a pair (regular expression over
parameter names, strategy); the first that matches decides:

- `replicate`: every device holds the parameter whole;
- `fsdp`: the largest axis that divides is split over `fsdp`;
- `column`: output features over `tensor`, and what remains as `fsdp` (Shoeybi et al. 2019);
- `row`: input features over `tensor`, and what remains as `fsdp`.

A parameter with no axis that divides stays whole. XLA inserts the communication.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from vljax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
Rules = Sequence[tuple[str, str]]


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh over all devices of all processes.

    Args:
        config: Sizes of the axes `data`, `fsdp`, `tensor`; one of them may be −1 and takes the
            devices that the others leave.

    Raises:
        UserError: the sizes do not make up the number of devices.
    """
    sizes = {axis: config[axis] for axis in AXES}
    count = jax.device_count()
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or known < 1 or count % known or (not free and known != count):
        raise UserError(
            f"mesh={sizes}: does not fit {count} devices; give sizes that multiply to {count}, one "
            "of them may be -1"
        )
    if free:
        sizes[free[0]] = count // known
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def partition(name: str, shape: Sequence[int], rules: Rules, mesh: Mesh) -> PartitionSpec:
    """How one parameter is split, by the first rule that matches its name.

    Raises:
        UserError: a rule names an unknown strategy.
    """
    strategy = next((s for pattern, s in rules if re.search(pattern, name)), "replicate")
    spec: list[str | None] = [None] * len(shape)
    if strategy == "replicate":
        return PartitionSpec()
    if strategy not in ("fsdp", "column", "row"):
        raise UserError(
            f"sharding={strategy!r} (for {name}): choose 'replicate', 'fsdp', 'column' or 'row'"
        )
    if strategy in ("column", "row") and mesh.shape["tensor"] > 1:
        # Output features are the last axis of every layout here, input features the one before;
        # a vector has output features only.
        axis = len(shape) - (1 if strategy == "column" else 2)
        if axis >= 0 and shape[axis] % mesh.shape["tensor"] == 0:
            spec[axis] = "tensor"
    if mesh.shape["fsdp"] > 1:
        free = [
            i for i, n in enumerate(shape) if spec[i] is None and n % mesh.shape["fsdp"] == 0 and n
        ]
        if free:
            spec[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)


def parameter_shardings(
    parameters: Mapping[str, Any], rules: Rules, mesh: Mesh
) -> dict[str, NamedSharding]:
    """The sharding of each parameter; values need only have a `shape`."""
    return {
        name: NamedSharding(mesh, partition(name, value.shape, rules, mesh))
        for name, value in parameters.items()
    }


def state_shardings(state: Any, parameters: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings of a training state: whatever belongs to a parameter is split as it is.

    An entry belongs to a parameter when its path ends in the parameter's name (the optimizer's
    moments, the moving average); everything else (step counts) is whole on every device.
    """

    def of(path: tuple, leaf: Any) -> NamedSharding:
        last = str(path[-1].key) if path and isinstance(path[-1], DictKey) else ""
        if last in parameters and leaf.ndim == len(parameters[last].spec):
            return parameters[last]
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh, field: str) -> None:
    """Refuse a batch that the devices and accumulation steps cannot share equally.

    Raises:
        UserError: as said.
    """
    shares = mesh.shape["data"] * mesh.shape["fsdp"] * accumulate
    if batch_size < 1 or batch_size % shares:
        raise UserError(
            f"{field}={batch_size}: give a positive multiple of {shares} (data "
            f"{mesh.shape['data']} × fsdp {mesh.shape['fsdp']} × accumulate {accumulate})"
        )


@functools.lru_cache(maxsize=8)  # every step places its batch by them
def process_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " b"]:
    """Which rows of the global batch this process loads, in rising order.

    A mesh follows the wires between devices, so that a process's need not be neighbours in it.
    Processes that differ in the `tensor` axis alone load the same rows.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held]))


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, Array]:
    """The rows of `process_rows` into global arrays of `batch_size` rows."""
    sharding, rows = batch_sharding(mesh), process_rows(mesh, batch_size)

    def placed(value: np.ndarray) -> Array:
        def held(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(batch_size)
            at = int(np.searchsorted(rows, first))
            return value[at : at + last - first]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, held)

    return {name: placed(value) for name, value in batch.items()}


def place(value: np.ndarray, sharding: NamedSharding) -> Array:
    """A host array that every process holds, onto the devices."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def gather(value: Array) -> np.ndarray:
    """A device array onto every host, whole; all processes must call it together."""
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
