"""Memory that a forward pass gives back is kept for the next one.

glibc returns large blocks to the system when they are freed and clears them page by page when they
are asked for again: on a CPU, a quarter to a half of a forward pass's time.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MOST = 2**30
# What glibc's own adjustment arrives at in a process that frees large blocks, as torch's do.
_ADJUSTED_MMAP, _ADJUSTED_TRIM = 32 * 2**20, 64 * 2**20


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory within the block, and give it back at its end.

    Does nothing without glibc, or where the user has tuned its allocator.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if platform.libc_ver()[0] != "glibc" or tuned:
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MOST)
    libc.mallopt(_M_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _ADJUSTED_MMAP)
        libc.mallopt(_M_TRIM_THRESHOLD, _ADJUSTED_TRIM)
        libc.malloc_trim(0)
