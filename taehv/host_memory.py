"""What a process does with host memory that it has freed."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEPT = 2**30
_HEAP = 2**26
"""Bytes of the heaps that glibc makes for threads."""


def keep_freed_memory() -> None:
    """Keep what is freed for the next step, up to a GiB, instead of giving it back to the system.

    A training step on a CPU frees its activations and needs as many for the next one. By its
    defaults glibc hands them back, and the system gives them anew page by page, each zeroed, in
    tens of thousands of page faults a step. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _KEPT)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
    # A thread's heap that is empty is given up all the same, unless that would leave less than
    # this.
    mallopt(_M_TOP_PAD, 2 * _HEAP)
