"""Judge a trained system by its paper's metrics: `python -m vljax.evaluate --workdir runs/ffhq`.

The model is chosen as in `vljax.generate`. Results go to `results.json` and `results.md`, figures
beside them.
"""

from collections.abc import Sequence

from vljax import files
from vljax.data.pictures.images import write_png
from vljax.doors import door, open_run


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong.
    """
    run = open_run(argv, "vljax.evaluate", __doc__, folder="evaluation", asks="judging")
    report = run.system.judge(run.model, run.config, run.asked)
    for name, figure in report.figures.items():
        write_png(run.out / f"{name}.png", figure, {})
    files.write(run.out / "results.json", report.as_json())
    table = report.as_markdown()
    files.write(run.out / "results.md", table)
    print(f"{table}\nresults: {run.out}")
    return 0


run = door(main)

if __name__ == "__main__":
    run()
