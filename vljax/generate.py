"""Use a trained system: `python -m vljax.generate --workdir runs/ffhq`.

The model is a run's (`--workdir`), or published weights under a recipe
(`--config configs/sdg_lsun.py:/data/bedroom --config.pretrained.diffusion=lsun_bedroom.pt`).
`--help` beside either of them shows the flags of its system.
"""

from collections.abc import Sequence

import numpy as np

from vljax import files
from vljax.data.pictures.images import write_png
from vljax.doors import door, open_run


def main(argv: Sequence[str]) -> int:
    """Run the door; returns the exit code. Results are written as they come.

    Raises:
        UserError: a flag, the config, the workdir or the weights are wrong.
    """
    run = open_run(argv, "vljax.generate", __doc__, folder="generated", asks="request")
    for result in run.system.generate(run.model, run.config, run.asked):
        if isinstance(result.value, np.ndarray):
            write_png(run.out / result.name, result.value, result.settings)
        else:
            files.write(run.out / result.name, result.value)
            if result.label:
                print(result.label)
    print(f"results: {run.out}")
    return 0


run = door(main)

if __name__ == "__main__":
    run()
