"""NNabla's ``.protobuf`` files: the parameters of a network as Protocol Buffers, each packed into its own field.

The fields that matter are those of NNabla's ``nnabla.proto``; all others are passed over. How they lie in the file is
described at protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import prod

import numpy as np

from clip_core.buffers import MAX_DIMENSIONS, Buffer, Content, checked_name, checked_shape, view
from clip_core.errors import CheckpointError
from clip_core.naming import Weights

MAX_FIELDS = 1_000_000  # RN50x64, the largest official model, takes about 6,000

# The numbers of the fields.
_PARAMETER = 200  # of a file
_NAME, _SHAPE, _DATA = 1, 20, 100  # of a parameter
_SIZES = 1  # of a shape

_STARTS = (b"\xc2\x0c", b"\xa2\x06")  # a parameter, or a network that comes before the parameters

# What a field's content is made of.
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is one of parameters."""
    return start.startswith(_STARTS)


def read(data: Buffer | memoryview) -> Content:
    """The parameters of a file, in its order.

    Raises:
        CheckpointError: the file is damaged, or holds a parameter that NNabla does not write.
    """
    fields = _Fields()
    tensors: Weights = {}
    for number, content in fields.of(memoryview(data)):
        if number == _PARAMETER:
            name, array = _parameter(content, fields)
            if name in tensors:
                raise CheckpointError(f"the file has two parameters named {name}.")
            tensors[name] = array
    return Content("protobuf", tensors)


class _Fields:
    """Takes messages apart, and counts how many fields they have together."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The number and the bytes of each field of a message that has any: numbers are passed over."""
        position = 0
        while position < len(data):
            self.count += 1
            if self.count > MAX_FIELDS:
                raise CheckpointError(f"the file has more than {MAX_FIELDS} fields.")
            tag, position = _varint(data, position)
            kind = tag & 7
            if kind == _VARINT:
                size, start = 0, _varint(data, position)[1]
            elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                size, start = (8 if kind == _EIGHT_BYTES else 4), position
            elif kind == _BYTES:
                size, start = _varint(data, position)
            else:
                raise CheckpointError("the file is damaged: it has a field of a kind that there is not.")
            position = start + size
            if position > len(data):
                raise CheckpointError(f"the file is cut short: a field of {size} bytes does not fit into it.")
            if kind == _BYTES:
                yield tag >> 3, data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and where it ends."""
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise CheckpointError("the file is damaged or cut short: a number in it does not end.")


def _parameter(data: memoryview, fields: _Fields) -> tuple[str, np.ndarray]:
    """(its name, its values)"""
    parts: dict[int, memoryview] = {}
    for number, content in fields.of(data):
        if number in parts:
            raise CheckpointError("the file is damaged: a parameter says the same thing twice.")
        parts[number] = content
    try:
        name = checked_name(str(parts.get(_NAME, b""), "utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError("the file has a parameter whose name is not UTF-8.") from error
    sizes = [
        size
        for number, packed in fields.of(parts.get(_SHAPE, memoryview(b"")))
        if number == _SIZES
        for size in islice(_numbers(packed), MAX_DIMENSIONS + 1)
    ]
    shape, values = checked_shape(sizes, name), parts.get(_DATA, memoryview(b""))
    if len(values) != 4 * prod(shape):
        raise CheckpointError(f"{name} of shape {shape} takes {4 * prod(shape)} bytes; the file has {len(values)}.")
    return name, view(values, np.dtype("<f4"), shape)


def _numbers(packed: memoryview) -> Iterator[int]:
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value
