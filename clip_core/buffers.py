"""Bytes of a file, in memory or mapped, and the tensors that are views of them."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from math import prod
from pathlib import Path

import numpy as np

from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from clip_core.parameters import Shape

PIECE_BYTES = 1 << 24
CACHED_BYTES = 1 << 18  # at once, which stay in the processor's cache
START_BYTES = 512  # of a file tell what kind of file it is
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40  # elements, far more than any file that is read has bytes
MAX_NAME_LETTERS = 1_000

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
    entry: str = ""  # the dictionary in the file that they are from, as "model.state_dict"; "" where there is no other


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

    def digest(self) -> str:
        """The SHA-256 of `values`, as 64 hexadecimal digits."""
        return sha256(self.array, self.dtype)


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def sha256(array: np.ndarray, dtype: np.dtype | None = None) -> str:
    """The SHA-256 of an array's bytes in C order, as 64 hexadecimal digits; as ``dtype``, by default its own."""
    dtype = array.dtype if dtype is None else dtype
    if array.flags.c_contiguous and array.dtype == dtype:
        return hashlib.sha256(as_bytes(array)).hexdigest()
    digest = hashlib.sha256()
    for rows in _rows(array):  # so that copies take no memory
        digest.update(as_bytes(np.asarray(rows, dtype, order="C")))
    return digest.hexdigest()


def threads() -> ThreadPoolExecutor:
    """A few threads for hashing, which does not hold Python's lock."""
    return ThreadPoolExecutor(4)


def equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays of one shape and dtype, in any axis order, have the same bits; without a copy of them."""
    pairs = zip(*(_rows(array.view(f"u{array.itemsize}")) for array in (first, second)))
    return all(np.array_equal(*pair) for pair in pairs)


def _rows(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces along its first axis."""
    array = array.reshape(array.shape or 1)
    count = max(1, CACHED_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), count):
        yield array[start : start + count]


class Memory(mmap.mmap):
    """Memory of this process alone, parts of which can be given back to the system."""


def read_whole(file: BufferedReader, size: int) -> Buffer:
    """The bytes of a file of at most ``size`` bytes from where it stands.

    Raises:
        MemoryError: there is not enough.
    """
    if not size or not hasattr(mmap, "MAP_PRIVATE"):
        return file.read(size)
    try:
        memory = Memory(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system that has none of them
            memory.madvise(mmap.MADV_HUGEPAGE)  # the system provides them in half of the time
    view, found = memoryview(memory), 0
    while count := file.readinto(view[found:]):
        found += count
    return memory if found == size else bytes(view[:found])  # somebody has cut the file


def map_file(path: Path) -> Buffer:
    """The bytes of a file of our own, mapped: nothing else writes to it, and its pages can be let go of."""
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return b""


def release(buffer: Buffer) -> None:
    """Let go of the pages of a mapped file; they come back from the file when they are read again."""
    if isinstance(buffer, mmap.mmap) and not isinstance(buffer, Memory) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.madvise(mmap.MADV_DONTNEED)


def pieces(buffer: Buffer, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
    """The bytes from ``start`` to ``stop`` in pieces; of a mapped file, one at a time stays in memory."""
    stop = len(buffer) if stop is None else stop
    view = memoryview(buffer)
    for position in range(start, stop, PIECE_BYTES):
        yield view[position : min(position + PIECE_BYTES, stop)]
        release(buffer)


def shown(value: object) -> str:
    """A value out of a stranger's file for a sentence: short, on one line, and made without looking into containers."""
    if isinstance(value, str):
        return repr(value if len(value) <= 100 else f"{value[:100]}...")
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    return f"an object of the type {type(value).__name__}"


def checked_name(name: object) -> str:
    """``name`` if it is one that a tensor may have.

    Raises:
        CheckpointError: it is no text, empty, longer than `MAX_NAME_LETTERS`, or has letters that cannot be printed.
    """
    if type(name) is not str:
        raise CheckpointError("a tensor has a name that is not a text.")
    if not 0 < len(name) <= MAX_NAME_LETTERS or not name.isprintable():
        raise CheckpointError(
            f"a tensor is named {shown(name)}; names are printable texts of 1 to {MAX_NAME_LETTERS} letters."
        )
    return name


def checked_shape(shape: object, name: str) -> Shape:
    """``shape`` as a tuple of at most `MAX_DIMENSIONS` whole numbers of at least 0, whose array could be in a file.

    Raises:
        CheckpointError: it is anything else.
    """
    sizes = checked_sizes(shape, f"the shape of {name}")
    # An array without elements takes no bytes, but NumPy counts the others of its sizes all the same.
    if prod(size for size in sizes if size) > MAX_SIZE:
        raise CheckpointError(f"the shape of {name} is {sizes}, more than any file holds.")
    return sizes


def checked_sizes(sizes: object, what: str) -> Shape:
    """``sizes`` as a tuple of at most `MAX_DIMENSIONS` whole numbers from 0 to `MAX_SIZE`.

    Raises:
        CheckpointError: it is anything else.
    """
    if not isinstance(sizes, (tuple, list)):
        raise CheckpointError(f"{what} is {shown(sizes)}; it must be whole numbers of at least 0.")
    if len(sizes) > MAX_DIMENSIONS:
        raise CheckpointError(f"{what} has {len(sizes)} dimensions; at most {MAX_DIMENSIONS} are read.")
    for size in sizes:
        if type(size) is not int or not 0 <= size <= MAX_SIZE:
            raise CheckpointError(
                f"{what} has {shown(size)} in it; it must be whole numbers of at least 0, and at most 2^40."
            )
    return tuple(sizes)


def view(buffer: Buffer | memoryview, dtype: np.dtype, shape: Shape, offset: int = 0) -> np.ndarray:
    """An array of ``shape`` over the bytes from ``offset``, which the caller has checked to be there."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.frombuffer(buffer, dtype, prod(shape), offset).reshape(shape)


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """A `BFLOAT16` array as float32: exact, since a bfloat16 is the upper half of a float32."""
    wide = array["bits"].astype(np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)
    return wide.view(np.float32)
