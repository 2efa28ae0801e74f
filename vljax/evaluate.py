"""Judge a trained system by its paper's metrics: `python -m vljax.evaluate --workdir runs/ffhq`.

The model is chosen as in `vljax.generate`. Results go to `results.json` and `results.md`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vljax.config import flatten
from vljax.doors import door, open_run
from vljax.training.workdir import write_atomically


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong.
    """
    run = open_run(argv, "vljax.evaluate", __doc__, folder="evaluation")
    results = run.system.evaluate(run.model, run.config, run.args, run.out)
    write_atomically(run.out / "results.json", json.dumps(results, indent=1) + "\n")
    table = as_markdown(results)
    write_atomically(run.out / "results.md", table)
    print(f"{table}\nresults: {run.out}")
    return 0


def as_markdown(results: Mapping[str, Any]) -> str:
    """Nested results as a table of two columns."""
    rows = [
        f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |"
        for name, value in flatten(dict(results)).items()
    ]
    return "\n".join(["| measure | value |", "|---|---|", *rows]) + "\n"


run = door(main)

if __name__ == "__main__":
    run()
