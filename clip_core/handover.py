"""Weights that are given away, so that a model that copies them needs the memory of one copy and not of two."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Mapping
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
        # The addresses of what was not let go of, between two that nothing has.
        places = sorted(_addresses(array) for array in self.values() if array.size)
        self._places = [(0, 0), *places, (sys.maxsize, sys.maxsize)]
        # Tied weights are views of the same bytes.
        self._apart = all(stop <= start for (_, stop), (start, _) in pairwise(self._places))
        self._taken: np.ndarray | None = None

    def take(self, name: str) -> np.ndarray:
        """The array of this name, which holds its values until the next call."""
        if self._taken is not None and self._taken.size and self._apart:
            self._let_go(self._taken)
        self._taken = self._aligned(self.pop(name))
        return self._taken

    def _aligned(self, array: np.ndarray) -> np.ndarray:
        """An array whose numbers are aligned, which a copy would need memory for: they move to the bytes before them.

        It is the array itself where they cannot.
        """
        start, stop = place = _addresses(array)
        moved = start - start % array.dtype.alignment
        memory = _memory_of(array)
        if memory is None or not self._apart or moved == start or stop - start != array.nbytes:
            return array
        index = self._places.index(place)
        first = np.frombuffer(memory, np.uint8).ctypes.data
        if moved < max(first, self._places[index - 1][1]):
            return array
        ctypes.memmove(moved, start, array.nbytes)
        self._places[index] = (moved, moved + array.nbytes)
        offset = array.ctypes.data - start + moved - first
        return np.ndarray(array.shape, array.dtype, memory, offset, array.strides)

    def _let_go(self, array: np.ndarray) -> None:
        """Give the system the pages of an array back, if it is a view of `Memory`: they are zeros then.

        A page that it shares goes with the last of its arrays, so that the large pages, which go as a whole, go, too.
        """
        start, stop = place = _addresses(array)
        index = self._places.index(place)
        del self._places[index]
        if (memory := _memory_of(array)) is None:
            return
        (_, before), (after, _) = self._places[index - 1 : index + 1]
        start = max(_page(start), _page(before + mmap.PAGESIZE - 1))
        stop = min(_page(stop + mmap.PAGESIZE - 1), _page(after))
        if start < stop:
            memory.madvise(mmap.MADV_DONTNEED, start - np.frombuffer(memory, np.uint8).ctypes.data, stop - start)


def _page(address: int) -> int:
    """Where the page with this address starts."""
    return address // mmap.PAGESIZE * mmap.PAGESIZE


def _addresses(array: np.ndarray) -> tuple[int, int]:
    """Of the first byte of an array, and behind its last one."""
    steps = [stride * (length - 1) for stride, length in zip(array.strides, array.shape)]
    start = array.ctypes.data
    return start + sum(min(step, 0) for step in steps), start + sum(max(step, 0) for step in steps) + array.itemsize


def _memory_of(array: np.ndarray) -> Memory | None:
    """What an array is a view of, if parts of it can be given back."""
    base: object = array
    while hasattr(base, "base"):  # an array, or what stands for one between a strided view and its array
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    return owner if isinstance(owner, Memory) and hasattr(mmap, "MADV_DONTNEED") else None
