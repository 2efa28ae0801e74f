"""Sharding by rule, and runs that do not depend on how many devices and processes share them."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from ml_collections import ConfigDict

from vljax.errors import UserError
from vljax.training import mesh as mesh_module
from vljax.training.mesh import check_batch_size, make_mesh, partition, process_rows

MESH = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
CONV = (3, 3, 64, 128)


@pytest.mark.parametrize(
    ("strategy", "shape", "spec"),
    [
        ("replicate", CONV, ()),
        ("fsdp", CONV, (None, None, None, "fsdp")),
        ("column", CONV, (None, None, "fsdp", "tensor")),
        ("row", CONV, (None, None, "tensor", "fsdp")),
        ("fsdp", (6,), (None,)),
        ("column", (64,), ("tensor",)),
        ("row", (64,), ("fsdp",)),
        ("column", (3, 3), (None, None)),
        ("fsdp", (), ()),
    ],
)
def test_strategies(strategy, shape, spec):
    assert partition("a.weight", shape, [("weight", strategy)], MESH) == PartitionSpec(*spec)


def test_the_first_rule_that_matches_decides():
    rules = [("qkv", "replicate"), (".*", "fsdp")]
    assert partition("b.qkv.weight", CONV, rules, MESH) == PartitionSpec()
    assert partition("b.norm.weight", (8,), rules, MESH) == PartitionSpec("fsdp")
    with pytest.raises(UserError, match="'diagonal'"):
        partition("b", CONV, [(".*", "diagonal")], MESH)


def test_mesh_must_fit_the_devices():
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    assert mesh.shape["data"] == jax.device_count()
    for sizes in ({"data": 3, "fsdp": 1, "tensor": 1}, {"data": -1, "fsdp": -1, "tensor": 1}):
        with pytest.raises(UserError, match="does not fit"):
            make_mesh(ConfigDict(sizes))


def test_batch_must_divide():
    mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    check_batch_size(6, 3, mesh, "stages.a.batch_size")
    with pytest.raises(UserError, match=r"stages\.a\.batch_size=8: give a positive multiple of 3"):
        check_batch_size(8, 3, mesh, "stages.a.batch_size")


def test_a_process_loads_the_rows_that_its_devices_hold(monkeypatch):
    """Also where a mesh, which follows the wires, parts them."""

    class Sharding:
        @staticmethod
        def addressable_devices_indices_map(shape):
            return {"a": (slice(6, 8),), "b": (slice(2, 4),), "c": (slice(2, 4),)}

    monkeypatch.setattr(mesh_module, "batch_sharding", lambda mesh: Sharding)
    np.testing.assert_array_equal(process_rows(None, 8), [2, 3, 6, 7])


APART = """
import os, sys
import jax
import numpy as np
from jax.sharding import Mesh
from vljax.training.mesh import AXES, process_rows, to_devices

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
devices = np.array(jax.devices())[[0, 2, 3, 1]].reshape(4, 1, 1)
mesh = Mesh(devices, AXES)
rows = process_rows(mesh, 8)
assert rows.tolist() == ([0, 1, 6, 7], [2, 3, 4, 5])[int(sys.argv[2])], rows
for shard in to_devices({"row": rows}, mesh, 8)["row"].addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(8)[shard.index])
"""


@pytest.mark.slow
def test_rows_lie_where_they_belong_though_a_process_has_both_ends(run):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen([sys.executable, "-c", APART, address, str(i)], env=run.environment(2))
        for i in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]


LAYOUTS = {
    "data": ("--config.mesh.data=4",),
    "fsdp": ("--config.mesh.data=1", "--config.mesh.fsdp=4"),
    "fsdp and tensor": ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
}


def assert_same_curve(curve, expected):
    assert sorted(curve) == list(range(1, 21))
    np.testing.assert_allclose(
        [curve[step] for step in range(1, 21)],
        [expected[step] for step in range(1, 21)],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("layout", "processes"),
    [
        pytest.param("data", 1, marks=pytest.mark.slow),
        pytest.param("fsdp", 1, marks=pytest.mark.slow),
        ("fsdp and tensor", 1),
        pytest.param("data", 2, marks=pytest.mark.slow),
        pytest.param("fsdp", 2, marks=pytest.mark.slow),
        pytest.param("fsdp and tensor", 2, marks=pytest.mark.slow),
    ],
)
def test_every_layout_follows_the_same_curve(run, undisturbed, tmp_path, layout, processes):
    run.elsewhere(tmp_path, *LAYOUTS[layout], devices=4 // processes, processes=processes)
    assert_same_curve(run.losses(tmp_path), run.losses(undisturbed))


MEMORY = """
import sys
import jax
from vljax.doors import parse_config
from vljax.systems import sdg
from vljax.training import loop, weights
from vljax.training.mesh import make_mesh

config, _ = parse_config([*sys.argv[1:], "--config.mesh.data=1", "--config.mesh.fsdp=4"])
mesh = make_mesh(config.mesh)
skeleton = jax.eval_shape(lambda: sdg.make_model(config))
program = loop.make_program(sdg.stages(config)[0], skeleton, config, mesh)
parameters = weights.initial(lambda: sdg.make_model(config), skeleton, config, mesh)
state = program.init(parameters)
leaves = jax.tree.leaves((state.parameters, state.optimizer))
for device in jax.devices():
    held = sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == device)
    print(held / sum(x.nbytes for x in leaves))
"""


def test_fsdp_over_four_devices_holds_a_quarter_each(run):
    command = [sys.executable, "-c", MEMORY, *run.small]
    printed = subprocess.run(
        command, env=run.environment(4), check=True, capture_output=True, text=True
    ).stdout
    shares = [float(line) for line in printed.split()]
    assert len(shares) == 4
    assert max(shares) <= 0.30
