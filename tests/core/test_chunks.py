"""Chunks cover all rows once, on any number of threads, and a fault in one of them is raised."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from clip_core.chunks import CHUNK, in_chunks


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
def test_every_row_is_computed_once(rows, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(count))
    x = np.arange(rows * 1024, dtype=np.float32).reshape(rows, 1024)
    result, sizes, workers = np.ones((rows, 1), np.float64), [], set()

    def compute(x, result):
        sizes.append(x.nbytes)
        workers.add(threading.get_ident())
        result += x[:, :1]

    in_chunks(compute, x, result)
    assert np.array_equal(result, x[:, :1] + 1)
    assert max(sizes, default=0) <= CHUNK
    assert sum(sizes) == x.nbytes
    assert len(workers) <= count


def test_a_fault_in_another_thread_is_raised(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    main = threading.get_ident()

    def compute(x):
        if threading.get_ident() != main:
            raise ValueError("not here")

    with pytest.raises(ValueError, match="not here"):
        in_chunks(compute, np.zeros((2, CHUNK), np.uint8))
