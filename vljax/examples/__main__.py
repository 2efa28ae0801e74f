"""Makes an example of a finished run: its config, its weights in half precision, its results.

python -m vljax.examples --workdir runs/tokens --name text2image --commit 1a2b3c4

To train one anew, judge it and put it in its place (further flags are `vljax.train`'s):

python -m vljax.examples make text2image --workdir runs/again
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

from vljax import files, pretrained
from vljax.config import to_json
from vljax.doors import EXAMPLES, door, example, open_run, read_workdir
from vljax.errors import UserError
from vljax.models.parameters import named_parameters, variables
from vljax.request import File, option
from vljax.systems import load_system
from vljax.training import weights

# What a package can carry of one example, in bytes.
MOST = 12 * 2**20


@dataclass(frozen=True)
class Packing:
    """What becomes an example."""

    name: str | None = option(None, help="what it is called (default: its system's name)")
    commit: str | None = option(None, help="the commit with which it was trained")
    results: File | None = option(
        None, help="results.md of vljax.evaluate (default: WORKDIR/evaluation/results.md)"
    )


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: a flag, the workdir or its weights are wrong, or the example would be too large.
    """
    if argv and argv[0] == "make":
        return _make(argv[1:])
    run = open_run(argv, "vljax.examples", __doc__, folder=None, asks=Packing)
    asked: Packing = run.asked
    name = asked.name or run.system.name
    folder = EXAMPLES / name
    if asked.results:
        judged = Path(asked.results)
    elif run.workdir:
        judged = run.workdir / "evaluation" / "results.md"
    else:
        raise UserError("--results is missing: give results.md of vljax.evaluate, or --workdir")
    if not judged.is_file():
        raise UserError(f"{judged}: no such file; judge the run first, with vljax.evaluate")
    parts = sorted(n for n, part in vars(run.model).items() if isinstance(part, nnx.Module))
    layouts, values = variables(run.model), named_parameters(run.model)
    tensors = {
        path: pretrained.to_published(np.asarray(values[path], np.float16), layout)
        for path, layout in layouts.items()
    }
    size = sum(one.nbytes for one in tensors.values())
    if size > MOST:
        told = f"{size / 2**20:.1f} MB, more than {MOST / 2**20:.0f}"
        raise UserError(f"{name} would take {told}: train a smaller one")
    pretrained.write_tensors(tensors, folder / "weights" / "example.safetensors")
    stages = [{"name": "example", "parts": parts}]
    files.write(folder / "weights" / "stages.json", json.dumps(stages, indent=1) + "\n")
    config = run.config.copy_and_resolve_references()
    config.compilation_cache = files.CACHE  # the reader's own, wherever this run had its
    config.pretrained = dict.fromkeys(config.pretrained, "")  # all weights are the example's
    files.write(folder / "config.json", to_json(config) + "\n")
    commit = f" at commit {asked.commit}" if asked.commit else ""
    files.write(
        folder / "README.md",
        f"# {name}\n\n{run.config.about} Seed {run.config.seed}, trained{commit}; weights in half "
        f"precision, {size / 2**20:.1f} MB.\n\n{judged.read_text('utf-8').strip()}\n",
    )
    print(f"example: {folder}")
    return 0


def _make(argv: Sequence[str]) -> int:
    """Train an example's recipe, judge what came out, and let it take the example's place."""
    parser = argparse.ArgumentParser("vljax.examples make", description=__doc__)
    parser.add_argument("name", help="of an example")
    parser.add_argument("--workdir", type=files.expanded, required=True, help="where to train")
    parser.add_argument("--commit", help="the commit with which it is trained")
    asked, others = parser.parse_known_args(argv)
    example(asked.name)  # an unknown name is told before anything starts
    workdir: Path = asked.workdir
    recipe, run = Path(__file__).parent / "recipe.py", ("--workdir", str(workdir))
    if failed := _door("train", "--config", f"{recipe}:{asked.name}", *run, *others):
        return failed
    config = read_workdir(workdir)
    listed = load_system(config.system).stages(config)
    if not all(weights.file(workdir, stage.name).exists() for stage in listed):
        return 0  # it was stopped; the same command goes on
    if failed := _door("evaluate", *run):
        return failed
    commit = ("--commit", asked.commit) if asked.commit else ()
    return main((*run, "--name", asked.name, *commit))


def _door(name: str, *flags: str) -> int:
    """The status with which another door ends, in a process of its own."""
    return subprocess.run([sys.executable, "-m", f"vljax.{name}", *flags], check=False).returncode


run = door(main)

if __name__ == "__main__":
    run()
