"""Memory that stays with the process, for speed on a CPU."""

import ctypes
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Numbers of the settings in glibc's malloc.h."""
_KEPT_BYTES = 2**31 - 1
"""Free memory at the end of the heap that is kept at most, the largest that the setting takes."""


def keep_freed_memory() -> None:
    """Let the C library keep large blocks that are freed, where it is glibc; no effect elsewhere.

    By itself it maps each block of more than 32 MiB anew and unmaps it when it is freed, so that
    every layer of a network on a CPU pays for fresh pages: an eighth to a quarter of its time. The
    setting holds for the whole process.
    """
    if mallopt := _of_the_c_library("mallopt"):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Give the system back what was freed and kept, so that it counts as free."""
    if malloc_trim := _of_the_c_library("malloc_trim"):
        malloc_trim(0)


def _of_the_c_library(name: str) -> Any:
    """A function of it; None where it is not glibc, or on another system."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None
