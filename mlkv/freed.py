"""Freed memory: whether the C library keeps it for the next allocations or returns it to the system. glibc alone."""

from __future__ import annotations

import ctypes
from contextlib import suppress

KEPT = 32 * 2**20
"""Bytes from which on glibc takes a block from the system and returns it when it is freed; no threshold can be set
higher."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of options in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, for its next allocations: it gives large blocks back, and the
    kernel then clears their pages anew at every step. That took 8 to 15 % of the processor time of the quickstart's
    trainings (measured; their peak memory stays). Nothing happens where the library is not glibc."""
    with suppress(AttributeError, OSError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(_MMAP_THRESHOLD, KEPT)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return to the system what this process has freed and the C library kept, as far as it can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
