"""NumPy on all cores, in parts of arrays that stay in the processor's cache.

A function of NumPy computes on one thread and sends its result through memory. Several of them in a row are faster on
parts that the cache keeps from one to the next, and faster again where each core has parts of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

CHUNK = 2**18  # bytes of the largest array; several arrays of this size are in use at once


def threads() -> int:
    """How many threads to compute with on the CPU: what ``OMP_NUM_THREADS`` says, or one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(asked) if asked.isdecimal() and int(asked) else cores


def in_chunks(compute: Callable[..., object], *arrays: np.ndarray) -> None:
    """``compute(*parts)`` for equal parts of the arrays, one after the other along their first axes, until all is done.

    Args:
        compute: writes into parts of some of the arrays. What it computes of a row depends on that row alone.
        arrays: of one length; none of them need be contiguous.
    """
    rows = len(arrays[0])
    size = max(1, rows * CHUNK // max(1, *(array.nbytes for array in arrays)))
    workers = max(1, min(threads(), -(-rows // size)))

    def share(worker: int) -> None:
        for start in range(worker * size, rows, workers * size):
            compute(*(array[start : start + size] for array in arrays))

    others = [_pool(os.getpid(), threads()).submit(share, worker) for worker in range(1, workers)]
    share(0)
    for other in others:
        other.result()


@cache
def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """One for each process: threads do not survive a fork."""
    return ThreadPoolExecutor(size, "chunks")
