"""The classes in the devkit of ImageNet 2012: ``meta.mat``, a file of MATLAB's version 5.

Only what that one file needs is read: an array of records ``synsets`` with the fields ``ILSVRC2012_ID`` and ``WNID``.
The format is described in MathWorks' "MAT-File Format": elements of a type, a size and data, padded to 8 bytes. Some
are compressed by zlib, and some hold others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from clip_core.errors import ClipError

CLASSES = 1000
MOST_BYTES = 1 << 24  # inflated; the published file has about 600,000

_COMPRESSED, _MATRIX = 15, 14
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q", 16: "B", 17: "H"}
_RECORDS = 2  # the class of an array


def synsets(data: bytes, path: str) -> dict[int, str]:
    """The WordNet number of each ILSVRC2012_ID, which are those from 1 to `CLASSES` and those of groups of them.

    Args:
        path: of the file, for messages.

    Raises:
        ClipError: it is damaged or another file.
    """
    try:
        for kind, content in _elements(data[128:]):
            if kind == _COMPRESSED:
                kind, content = next(_elements(_inflated(content)))
            if kind == _MATRIX:
                found = _classes(content)
                if len({found[number] for number in range(1, CLASSES + 1)}) < CLASSES:
                    raise ValueError("two classes have one WordNet number")
                return found
    except (struct.error, zlib.error, StopIteration, ValueError, IndexError, KeyError) as error:
        raise ClipError(f"{path} is not the devkit's: {error!s:.200}; get it again.") from error
    raise ClipError(f"{path} has no array; get it again.")


def _classes(array: bytes) -> dict[int, str]:
    flags, _, _, width, names, *cells = _elements(array)
    if flags[1][0] != _RECORDS:
        raise ValueError("its first array is not one of records")
    length = int(_values(*width)[0])
    fields = [names[1][start : start + length].rstrip(b"\0").decode() for start in range(0, len(names[1]), length)]
    count = len(cells) // len(fields)
    found = {}
    for place in range(count):
        record = dict(zip(fields, cells[place * len(fields) : (place + 1) * len(fields)]))
        number, name = (_values_of(record[field][1]) for field in ("ILSVRC2012_ID", "WNID"))
        found[int(number[0])] = "".join(chr(int(code)) for code in name)
    return found


def _values_of(array: bytes) -> tuple[float, ...]:
    """The numbers in an array of numbers or letters."""
    _, _, _, values = _elements(array)
    return _values(*values)


def _values(kind: int, content: bytes) -> tuple[float, ...]:
    letter = _NUMBERS[kind]
    return struct.unpack(f"<{len(content) // struct.calcsize(letter)}{letter}", content)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<2I", data, place)
        if kind >> 16:  # short: type and size in two bytes each, and up to four bytes of content
            yield kind & 0xFFFF, data[place + 4 : place + 4 + (kind >> 16)]
            place += 8
            continue
        if place + 8 + size > len(data):
            raise ValueError(f"an element of {size} bytes is cut short")
        yield kind, data[place + 8 : place + 8 + size]
        place += 8 + size + (0 if kind == _COMPRESSED else -size % 8)


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data, MOST_BYTES)
    if not stream.eof:
        raise ValueError(f"an array has more than {MOST_BYTES} bytes, or is cut short")
    return content
