"""The memory that this process holds: large blocks go back to the system when they are freed."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

LARGE = 1 << 20
"""Bytes from which a block is taken from the system and given back to it by itself."""
_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>


@functools.cache
def apart() -> bool:
    """Have the C library keep large blocks apart from small ones; whether it does.

    By itself it stops doing so once a large block was freed. What is kept for the backward pass
    then comes to lie in the holes that larger blocks left, which grows the heap by a third of what
    is kept. MALLOC_MMAP_THRESHOLD_, where it is set, decides instead.
    """
    told = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    if told.isdigit():
        return int(told) <= LARGE
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        return bool(library.gnu_get_libc_version and library.mallopt(_THRESHOLD, LARGE))
    except (OSError, AttributeError):
        return False
