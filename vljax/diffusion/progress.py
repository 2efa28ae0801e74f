"""Seeing from outside where a compiled sampler is.

A compiled program cannot call a Python function that changes between runs without being compiled
again. It therefore carries one fixed host call and a traced token that says whom to tell:

    with progress_bar("sampling") as progress:
        pictures = sample(..., progress=progress)      # a function under jax.jit

The host call answers with the step at which it wants to be called next, so that reports come
about ten times a second whatever a step costs: slow programs report every step, fast ones are
left alone. On a mesh the first process is called, once per report and not once per device (every
process opens the context, as all run the same program); inside `shard_map` every device calls,
and the repeats are dropped here.
"""

import contextlib
import contextvars
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jaxtyping import Array, Int, PyTree
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_REPORTS = 0.1
T = TypeVar("T", bound=PyTree)
Item = TypeVar("Item")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Progress:
    """Whom a compiled program tells; traced, so that another listener compiles nothing.

    Attributes:
        token: Names a listener of this process; it serves one run.
    """

    token: Int[Array | np.ndarray, ""]


@contextlib.contextmanager
def report_to(
    listener: Callable[[int, int], None], *, interval: float = SECONDS_BETWEEN_REPORTS
) -> Iterator[Progress]:
    """Have `listener(done, total)` called from one run of a compiled sampler.

    Leaving the context waits until the run and its reports have finished.

    Args:
        listener: Called on a thread of the runtime with rising `done` steps of `total`; the last
            step is always reported. It must not call JAX.
        interval: Seconds between reports; 0 reports every step. A report costs the program 0.1
            to 0.5 ms of CPU.
    """
    token = next(_tokens)
    _listeners[token] = _Listener(listener, interval)
    try:
        yield Progress(np.asarray(token, np.int32))
        jax.effects_barrier()
    finally:
        del _listeners[token]


@contextlib.contextmanager
def shown_to(watcher: Callable[[str, int, int], None]) -> Iterator[None]:
    """Have the bars of this thread tell a watcher instead of being drawn.

    Args:
        watcher: Called with a bar's description, the steps done and all steps, as `report_to`
            calls its listener. What it raises ends the run with a runtime error of JAX.
    """
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """Show a `rich` bar with the steps done and the time left, for one run (see `shown_to`).

    Args:
        description: What stands before the bar.
    """
    if (watcher := _watcher.get()) is not None:
        with report_to(functools.partial(watcher, description)) as progress:
            yield progress
        return
    with _bar() as bar:
        task = bar.add_task(description, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        with report_to(show) as progress:
            yield progress


def in_steps(description: str, items: Sequence[Item]) -> Iterator[Item]:
    """Go through what the host does one after the other, with a bar (see `shown_to`).

    What a watcher raises ends the loop before its next item. A single item has no bar: it would
    only be seen when nothing is left to wait for.

    Args:
        description: What stands before the bar.
        items: What is gone through; each must be finished when the next is asked for.
    """
    if (watcher := _watcher.get()) is not None:
        for done, item in enumerate(items):
            watcher(description, done, len(items))
            yield item
        watcher(description, len(items), len(items))
    elif len(items) < 2:
        yield from items
    else:
        with _bar() as bar:
            yield from bar.track(items, description=description)


def _bar() -> RichProgress:
    return RichProgress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def report(
    progress: Progress | None,
    due: Int[Array, ""],
    done: Int[Array, ""],
    total: int,
    value: T,
) -> tuple[Int[Array, ""], T]:
    """Inside a compiled loop: tell the listener that `done` of `total` steps are complete.

    Args:
        progress: None adds nothing to the program.
        due: The step count from which on the host wants to be called; start with 0.
        done: Steps completed.
        total: Steps of the run.
        value: What this step computed; the report waits for it.

    Returns:
        The next `due`, and `value` for the program to go on with.
    """
    if progress is None:
        return due, value
    done, value = lax.optimization_barrier((done, value))
    message = jnp.stack([jnp.asarray(progress.token), done, jnp.asarray(total, done.dtype)])
    answer = jax.ShapeDtypeStruct((), due.dtype)
    due = lax.cond(
        (done >= due) | (done == total),
        lambda: io_callback(_dispatch, answer, message),
        lambda: due,
    )
    return due, value


class _Listener:
    """A listener, how far its run is, and how many steps apart its reports are."""

    def __init__(self, call: Callable[[int, int], None], interval: float):
        self.call, self.interval = call, interval
        self.done, self.due, self.time = 0, 0, math.inf
        self.lock = threading.Lock()

    def tell(self, done: int, total: int) -> int:
        with self.lock:
            if done > self.done:
                now, passed = time.monotonic(), done - self.done
                # The first step's time is unknown (it may hold the compilation). After it the
                # distance at most doubles: one quick step must not silence the slow ones behind.
                per_step = (now - self.time) / passed
                stride = self.interval / max(per_step, 1e-9) if per_step > 0 else 1
                self.due = done + max(1, min(math.ceil(stride), 2 * passed))
                self.done, self.time = done, now
                self.call(done, total)
            return self.due


# The one register between compiled programs and the host: a token leads to its listener.
_listeners: dict[int, _Listener] = {}
_tokens = itertools.count(1)
# Who watches the bars of a thread.
_watcher: contextvars.ContextVar[Callable[[str, int, int], None] | None] = contextvars.ContextVar(
    "watcher", default=None
)


def _dispatch(message: Int[Array, "3"]) -> np.ndarray:
    # np.asarray first: reading elements of a jax.Array would run three more programs.
    token, done, total = np.asarray(message).tolist()
    listener = _listeners.get(token)
    due = total if listener is None else listener.tell(done, total)
    return np.asarray(due, np.int32)
