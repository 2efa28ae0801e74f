"""Train a system: `python -m vljax.train --config configs/sdg_ffhq.py --workdir runs/ffhq`.

The stages of the system run one after the other; a run that was stopped, by whatever, goes on
from its newest checkpoint when started again with the same command. `--dry_run` builds everything
abstractly and prints what the run would take.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vljax import files
from vljax.doors import door, explaining, parse_config, start_jax
from vljax.errors import UserError
from vljax.systems import load_system
from vljax.training import loop, weights
from vljax.training.dry_run import dry_run
from vljax.training.mesh import make_mesh
from vljax.training.preemption import Preemption
from vljax.training.stage import Stage
from vljax.training.workdir import Workdir


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: the config, the data or the workdir is wrong; nothing was compiled yet.
        RunError: training cannot go on.
    """
    parser = argparse.ArgumentParser(
        "vljax.train",
        usage="python -m vljax.train --config FILE.py[:DATA] --workdir DIR [--config.FIELD=VALUE]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=files.expanded, help="all that the run leaves goes here")
    parser.add_argument("--dry_run", action="store_true", help="print what the run would take")
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of a TPU pod or SLURM"
    )
    config, rest = parse_config(argv)
    args = parser.parse_args(rest)
    if config is None:
        raise UserError("--config is missing: give a recipe, such as --config configs/sdg_ffhq.py")
    if args.workdir is None and not args.dry_run:
        raise UserError("--workdir is missing: give a folder for what the run leaves")
    start_jax(config, args.distributed)
    if args.dry_run:
        _, stages, programs, skeleton, mesh = _planned(argv, config)
        dry_run(stages, programs, skeleton, mesh, config)
        return 0
    with Preemption() as preemption:
        done = _train(_planned(argv, config), config, args.workdir, preemption)
    # Schedulers that take 0 for "finished for good" (Kubernetes) ask for another status.
    return 0 if done else int(os.environ.get("VLJAX_STOPPED_STATUS", "0"))


class _Plan(NamedTuple):
    """What a run is to do: of the listed stages it trains some, a program each."""

    listed: list[Stage]
    stages: list[Stage]
    programs: list[loop.Program]
    skeleton: Any
    mesh: jax.sharding.Mesh


def _planned(argv: Sequence[str], config: ConfigDict) -> _Plan:
    """Open the data and build everything abstractly.

    Raises:
        UserError: the config or the data is wrong; nothing was compiled yet.
    """
    system = load_system(config.system)
    mesh = make_mesh(config.mesh)
    # Every mistake shows here, before anything compiles.
    with explaining(argv):
        listed = system.stages(config)
        skeleton = jax.eval_shape(lambda: system.make_model(config))
        stages = weights.stages_to_train(listed, skeleton, config)
        programs = [loop.make_program(stage, skeleton, config, mesh) for stage in stages]
    return _Plan(listed, stages, programs, skeleton, mesh)


def _train(plan: _Plan, config: ConfigDict, folder: Path, preemption: Preemption) -> bool:
    """Run the stages one after the other; whether all have ended, or SIGTERM came before."""
    listed, stages, programs, skeleton, mesh = plan
    system = load_system(config.system)
    workdir = Workdir(folder, config, system.get_config())
    workdir.say(f"{config.about}\n{_devices(mesh)}; everything goes to {workdir.path}")
    trains = {stage.name for stage in stages}
    for name in (stage.name for stage in listed if stage.name not in trains):
        workdir.say(f"{name}: not trained, config.pretrained gives its weights")
    if not stages:
        workdir.say("nothing to train: config.pretrained gives all that this config would train")
    parameters = weights.initial(lambda: system.make_model(config), skeleton, config, mesh)
    for stage, program in zip(stages, programs, strict=True):
        if preemption.noticed():
            workdir.say(f"stopped by SIGTERM before {stage.name}")
            workdir.close()
            return False
        result = loop.train(
            stage,
            program,
            skeleton,
            parameters,
            mesh=mesh,
            config=config,
            workdir=workdir,
            preemption=preemption,
        )
        if result is None:
            workdir.close()
            return False
        parameters = result
        if not weights.file(workdir.path, stage.name).exists():
            weights.save(workdir.path, stage.name, skeleton, parameters, program.trained)
        weights.list_stages(workdir.path, stages, [program.trained for program in programs])
    workdir.say(
        f"done. Pictures: {workdir.path / 'pictures'}; weights: {workdir.path / 'weights'}\n"
        f"next: python -m vljax.generate --workdir {workdir.path} or "
        f"python -m vljax.evaluate --workdir {workdir.path}"
    )
    workdir.close()
    return True


def _devices(mesh: jax.sharding.Mesh) -> str:
    sizes = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} × {kind} in {jax.process_count()} process(es), mesh {sizes}"


run = door(main)

if __name__ == "__main__":
    run()
