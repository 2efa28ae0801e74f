"""SIGTERM: a run that a scheduler ends saves first, and leaves as one that went well."""

import itertools
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Notices SIGTERM, on whichever host it arrives, at the same step everywhere.

    Entered once a run, before its data are opened: what it notices between stages, or while one
    begins, ends the run at the next look.
    """

    # The runtime agrees on the highest number that any process told it, plus one, and waits for
    # just that: it has to rise by one from 0, through all stages, wherever they resumed.
    steps = itertools.count()

    def __init__(self) -> None:
        self.flag = False
        self.previous: Any = None

    def __enter__(self) -> "Preemption":
        # With several processes the runtime catches the signal and agrees on a step; a handler
        # of ours would take it away from the runtime. Handlers belong to the main thread.
        self.alone = jax.process_count() == 1
        if self.alone and threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.flag = True

    def noticed(self) -> bool:
        """Whether to save and stop here; to be asked after every step and before every stage."""
        if self.alone:
            return self.flag
        return multihost_utils.reached_preemption_sync_point(next(self.steps))
