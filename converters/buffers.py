"""Bytes of a file, in memory or mapped, and the tensors that are views of them."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from clip_core.architecture import Shape
from clip_core.errors import CheckpointError
from clip_core.naming import Weights

PIECE_BYTES = 1 << 24
MAX_DIMENSIONS = 8

# NumPy has no bfloat16; a record of one field keeps its bits apart from integers until `from_bfloat16`.
BFLOAT16 = np.dtype([("bits", "<u2")])

Buffer = bytes | mmap.mmap


@dataclass(frozen=True)
class Content:
    """What a reader finds in a file: views of its bytes under the file's own names, and its manifest's text.

    The dtypes are those of the file, `BFLOAT16` among them.
    """

    container: str
    tensors: Weights
    manifest: str | None = None


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: ``array`` (any strides) as ``dtype``. The cast happens when the bytes are asked for."""

    array: np.ndarray
    dtype: np.dtype
    trainable: bool = True

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @cached_property
    def nbytes(self) -> int:
        return self.array.size * self.dtype.itemsize

    def values(self) -> np.ndarray:
        """The array in C order and the dtype to be written; a copy only where it has to be."""
        return np.asarray(self.array, self.dtype, order="C")

    def data(self) -> memoryview:
        """The bytes of `values`."""
        return as_bytes(self.values())


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def sha256(array: np.ndarray) -> str:
    """The SHA-256 of an array's bytes in C order, as 64 hexadecimal digits."""
    return hashlib.sha256(as_bytes(np.asarray(array, order="C"))).hexdigest()


def map_file(path: Path) -> Buffer:
    """The bytes of a file of our own, mapped: nothing else writes to it, and its pages can be let go of."""
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return b""


def release(buffer: Buffer) -> None:
    """Let go of the pages of a mapped file; they come back from the file when they are read again."""
    if isinstance(buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.madvise(mmap.MADV_DONTNEED)


def pieces(buffer: Buffer, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
    """The bytes from ``start`` to ``stop`` in pieces; of a mapped file, one at a time stays in memory."""
    stop = len(buffer) if stop is None else stop
    view = memoryview(buffer)
    for position in range(start, stop, PIECE_BYTES):
        yield view[position : min(position + PIECE_BYTES, stop)]
        release(buffer)


def checked_shape(shape: object, name: str) -> Shape:
    """``shape`` as a tuple of whole numbers of at least 0, at most `MAX_DIMENSIONS` of them.

    Raises:
        CheckpointError: it is anything else.
    """
    if not isinstance(shape, (tuple, list)) or any(type(size) is not int or size < 0 for size in shape):
        raise CheckpointError(f"the shape of {name} is {shape!r:.100}; it must be whole numbers of at least 0.")
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{name} has {len(shape)} dimensions; at most {MAX_DIMENSIONS} are read.")
    return tuple(shape)


def view(buffer: Buffer | memoryview, dtype: np.dtype, shape: Shape, offset: int = 0) -> np.ndarray:
    """A read-only array of ``shape`` over the bytes from ``offset``, which the caller has checked to be there."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.frombuffer(buffer, dtype, prod(shape), offset).reshape(shape)


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """A `BFLOAT16` array as float32: exact, since a bfloat16 is the upper half of a float32."""
    wide = array["bits"].astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)
