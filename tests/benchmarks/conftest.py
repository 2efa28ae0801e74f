"""How every comparison is timed."""

import os
import time

import numpy as np
import pytest


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it is installed: importing it takes seconds, so not at collection."""
    return pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def as_many_threads_for_torch():
    """XLA uses the cores that this process may run on; torch, where it is, gets as many."""
    try:
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def milliseconds():
    """The least time of each call; the calls take turns, so that load elsewhere meets all."""

    def measure(rounds, *calls):
        for call in calls:
            call()
        times = np.empty((rounds, len(calls)))
        for row in times:
            for column, call in enumerate(calls):
                start = time.perf_counter()
                call()
                row[column] = 1e3 * (time.perf_counter() - start)
        return times.min(axis=0)

    return measure
