"""The queue: requests wait in a row, one thread draws them, each can be cancelled at any time.

A job's state is one small dictionary, which watchers are sent whole whenever it changes; whoever
comes later, or again, has missed nothing.
"""

import contextlib
import logging
import re
import secrets
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vljax.data.pictures.images import encode_png
from vljax.diffusion.progress import shown_to
from vljax.errors import RunError, UserError
from vljax.page.rooms import Room, Values

#: Requests that may wait, ended ones that are kept, and results of one.
MOST_WAITING, MOST_KEPT, MOST_RESULTS = 64, 100, 300
#: Bytes of results that are kept; beyond it the oldest requests are forgotten.
KEPT_BYTES = 2**28
#: Bytes of pictures that waiting requests may hold together.
WAITING_BYTES = 2**29
#: A request that nobody has watched for so many seconds is dropped. Browsers let a hidden tab ask
#: once a minute.
PATIENCE = 120.0
#: Seconds that closing waits for what is being drawn; a compiled program cannot be interrupted.
CLOSING = 5.0

_NAME = re.compile(r"[^A-Za-z0-9._-]")
_PATH = re.compile(r"(?<![\w./])~?(?:/[^\s/'\":;,]+)+/([^\s/'\":;,]*)")


class CancelledError(Exception):
    """Somebody cancelled the request, or nobody waits for it."""


class Job:
    """A request on its way.

    Attributes:
        id: Not to be guessed.
        state: `waiting`, `drawing`, `done`, `failed` or `cancelled`.
        files: The results' bytes with their media types.
    """

    def __init__(self, room: Room, values: Values, asked: Any):
        self.id = secrets.token_urlsafe(12)
        self.room, self.values, self.asked = room, values, asked
        self.state, self.message, self.place = "waiting", "", 0
        self.what, self.steps, self.total, self.compiled = "", 0, 0, 0
        self.files: list[tuple[str, str, bytes]] = []
        self.results: list[dict[str, Any]] = []
        self.begun = self.ended = 0.0
        self._watchers: set[Callable[[], None]] = set()
        self._watched = time.monotonic()
        self._cancelled = threading.Event()
        self._why = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed", "cancelled")

    def told(self) -> dict[str, Any]:
        """All that a browser shows of it."""
        now = self.ended or time.monotonic()
        return {
            "id": self.id,
            "state": self.state,
            "message": self.message,
            "place": self.place,
            "what": self.what,
            "done": self.steps,
            "total": self.total,
            "compiled": self.compiled,
            "seconds": round(now - self.begun, 1) if self.begun else 0,
            "results": list(self.results),
        }

    def seen(self) -> None:
        """Somebody has looked."""
        self._watched = time.monotonic()

    @contextlib.contextmanager
    def watched_by(self, watcher: Callable[[], None]) -> Iterator[None]:
        """Have a function called, on any thread, whenever the state changes."""
        self._watchers.add(watcher)
        try:
            yield
        finally:
            self._watchers.discard(watcher)
            self.seen()

    def changed(self) -> None:
        """Tell all watchers."""
        for watcher in tuple(self._watchers):
            watcher()

    def cancel(self) -> None:
        """Have it end at its next step."""
        self._cancelled.set()
        self.changed()

    def check(self) -> None:
        """Whether it should go on.

        Raises:
            CancelledError: it should not.
        """
        if not self._watchers and time.monotonic() - self._watched > PATIENCE:
            self._why = f"nobody looked at it for {PATIENCE:g} seconds: draw it again"
            self._cancelled.set()
        if self._cancelled.is_set():
            raise CancelledError

    def end(self, state: str, message: str = "") -> None:
        """Nothing more will come."""
        self.state, self.message = state, self._why if state == "cancelled" else message
        self.ended = time.monotonic()
        self.asked = None  # its pictures
        self.changed()


class Queue:
    """Draws what rooms are asked for, one request after the other, until it is closed."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._open = True
        self._current: Job | None = None
        self._worker = threading.Thread(target=self._work, name="draws", daemon=True)
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        logging.getLogger("jax._src.callback").addFilter(_unless_cancelled)
        self._worker.start()

    def close(self) -> None:
        """Cancel everything and wait a moment for the thread, which ends with the process."""
        with self._change:
            self._open = False
            for job in self._jobs.values():
                job.cancel()
            self._change.notify()
        self._worker.join(CLOSING)
        jax.monitoring.unregister_event_duration_listener(self._listen)
        logging.getLogger("jax._src.callback").removeFilter(_unless_cancelled)

    @property
    def is_drawing(self) -> bool:
        """Whether a request is being drawn; after `close`, one that could not be stopped."""
        return self._current is not None

    def put(self, job: Job) -> None:
        """Have a request drawn.

        Raises:
            UserError: too many are waiting, or with too large pictures.
        """
        with self._change:
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} requests are waiting: try again in a while")
            if _held([*self._waiting, job]) > WAITING_BYTES:
                raise UserError(
                    "many large pictures are waiting: try again in a while, or give a smaller one"
                )
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._forget()
            self._count()
            self._change.notify()

    def get(self, key: str) -> Job | None:
        """The request of an id, or None where it is not kept."""
        return self._jobs.get(key)

    def cancel(self, job: Job) -> None:
        """Take a request back, whether it waits or is being drawn."""
        job.cancel()
        with self._change:
            if job in self._waiting:
                self._waiting.remove(job)
                job.end("cancelled")
                self._count()

    def _count(self) -> None:
        ahead = 1 if self._current else 0
        for place, job in enumerate(self._waiting, ahead):
            if job.place != place:
                job.place = place
                job.changed()

    def _forget(self) -> None:
        kept, held = 0, 0
        for key, job in reversed(list(self._jobs.items())):
            kept, held = kept + 1, held + sum(len(data) for _, _, data in job.files)
            if job.is_over and (kept > MOST_KEPT or held > KEPT_BYTES):
                del self._jobs[key]

    def _listen(self, event: str, *_: Any, **__: Any) -> None:
        if "backend_compile" in event and (job := self._current):
            job.compiled += 1

    def _work(self) -> None:
        while True:
            with self._change:
                self._current = None
                self._change.wait_for(lambda: self._waiting or not self._open)
                if not self._waiting:
                    return
                self._current = job = self._waiting.popleft()
                self._count()
            self._run(job)

    def _run(self, job: Job) -> None:
        """Draw one request; whatever happens, it ends."""
        try:
            job.check()
            job.state, job.place, job.begun = "drawing", 0, time.monotonic()
            job.changed()
            _draw(job)
            job.end("done")
        except CancelledError:
            job.end("cancelled")
        except (UserError, RunError) as error:
            job.end("failed", without_paths(str(error)))
        except Exception:
            if job._cancelled.is_set():  # a compiled program was stopped between two steps
                job.end("cancelled")
                return
            traceback.print_exc()
            job.end("failed", "this could not be drawn; the server's console says why")


def _held(jobs: Iterable[Job]) -> int:
    """Bytes of the pictures that requests hold; one that several hold counts once."""
    values = [value for job in jobs if job.asked is not None for value in vars(job.asked).values()]
    pictures = {id(value): value for value in values if isinstance(value, np.ndarray)}
    return sum(picture.nbytes for picture in pictures.values())


def _draw(job: Job) -> None:
    def watch(what: str, done: int, total: int) -> None:
        job.what, job.steps, job.total = what, done, total
        job.changed()
        job.check()

    with shown_to(watch):
        for result in job.room.draw(job.asked):
            settings = dict(result.settings)
            if isinstance(result.value, np.ndarray):
                told = {**settings, **job.room.settings(job.values)}
                kind, data = "image/png", encode_png(result.value, told)
                size = result.value.shape[:2]
            else:
                kind, data, size = "text/plain; charset=utf-8", result.value.encode(), (0, 0)
            if len(job.files) >= MOST_RESULTS:
                raise UserError(f"the page shows at most {MOST_RESULTS} results: ask for fewer")
            job.files.append((_NAME.sub("_", result.name), kind, data))
            about: dict[str, Any] = {
                "name": job.files[-1][0],
                "label": result.label,
                "settings": settings,
            }
            about |= {"height": size[0], "width": size[1], "picture": kind == "image/png"}
            job.results.append(about)
            job.changed()
            job.check()


def without_paths(message: str) -> str:
    """A message in which paths of the server are names alone."""
    return _PATH.sub(lambda found: found.group(1) or "a folder", message)


def _unless_cancelled(record: logging.LogRecord) -> bool:
    """A stopped program is logged as a failure of its host call; it is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], CancelledError))
