"""What the doors set for their process."""

import ctypes
import gc
import subprocess
import sys

import pytest

from vljax import process

STEPS = """
import ctypes, resource, sys, threading
from vljax.process import keep_house

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def steps():
    "Ten times a buffer of 80 MiB, written to."
    for _ in range(10):
        buffer = libc.malloc(80 * 2**20)
        ctypes.memset(buffer, 1, 80 * 2**20)
        libc.free(buffer)

if sys.argv[1] == "kept":
    keep_house()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def on_glibc():
    try:
        return bool(ctypes.CDLL(None).gnu_get_libc_version)
    except (OSError, AttributeError, TypeError):
        return False  # no such library, or no glibc


@pytest.mark.skipif(not on_glibc(), reason="another C library keeps memory as it likes")
def test_a_buffer_is_faulted_in_once_instead_of_in_every_step():
    def faults(how):
        command = [sys.executable, "-c", STEPS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # A page is 4 KiB, or 2 MiB where the kernel gives huge ones.
    assert faults("kept") < 0.2 * faults("left")


def test_other_c_libraries_are_left_alone(monkeypatch):
    asked = []

    class Other:
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    thresholds = gc.get_threshold()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Other())
    try:
        process.keep_house()
        assert gc.get_threshold() == (10_000, 10, 10)
    finally:
        gc.set_threshold(*thresholds)
    assert asked == ["gnu_get_libc_version"]
