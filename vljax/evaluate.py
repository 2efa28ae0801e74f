"""Judge a trained system by its paper's metrics: `python -m vljax.evaluate --workdir runs/ffhq`.

The model is chosen as in `vljax.generate`. Results go to `results.json` and `results.md`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vljax import files
from vljax.config import flatten
from vljax.doors import door, open_run


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong.
    """
    run = open_run(argv, "vljax.evaluate", __doc__, folder="evaluation")
    results = run.system.evaluate(run.model, run.config, run.args, run.out)
    files.write(run.out / "results.json", json.dumps(results, indent=1) + "\n")
    table = as_markdown(results)
    files.write(run.out / "results.md", table)
    print(f"{table}\nresults: {run.out}")
    return 0


def as_markdown(results: Mapping[str, Any]) -> str:
    """Results as tables: a list of rows is one with their columns, the rest one of two columns."""
    tables = {name: rows for name, rows in results.items() if isinstance(rows, list)}
    rest = flatten({name: value for name, value in results.items() if name not in tables})
    parts = [_table([{"measure": name, "value": value} for name, value in rest.items()])]
    parts += [f"{name}\n\n{_table(rows)}" for name, rows in tables.items() if rows]
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with their columns in the order in which they first come; missing cells stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


run = door(main)

if __name__ == "__main__":
    run()
