"""The workdir: all that a run leaves.

```
config.json              the resolved config
checkpoints/<stage>/     to resume from
weights/<stage>.safetensors  the parts that a stage trained, once it is done, in published form
weights/stages.json      the stages that are done, in the order in which they trained
metrics.jsonl            one line a logged step
tensorboard/             the same, for TensorBoard
pictures/                samples drawn during training
```
"""

import functools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vljax import files
from vljax.config import completed, flatten, from_workdir, to_json
from vljax.data.pictures.images import write_png
from vljax.errors import UserError

# What may change when a run is resumed: nothing here changes the parameters it ends with.
FREE_FIELDS = (
    *("about", "log", "checkpoint", "profile", "compilation_cache", "data.workers", "mesh"),
    "data.on_corrupt",  # until now every example was readable, or the run had stopped
    "param_dtype",  # of weights in use
)


class Workdir:
    """A run's folder, and its voice on the console.

    Only process 0 writes and speaks; on the others every method does nothing.

    Args:
        path: The folder; made when missing.
        config: The resolved config of this run.
        usual: The system's own config: what fields mean that an older version's run lacks.

    Raises:
        UserError: the folder belongs to a run with another config.
    """

    def __init__(self, path: str | os.PathLike, config: ConfigDict, usual: ConfigDict) -> None:
        self.path = Path(path)
        self.leads = jax.process_index() == 0
        self.profiled = False  # whether a stage's steps were traced, see `vljax.training.loop`
        self.console = Console(quiet=not self.leads)
        self._check_config(config, usual)
        if not self.leads:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            files.write(self.path / "config.json", to_json(config))
            self._metrics = (self.path / "metrics.jsonl").open("a")
        except OSError as error:
            if files.lacks_room(error):
                raise
            raise UserError(
                f"--workdir={path}: cannot be made or written to ({error}); give another"
            ) from error

    def _check_config(self, config: ConfigDict, usual: ConfigDict) -> None:
        if not (self.path / "config.json").is_file():
            return
        theirs, ours = (
            _fields(one, usual)
            for one in (from_workdir(self.path), config.copy_and_resolve_references())
        )
        different = [
            f"{name} ({theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here)"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
            and not any(name == free or name.startswith(free + ".") for free in FREE_FIELDS)
        ]
        if different:
            raise UserError(
                f"--workdir={self.path}: holds a run with another config ({', '.join(different)}); "
                "give another --workdir, or the same config to resume it"
            )

    @functools.cached_property
    def _tensorboard(self) -> Any:
        """What writes for TensorBoard. Its package takes seconds to import where PyTorch is."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.path / "tensorboard"), flush_secs=10)

    def say(self, text: str) -> None:
        """A line on the console."""
        self.console.print(text, highlight=False, markup=False)

    def progress(self, stage: str, total: int, done: int) -> Progress:
        """The stage's bar: step, loss, speed, time left. Use it as a context."""
        bar = Progress(
            TextColumn(f"[bold]{stage}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=60,
        )
        bar.add_task(stage, total=total, completed=done, status="compiling …")
        return bar

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the logged lines of this stage past `step`, which a resumed run writes again."""
        if not self.leads:
            return
        self._metrics.close()
        kept = []
        for line in (self.path / "metrics.jsonl").read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line cut short by a kill
                continue
            if record["stage"] != stage or record["step"] <= step:
                kept.append(line)
        files.write(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))
        self._metrics = (self.path / "metrics.jsonl").open("a")

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step, to `metrics.jsonl` and TensorBoard."""
        if not self.leads:
            return
        record = {"stage": stage, "step": step, "time": round(time.time(), 3), **metrics}
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{stage}/{name}", value, step)

    def picture(self, stage: str, step: int, name: str, image: np.ndarray) -> None:
        """A picture (uint8 [h w 3]) drawn at a step, as PNG and to TensorBoard."""
        if not self.leads:
            return
        write_png(self.path / "pictures" / stage / f"{name}_{step:07d}.png", image)
        self._tensorboard.add_image(f"{stage}/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close what is open."""
        if self.leads:
            self._metrics.close()
            if "_tensorboard" in self.__dict__:  # written to
                self._tensorboard.close()


def _fields(config: ConfigDict, usual: ConfigDict) -> dict[str, object]:
    """All fields of a config as JSON has them; of those that it lacks, what is usual."""
    completed(config, usual)
    return flatten(json.loads(to_json(config)))
