"""Batches that are a pure function of the seed and the batch number.

Row `r` of the endless stream is example `permutation(seed, epoch)[offset]` with
`epoch, offset = divmod(r, len(source))`: every epoch is shuffled anew and nothing is dropped.
Global batch `k` is rows `[k * B, (k + 1) * B)`, so batches may straddle epochs, and of several
processes each reads the rows that its devices hold. The augmentation of row `r` draws from a
generator seeded by `(seed, r)` alone. It follows that

- a run resumes at batch `k` by `batches(..., start=k)`: the whole iterator state is one number;
- the processes' parts, put together, are the same for every process count;
- threads, worker processes and prefetching change the speed and never the data.

Grain schedules the work: a `MapDataset` over batch numbers, prefetched by threads and, on
request, sliced over worker processes that hand batches back through shared memory. The rows of
one batch are read by a pool of threads (decoding and resizing release Python's lock), so that
the first batch comes as early and the memory held is as small as the machine allows.
"""

import contextlib
import functools
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process, resource_tracker
from typing import Any, Self

import grain
import numpy as np
from absl import flags
from jaxtyping import Int64

from vljax.data.source import MAX_SUBSTITUTIONS, OnCorrupt, Source, Transform, readable, skips
from vljax.errors import UserError

Batch = dict[str, np.ndarray]

# Batches may be counted for longer than any run.
_FOR_EVER = 2**62

# The two uses of the seed draw from unrelated streams.
_SHUFFLE, _AUGMENT = 0, 1

# Containers often mount a 64 MB /dev/shm, and writing beyond its end kills the process.
_MIN_SHARED_MEMORY = 2**30


class Batches(Iterator[Batch]):
    """An iterator over batches that can be closed, also by `with`.

    Closing ends the worker processes and threads; so do exhaustion, an error, and the end of the
    process that made it, however that comes.
    """

    def __init__(self, iterator: grain.DatasetIterator[Batch]):
        # Emptied by closing, so that no part of the iterator lives on into interpreter shutdown.
        self._live = [iterator]
        weakref.finalize(self, _close, self._live)
        with _signals_held_back():
            iterator.get_state()  # makes the iterators of all workers, which then start at once
            iterator.start_prefetch()

    def __next__(self) -> Batch:
        if not self._live:
            raise StopIteration
        try:
            return next(self._live[0])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops reading ahead and ends the worker processes; further calls do nothing."""
        _close(self._live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(live: list[grain.DatasetIterator[Batch]]) -> None:
    while live:
        live.pop().close()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM from processes started meanwhile: they inherit the signal mask.

    `_start_worker` says why; its own precaution would come only after seconds of imports.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # Its first start would unblock both signals again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transform: Transform,
    start: int = 0,
    shuffle: bool = True,
    num_batches: int | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    num_workers: int = 0,
    num_threads: int | None = None,
    prefetch: int = 2,
    on_corrupt: OnCorrupt = "stop",
) -> Batches:
    """The training batches of one process, for ever or to a number.

    Args:
        source: Examples; `vljax.data.pictures.sources` or `vljax.data.scenes`.
        batch_size: Examples in a global batch, over all processes.
        seed: Decides the order and all augmentation.
        transform: `transform(example, rng) -> example`. Its array and number fields are stacked
            (images stay uint8); other fields, such as text, are dropped unless it turns them
            into arrays. With workers it must pickle (`cloudpickle`; closures do).
        start: First batch number; a resumed run gives the number of batches already used.
        shuffle: Whether to permute each epoch; otherwise the source's order repeats.
        num_batches: How many batches to give; None for ever.
        rows: Which of a global batch's to read, in rising order; None for all.
        num_workers: Worker processes; 0 reads in threads of this process.
        num_threads: Threads that read the rows of a batch, in each worker; by default the
            available cores divided by the workers.
        prefetch: Batches kept ready, in each worker; 0 reads when asked.
        on_corrupt: For an unreadable example, `"stop"` raises `CorruptExampleError` naming it;
            `"skip"` takes the next readable example of the source in its place and marks it.

    Returns:
        An iterator over dicts with the transform's fields, each [b, ...] where `b` is the number
        of `rows`, and
        `index`: int64 [b], the examples read (after substitution), and
        `substituted`: bool [b], true where another example was unreadable; its sum is the count.
        These two replace fields so named.

    Raises:
        UserError: An argument is impossible, the source is empty, an example is unreadable, or
            the transform's fields cannot be stacked.
    """
    offsets = _offsets(source, batch_size, rows)
    if seed < 0:
        raise UserError(f"seed is {seed}; give a number of at least 0")
    if start < 0 or (num_batches is not None and num_batches < 0):
        raise UserError(f"start is {start} and num_batches {num_batches}; give at least 0")
    reader = _Reader(source, transform, seed, on_corrupt, num_threads or _threads(num_workers))
    order = _Order(len(source), seed, shuffle)

    def read(number: int) -> Batch:
        positions = number * batch_size + offsets
        return reader(positions, order(positions))

    stop = _FOR_EVER if num_batches is None else start + num_batches
    return _iterate(grain.MapDataset.range(start, stop).map(read), num_workers, prefetch)


def epoch(
    source: Source,
    *,
    batch_size: int,
    transform: Transform,
    seed: int = 0,
    num_workers: int = 0,
    num_threads: int | None = None,
    prefetch: int = 2,
    on_corrupt: OnCorrupt = "stop",
) -> Batches:
    """One pass over a source in its own order, for evaluation.

    All batches are of one size. Rows beyond the end repeat an example and are not `valid`.

    Args:
        source: As for `batches`, like all arguments not named here.
        batch_size: Examples in a batch.
        transform: As for `batches`.
        seed: Decides the transform's randomness, if it has any.
        num_workers: Worker processes.
        num_threads: Threads in each worker.
        prefetch: Batches kept ready.
        on_corrupt: As for `batches`; a substituted row is not `valid`, so that no example counts
            twice.

    Returns:
        Batches as `batches` gives them, with `valid`: bool [b], true for the rows that count.

    Raises:
        UserError: As for `batches`.
    """
    offsets = _offsets(source, batch_size, None)
    reader = _Reader(source, transform, seed, on_corrupt, num_threads or _threads(num_workers))
    length = len(source)

    def read(number: int) -> Batch:
        positions = number * batch_size + offsets
        inside = positions < length
        present = positions[inside]
        batch = reader(present, present)
        fill = np.minimum(offsets, len(present) - 1)
        batch = {name: values[fill] for name, values in batch.items()}
        return {**batch, "valid": inside & ~batch["substituted"]}

    count = -(-length // batch_size)
    return _iterate(grain.MapDataset.range(count).map(read), num_workers, prefetch)


def state(
    source: Source, next_batch: int, *, batch_size: int, seed: int, shuffle: bool = True
) -> dict[str, Any]:
    """What a checkpoint records of the data: JSON, and all that a resumed run needs.

    Args:
        source: The source in use.
        next_batch: Number of the first batch not yet used.
        batch_size: Global batch size.
        seed: The order's seed.
        shuffle: Whether epochs are permuted.
    """
    return {
        "next_batch": int(next_batch),
        "seed": int(seed),
        "batch_size": int(batch_size),
        "shuffle": bool(shuffle),
        "length": len(source),
        "fingerprint": str(getattr(source, "fingerprint", "")),
    }


def check_state(
    saved: Mapping[str, Any], source: Source, *, batch_size: int, seed: int, shuffle: bool = True
) -> int:
    """Checks that a resumed run goes on with the data of the interrupted one.

    Args:
        saved: What `state` gave when the checkpoint was written.
        source: The source in use now, and so for the arguments that follow.
        batch_size: Global batch size.
        seed: The order's seed.
        shuffle: Whether epochs are permuted.

    Returns:
        The batch number to `start` from.

    Raises:
        UserError: The two differ, so the run would not be the same.
    """
    names = {
        "length": "number of examples",
        "fingerprint": "list of examples",
        "batch_size": "batch_size",
        "seed": "seed",
        "shuffle": "shuffle",
    }
    next_batch = int(saved.get("next_batch", 0))
    now = state(source, next_batch, batch_size=batch_size, seed=seed, shuffle=shuffle)
    for field, name in names.items():
        if saved.get(field) != now[field]:
            raise UserError(
                f"data: the checkpoint's {name} is {saved.get(field)!r}, this run's is "
                f"{now[field]!r}; restore it, or start in a new workdir"
            )
    return next_batch


class _Order:
    """Maps rows of the endless stream to examples of the source."""

    def __init__(self, length: int, seed: int, shuffle: bool):
        self._length = length
        self._seed = seed
        self._shuffle = shuffle

    def __call__(self, positions: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        epochs, offsets = np.divmod(positions, self._length)
        if not self._shuffle:
            return offsets
        indices = np.empty_like(offsets)
        for number in np.unique(epochs):
            chosen = epochs == number
            indices[chosen] = _permutation(self._length, self._seed, int(number))[offsets[chosen]]
        return indices


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, number: int) -> Int64[np.ndarray, " n"]:
    """The order of one epoch, uniform over all orders.

    Sorting raw random words keeps the order the same under every NumPy version: the streams of
    bit generators are promised not to change, those of `Generator.permutation` are not.
    """
    words = np.random.PCG64(np.random.SeedSequence([seed, _SHUFFLE, number])).random_raw(length)
    return np.argsort(words, kind="stable")


class _Reader:
    """Reads, transforms and stacks the rows of a batch. Pickles without its threads."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        seed: int,
        on_corrupt: OnCorrupt,
        num_threads: int,
    ):
        skips(on_corrupt)  # before anything is read
        if num_threads < 1:
            raise UserError(f"num_threads is {num_threads}; give at least 1")
        self._source = source
        self._transform = transform
        self._seed = seed
        self._on_corrupt = on_corrupt
        self._num_threads = num_threads
        self._make_pool()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)
        self._make_pool()

    def _make_pool(self) -> None:  # Its threads start with the first batch.
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="vljax-read")

    def __call__(
        self, positions: Int64[np.ndarray, " b"], indices: Int64[np.ndarray, " b"]
    ) -> Batch:
        """The batch of the examples at `indices`, augmented as rows `positions`."""
        pairs = zip(positions.tolist(), indices.tolist(), strict=True)
        if self._num_threads == 1:
            rows = [self._row(*pair) for pair in pairs]
        else:
            rows = list(self._pool.map(lambda pair: self._row(*pair), pairs))
        return _stack(rows)

    def _row(self, position: int, index: int) -> dict[str, Any]:
        length = len(self._source)
        tried = ((index + i) % length for i in range(min(length, MAX_SUBSTITUTIONS)))
        read, example = next(readable(self._source, self._on_corrupt, places=tried))
        try:
            rng = np.random.default_rng([self._seed, _AUGMENT, position])
            fields = self._transform(example, rng)
        except Exception as error:
            error.add_note(f"in the transform of example {read} (row {position})")
            raise
        return {**fields, "index": np.int64(read), "substituted": np.bool_(read != index)}


def _stack(rows: list[dict[str, Any]]) -> Batch:
    """Stacks the array and number fields, which all rows must have in one shape."""
    batch = {}
    for row in rows:
        if row.keys() != rows[0].keys():
            name = sorted(row.keys() ^ rows[0].keys())[0]
            raise UserError(f"field {name!r} comes with some examples only; give it with all")
    for name, first in rows[0].items():
        if not isinstance(first, np.ndarray | np.generic | bool | int | float):
            continue
        values = [np.asarray(row[name]) for row in rows]
        if values[0].dtype.kind not in "biufc":
            continue
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            shown = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise UserError(
                f"field {name!r} has shapes {shown} in one batch; let the transform give it one "
                "shape (vljax.data.pictures.images.image_transform does for images) or leave it out"
            )
        batch[name] = np.stack(values)
    return batch


def _offsets(
    source: Source, batch_size: int, rows: Sequence[int] | np.ndarray | None
) -> Int64[np.ndarray, " b"]:
    """The rows to read of a global batch."""
    if not len(source):
        raise UserError("the data source holds no example; check its path")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    offsets = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)
    if not np.isin(offsets, np.arange(batch_size)).all() or (np.diff(offsets) < 1).any():
        raise UserError(
            f"rows are {offsets.tolist()} of a batch of {batch_size}; give some of its numbers, in "
            "rising order"
        )
    return offsets


def _threads(num_workers: int) -> int:
    """The cores this process may use, shared out over the workers."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(16, max(1, cores // max(1, num_workers)))


def _iterate(dataset: grain.MapDataset[Batch], num_workers: int, prefetch: int) -> Batches:
    """Reads a data set of batches in order, ahead of its use."""
    if num_workers < 0 or prefetch < 0:
        raise UserError(f"num_workers is {num_workers} and prefetch {prefetch}; give at least 0")
    # Grain reads its options from command-line flags, which need not have been parsed, and adds
    # lines of its own to the messages of our errors unless told not to.
    for name in flags.FLAGS:
        if name.startswith("grain_"):
            flags.FLAGS[name].present = True
    grain.config.update("py_traceback_filtering", "off")
    if not num_workers:
        # Two batches in flight let the pool start the next one while the last rows of the
        # present one are being read.
        options = grain.ReadOptions(num_threads=min(2, prefetch), prefetch_buffer_size=prefetch)
        return Batches(iter(dataset.to_iter_dataset(options)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ahead = max(1, prefetch)
    workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=ahead)
    parallel = dataset.to_iter_dataset(options).mp_prefetch(workers, worker_init_fn=_start_worker)
    if not _has_shared_memory():
        copied = grain.experimental.DatasetOptions(min_shm_size=_FOR_EVER)
        parallel = grain.experimental.WithOptionsIterDataset(parallel, copied)
    return Batches(iter(parallel))


def _has_shared_memory() -> bool:
    try:
        return shutil.disk_usage("/dev/shm").free >= _MIN_SHARED_MEMORY
    except OSError:  # Systems without that folder do not limit shared memory by its size.
        return True


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Makes a worker live exactly as long as the process that started it.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group. The main process answers them
    and may still need batches for the step it is in, so workers leave both to it. Should it be
    killed outright, nobody is left to stop them: they watch for that themselves.
    """
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="vljax-parent-watch", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
