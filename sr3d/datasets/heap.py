"""Memory that is freed stays with the process that decodes images."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 256 << 20
_FROM_HEAP = 32 << 20  # the largest that glibc allows


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB of freed memory, and take blocks of up to 32 MB from it; elsewhere do nothing.

    Images come and go by the megabyte. By default each of them is mapped anew and every page of it faulted in, which
    takes half as long as decoding it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_MMAP_THRESHOLD, _FROM_HEAP)
