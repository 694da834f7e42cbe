"""Weights that are given away, so that a model that copies them needs the memory of one copy and not of two."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from clip_core.buffers import Memory
from clip_core.naming import Weights


def take(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """``weights[name]``, which is gone at the next call if the weights are `HandedOver`."""
    return weights.take(name) if isinstance(weights, HandedOver) else weights[name]


class HandedOver(dict[str, np.ndarray]):
    """Weights whose last owner takes them one by one; the memory of each goes when the next one is taken.

    Args:
        weights: are empty afterwards. What they held, nobody else may use.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        weights.clear()
        self._apart = _are_apart(self.values())  # tied weights are views of the same bytes
        self._taken: np.ndarray | None = None

    def take(self, name: str) -> np.ndarray:
        """The array of this name, which holds its values until the next call."""
        if self._taken is not None and self._apart:
            _let_go(self._taken)
        self._taken = self.pop(name)
        return self._taken


def _are_apart(arrays: Iterable[np.ndarray]) -> bool:
    """Whether no two arrays have a byte in common."""
    ranges = sorted(_addresses(array) for array in arrays if array.size)
    return all(stop <= start for (_, stop), (start, _) in pairwise(ranges))


def _addresses(array: np.ndarray) -> tuple[int, int]:
    """Of the first byte of an array, and behind its last one."""
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape)]
    start = array.ctypes.data
    return start + sum(min(step, 0) for step in steps), start + sum(max(step, 0) for step in steps) + array.itemsize


def _let_go(array: np.ndarray) -> None:
    """Give the system the pages back that an array has alone, if it is a view of `Memory`: they are zeros then."""
    base: object = array
    while hasattr(base, "base"):  # an array, or what stands for one between a strided view and its array
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    if not isinstance(owner, Memory) or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    first = np.frombuffer(owner, np.uint8).ctypes.data
    start, stop = (address - first for address in _addresses(array))
    start, stop = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if start < stop:
        owner.madvise(mmap.MADV_DONTNEED, start, stop - start)
