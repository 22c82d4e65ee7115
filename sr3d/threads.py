"""Compiled kernels on plain threads.

Plain threads and not Numba's `prange`: an OpenMP pool of its own would spin against torch's on the same cores, and
aborts in forked data-loading workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process (a fork has none of its parent's)."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sr3d")


def share(kernel: Callable[..., None], most: int, *arguments: Any) -> None:
    """Run `kernel(part, parts, *arguments)` for every part, on as many threads as torch uses.

    Args:
        kernel: Compiled with `nogil`; parts must not write to the same places.
        most: Largest sensible number of parts.
        arguments: Passed on.
    """
    threads = torch.get_num_threads()
    parts = max(1, min(4 * threads, most))
    if threads == 1 or parts == 1:
        kernel(0, 1, *arguments)
        return
    pool = _pool(os.getpid(), threads)
    for future in [pool.submit(kernel, part, parts, *arguments) for part in range(parts)]:
        future.result()
