"""Batches as a pure function of seed and number, under every way of reading them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vljax.data import pipeline
from vljax.data.source import CorruptExampleError, readable
from vljax.errors import UserError

ROOT = Path(__file__).parents[2]


class Numbers:
    """Example i holds i; those in `corrupt` cannot be read."""

    def __init__(self, length, corrupt=(), delay=0.0):
        self.length = length
        self.corrupt = frozenset(corrupt)
        self.delay = delay

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.delay)
        if index in self.corrupt:
            raise CorruptExampleError(f"example {index} cannot be read: number-{index}.png")
        return {"image": np.full((2, 2, 3), index % 256, np.uint8), "name": f"example {index}"}


def noisy(example, rng):
    """Carries the example through and adds a draw, so that augmentation shows in the data."""
    return {**example, "draw": rng.random(), "label": 3}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


def read(source, number, **options):
    options = {"batch_size": 4, "seed": 5, "transform": noisy, **options}
    with pipeline.batches(source, num_batches=number, **options) as iterator:
        return list(iterator)


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**40),
)
def test_every_epoch_reads_each_example_once(length, batch_size, seed):
    count = -(-3 * length // batch_size)
    got = read(Numbers(length), count, batch_size=batch_size, seed=seed, num_threads=1, prefetch=0)
    index = np.concatenate([batch["index"] for batch in got])
    assert index.dtype == np.int64
    for number in range(3):
        assert sorted(index[number * length : (number + 1) * length]) == list(range(length))
    for batch in got:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_epochs_and_seeds_differ_and_order_is_fair():
    def order(seed, number):
        return pipeline._permutation(64, seed, number).tolist()

    orders = [order(seed, number) for seed in range(4) for number in range(4)]
    assert len({tuple(o) for o in orders}) == 16
    # All six orders of three examples come equally often: chi-square with 5 degrees of freedom.
    seen = [tuple(pipeline._permutation(3, seed, 0)) for seed in range(3000)]
    counts = np.array([seen.count(o) for o in sorted(set(seen))])
    assert len(counts) == 6
    assert ((counts - 500) ** 2 / 500).sum() < 20.5


def test_order_is_pinned():
    """A checkpoint written today must mean the same data after any later change or upgrade."""
    assert pipeline._permutation(10, 0, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_unshuffled_order_repeats():
    index = np.concatenate([b["index"] for b in read(Numbers(5), 3, shuffle=False)])
    assert index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_processes_read_their_rows_of_what_one_reads():
    whole = read(Numbers(11), 6, batch_size=8)
    for rows in ([0, 1, 6, 7], [2, 3, 4, 5]):
        for part, batch in zip(read(Numbers(11), 6, batch_size=8, rows=rows), whole, strict=True):
            assert_same(part, {name: values[rows] for name, values in batch.items()})


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 10**9), length=st.integers(1, 30))
def test_resume_at_any_batch(start, length):
    options = {"num_threads": 1, "prefetch": 0}
    undisturbed = read(Numbers(length), 4, start=start, **options)
    for skipped in range(4):
        resumed = read(Numbers(length), 4 - skipped, start=start + skipped, **options)
        for one, other in zip(resumed, undisturbed[skipped:], strict=True):
            assert_same(one, other)


def test_threads_and_prefetch_never_change_the_data():
    expected = read(Numbers(13), 9, num_threads=1, prefetch=0)
    for threads, prefetch in ((1, 1), (2, 2), (8, 5), (3, 0)):
        got = read(Numbers(13), 9, num_threads=threads, prefetch=prefetch)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)


def no_children():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("workers", "shared_memory"), [(2, True), pytest.param(3, False, marks=pytest.mark.slow)]
)
def test_workers_never_change_the_data_and_end(workers, shared_memory, monkeypatch):
    monkeypatch.setattr(pipeline, "_has_shared_memory", lambda: shared_memory)
    source = Numbers(13, corrupt=[4])
    expected = read(source, 7, start=3, on_corrupt="skip")
    got = read(source, 7, start=3, on_corrupt="skip", num_workers=workers)
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other)
    assert sum(batch["substituted"].sum() for batch in got) > 0
    assert no_children()


def test_closing_in_the_middle_ends_the_workers():
    iterator = pipeline.batches(Numbers(13), batch_size=4, seed=0, transform=noisy, num_workers=2)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert no_children()
    assert list(iterator) == []
    iterator.close()


def test_fields():
    def transform(example, rng):
        assert example["name"].startswith("example")
        return {
            "image": example["image"],
            "text": "dropped",
            "objects": [1, 2],
            "nothing": None,
            "names": np.array(["dropped"]),
            "label": 3,
            "weight": 0.5,
            "flag": True,
            "vector": np.arange(3, dtype=np.int32),
            "index": -1,
        }

    (batch,) = read(Numbers(9), 1, transform=transform)
    shapes = {name: (value.dtype.name, value.shape) for name, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 2, 2, 3)),
        "label": ("int64", (4,)),
        "weight": ("float64", (4,)),
        "flag": ("bool", (4,)),
        "vector": ("int32", (4, 3)),
        "index": ("int64", (4,)),
        "substituted": ("bool", (4,)),
    }
    assert batch["index"].min() >= 0


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_example_stops_with_its_name(workers):
    iterator = pipeline.batches(
        Numbers(8, corrupt=[6]), batch_size=4, seed=0, transform=noisy, num_workers=workers
    )
    with pytest.raises(UserError, match=r"^example 6 cannot be read: number-6.png$"):
        list(zip(range(4), iterator, strict=False))
    assert no_children()


def test_corrupt_examples_are_replaced_by_the_next_and_counted():
    source = Numbers(8, corrupt=[6, 7, 2])
    got = read(source, 4, on_corrupt="skip", shuffle=False)
    index = np.concatenate([batch["index"] for batch in got])
    assert index.tolist() == [0, 1, 3, 3, 4, 5, 0, 0] * 2
    substituted = np.concatenate([batch["substituted"] for batch in got])
    assert substituted.tolist() == [i in source.corrupt for i in list(range(8)) * 2]
    for batch in got:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])


def test_nothing_readable_is_not_skipped_for_ever():
    for length in (5, 5000):
        with pytest.raises(UserError, match="check the storage"):
            read(Numbers(length, corrupt=range(length)), 1, on_corrupt="skip")


def test_the_first_readable_examples_keep_their_places():
    source = Numbers(8, corrupt=[0, 3])

    def found(*arguments, **how):
        read = list(readable(source, *arguments, **how))
        assert all(example["name"] == f"example {index}" for index, example in read)
        return [index for index, _ in read]

    assert found("skip") == [1, 2, 4, 5, 6, 7]
    assert found("skip", 3) == [1, 2, 4]
    assert found("skip", 9, places=(3, 7, 0, 5)) == [7, 5]
    assert found("stop", 2, places=(1, 2, 3)) == [1, 2]
    with pytest.raises(CorruptExampleError, match="example 3 "):
        found("stop", places=(1, 2, 3))
    with pytest.raises(UserError, match="none of the 2 examples from number 3 on can be read"):
        found("skip", places=(3, 0))
    with pytest.raises(UserError, match="choose 'stop' or 'skip'"):
        found("ignore")
    with pytest.raises(UserError, match="none of the 64 examples from number 1 on"):
        list(readable(Numbers(100, corrupt=range(1, 100)), "skip"))
    assert list(readable(Numbers(0), "skip")) == []


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 30), size=st.integers(1, 10))
def test_evaluation_covers_each_example_once(length, size):
    options = {"batch_size": size, "transform": noisy, "num_threads": 1, "prefetch": 0}
    got, seen = list(pipeline.epoch(Numbers(length), **options)), []
    for batch in got:
        assert batch["valid"].shape == (size,)
        assert batch["image"].shape == (size, 2, 2, 3)
        seen.extend(batch["index"][batch["valid"]])
    assert seen == list(range(length))
    assert len(got) == -(-length // size)


def test_evaluation_counts_no_substitute():
    source = Numbers(6, corrupt=[5, 1])
    got = list(pipeline.epoch(source, batch_size=4, transform=noisy, on_corrupt="skip"))
    valid = np.concatenate([b["index"][b["valid"]] for b in got])
    assert sorted(valid) == [0, 2, 3, 4]
    assert sum(b["substituted"][:2].sum() for b in got) == 2
    with pytest.raises(UserError, match="example 1 "):
        list(pipeline.epoch(source, batch_size=4, transform=noisy))


def test_state_survives_json_and_names_what_changed():
    source = Numbers(10)
    settings_ = {"batch_size": 4, "seed": 5}
    saved = json.loads(json.dumps(pipeline.state(source, 17, **settings_)))
    assert pipeline.check_state(saved, source, **settings_) == 17
    for change, word in (
        ({"source": Numbers(11)}, "number of examples is 10, this run's is 11"),
        ({"seed": 6}, "seed is 5"),
        ({"batch_size": 8}, "batch_size is 4"),
        ({"shuffle": False}, "shuffle is True"),
    ):
        arguments = {"source": source, **settings_, **change}
        with pytest.raises(UserError, match=word):
            pipeline.check_state(saved, **arguments)
    source.fingerprint = "other files"
    with pytest.raises(UserError, match="list of examples"):
        pipeline.check_state(saved, source, **settings_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rows": [1, 4]}, r"rows are \[1, 4\] of a batch of 4; give some of its numbers"),
        ({"rows": [1, 0]}, "in rising order"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -1}, "start is -1"),
        ({"on_corrupt": "ignore"}, "choose 'stop' or 'skip'"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"source": Numbers(0)}, "no example"),
    ],
)
def test_impossible_arguments_fail_at_once(options, message):
    arguments = {"source": Numbers(5), "batch_size": 4, "seed": 0, "transform": noisy}
    with pytest.raises(UserError, match=message) as caught:
        pipeline.batches(**{**arguments, **options})
    assert "\n" not in str(caught.value)


def test_fields_that_cannot_be_stacked_are_named():
    def ragged(example, rng):
        return {"image": np.zeros((int(rng.integers(1, 1000)), 2, 3), np.uint8)}

    def partial(example, rng):
        return {"image": example["image"], **({"extra": 1} if rng.random() < 0.5 else {})}

    with pytest.raises(UserError, match="'image' has shapes"):
        read(Numbers(50), 1, transform=ragged)
    with pytest.raises(UserError, match="'extra' comes with some"):
        read(Numbers(50), 5, transform=partial)


def test_error_in_a_transform_names_the_example():
    def wrong(example, rng):
        raise RuntimeError("bad")

    with pytest.raises(RuntimeError, match="bad") as caught:
        read(Numbers(5), 1, transform=wrong, shuffle=False)
    assert any("example" in note for note in caught.value.__notes__)


CHILD = """
import os, signal, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
import numpy as np
import multiprocessing
from vljax.data import pipeline
from vljax.data.scenes import Scenes
from vljax.data.pictures.images import image_transform

if __name__ == "__main__":
    # What a shell runs in the background ignores it, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    iterator = pipeline.batches(
        Scenes({scenes}), batch_size=8, seed=0, transform=image_transform(32), num_workers=2
    )
    next(iterator)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    {then}
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end_of(process, pids, seconds):
    code = process.wait(timeout=seconds)
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return code, [pid for pid in pids if alive(pid)]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("then", "send", "expected"),
    [
        ("[next(iterator) for _ in range(10**9)]", "SIGINT", {-signal.SIGINT}),
        ("[next(iterator) for _ in range(10**9)]", "SIGKILL", {-signal.SIGKILL}),
        pytest.param("sys.exit(3)", None, {3}, marks=pytest.mark.slow),
        pytest.param(
            "signal.signal(signal.SIGTERM, lambda *_: None); print('ready', flush=True);"
            " time.sleep(0.5); [next(iterator) for _ in range(20)]; sys.exit(0)",
            "SIGTERM",
            {0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["interrupt", "kill", "exit", "graceful"],
)
def test_no_worker_outlives_its_process(tmp_path, then, send, expected):
    script = tmp_path / "child.py"
    script.write_text(
        textwrap.dedent(CHILD).format(
            tests=str(Path(__file__).parent), root=str(ROOT), then=then, scenes=""
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            pids = [int(pid) for pid in process.stdout.readline().split()]
            assert len(pids) == 2, process.stderr.read()
            if "ready" in then:
                assert process.stdout.readline() == "ready\n"
            if send == "SIGKILL":
                process.kill()
            elif send:
                # As a terminal or a scheduler does: to the whole group at once.
                os.killpg(process.pid, getattr(signal, send))
            code, left = end_of(process, pids, 30)
            assert code in expected, process.stderr.read()
            assert not left
        finally:
            if process.poll() is None:
                process.kill()
