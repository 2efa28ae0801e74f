"""How a process of ours keeps house: what the doors set before they begin.

Nothing here changes a result.
"""

import ctypes
import gc

# Of glibc's <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_house() -> None:
    """Keep freed memory for the next step, and look for garbage less often.

    A step on the CPU takes its buffers anew each time. glibc hands large ones back to the kernel,
    which fills them with zeros when they are touched again: a third of the time of a small step.
    Threads other than the main one get them so whatever their thresholds are, as their arenas hold
    no more than 64 MiB; hence one arena for all. What is larger than 256 MiB still goes back.

    Tracing makes objects by the million that all live on, and Python by default looks through
    them for garbage after every 700.
    """
    gc.set_threshold(10_000, 10, 10)
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # not a system with one C library for all
        return
    if hasattr(libc, "gnu_get_libc_version"):  # others give these numbers other meanings
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_MMAP_THRESHOLD, 2**28)
