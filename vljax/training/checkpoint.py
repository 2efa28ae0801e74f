"""Checkpoints of a stage: atomic, asynchronous, sharded (Orbax).

A checkpoint holds the training state and a JSON record of the data stream. It appears under its
step's name only when it is whole, so a run killed while writing resumes from the one before.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vljax.errors import RunError, UserError


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: Where they lie, one folder a step.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        try:
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, create=True, cleanup_tmp_directories=True
                ),
                item_names=("state", "record"),
            )
        except OSError as error:
            raise RunError(f"{folder} cannot be used for checkpoints: {error}") from error

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, record: dict) -> None:
        """Start writing; returns as soon as the state may be overwritten.

        Raises:
            RunError: this or an earlier write failed; earlier checkpoints are untouched.
        """
        with self._write_errors(f"checkpoint {step}"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )

    def wait(self) -> None:
        """Until everything is written.

        Raises:
            RunError: a write failed; earlier checkpoints are untouched.
        """
        with self._write_errors("a checkpoint"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, abstract_state: Any) -> tuple[int, Any, dict]:
        """The newest checkpoint: its step, state and record.

        Args:
            abstract_state: `jax.ShapeDtypeStruct`s with shardings, as `state` was saved.

        Raises:
            UserError: the checkpoint is damaged, or of another model.
        """
        step = self._manager.latest_step()
        assert step is not None, "ask `latest` first"
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), record=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # the storage layers name damage in many ways
            raise UserError(
                f"checkpoint {self.folder / str(step)} is damaged or of another model "
                f"({_one_line(error)}): move it away to resume from the one before"
            ) from error
        return step, restored.state, restored.record

    def close(self) -> None:
        """Finish writing and stop the background threads."""
        self._manager.close()

    @contextlib.contextmanager
    def _write_errors(self, what: str) -> Iterator[None]:
        """Turns a failed write into one line that says what is left."""
        try:
            yield
        except Exception as error:  # the storage layers name a full disk in many ways
            free = shutil.disk_usage(self.folder).free / 2**20
            whole = self.latest()
            kept = "no earlier one exists" if whole is None else f"checkpoint {whole} is whole"
            raise RunError(
                f"{what} could not be written to {self.folder} ({free:.0f} MiB free; "
                f"{_one_line(error)}); {kept}: make room, then start again with the same command"
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def abstract(state: Any, shardings: Any) -> Any:
    """The shapes, dtypes and shardings of a state, for `Checkpoints.restore`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
