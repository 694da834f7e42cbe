"""Changes to the bytes of a valid file: blind ones, and ones that know the format and repair its checksums.

A mutation takes the bytes of a seed, a generator and the other seeds of its format, and gives the bytes of a new file.
Equal generators give equal files.
"""

from __future__ import annotations

import bz2
import copy
import hashlib
import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import yaml

Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
"""Numbers at which lengths and offsets go wrong."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "a", "\0", "\x1b]0;x\x07", "a\nb", "../../etc/passwd", "\ud800", "{}", "9" * 5000, "module." * 50),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": {"a": {"a": []}}}, [0] * 20, "x" * 3000),
)
"""What takes the place of a value in a document."""


def blind(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """One to four changes that know nothing of the format."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        generator.choice(_BLIND)(changed, generator, others)
    return bytes(changed)


def _span(data: bytearray, generator: random.Random) -> tuple[int, int]:
    """A part of the data, mostly a short one."""
    start = generator.randrange(len(data) + 1)
    length = generator.choice((1, 2, 4, 8, 16, 64, generator.randint(0, max(1, len(data)))))
    return start, min(len(data), start + length)


def _flip(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    if data:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)


def _bytes(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    start, end = _span(data, generator)
    data[start:end] = generator.choice((bytes(end - start), b"\xff" * (end - start), generator.randbytes(end - start)))


def _cut(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    del data[generator.randrange(len(data) + 1) :]


def _delete(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    start, end = _span(data, generator)
    del data[start:end]


def _insert(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    start, _ = _span(data, generator)
    data[start:start] = generator.randbytes(generator.choice((1, 2, 4, 8, 64)))


def _duplicate(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    start, end = _span(data, generator)
    data[start:start] = data[start:end] * generator.choice((1, 2, 16))


def _splice(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    other = generator.choice(others)
    start = generator.randrange(len(data) + 1)
    data[start:] = other[min(start, len(other)) :] if generator.random() < 0.5 else other[_at(other, generator) :]


def _at(data: bytes, generator: random.Random) -> int:
    return generator.randrange(len(data) + 1)


def _length(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    """A number that may be a length or an offset becomes one at which arithmetic goes wrong."""
    size = generator.choice((1, 2, 4, 8))
    if len(data) >= size:
        start = generator.randrange(len(data) - size + 1)
        order = generator.choice(("little", "big"))
        data[start : start + size] = (generator.choice(INTERESTING) % (1 << 8 * size)).to_bytes(size, order)


def _decimal(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    """A number that is written in digits becomes another one."""
    found = list(re.finditer(rb"[0-9]+", data))
    if found:
        match = generator.choice(found)
        data[match.start() : match.end()] = str(generator.choice((*INTERESTING, 10**30, -1))).encode()


def _nest(data: bytearray, generator: random.Random, others: Sequence[bytes]) -> None:
    """Brackets without end, which a parser of text may follow as deep as they go."""
    start = generator.randrange(len(data) + 1)
    data[start:start] = generator.choice((b"[", b"{", b'{"a":', b"(", b"- ")) * generator.choice((10, 2_000, 200_000))


_BLIND = (_flip, _bytes, _cut, _delete, _insert, _duplicate, _splice, _length, _decimal, _nest)


def document(value: Any, generator: random.Random) -> Any:
    """A copy of plain data in which up to three places hold something else."""
    holder = {"root": copy.deepcopy(value)}
    for _ in range(generator.randint(1, 3)):
        places = list(_places(holder))
        container, key = generator.choice(places)
        action = generator.random()
        if action < 0.6:
            container[key] = copy.deepcopy(generator.choice(VALUES))
        elif action < 0.75 and container is not holder:
            del container[key]
        elif action < 0.9:
            other, its_key = generator.choice(places)
            container[key] = copy.deepcopy(other[its_key])
        elif isinstance(container, dict) and container is not holder:
            container[generator.choice(("", "x", "__metadata__", "a.b", f"{key} "))] = container.pop(key)
        else:
            nested: Any = container[key]
            for _ in range(generator.choice((3, 50, 100))):
                nested = [nested]
            container[key] = nested
    return holder["root"]


def _places(value: Any) -> list[tuple[Any, Any]]:
    found = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        for key in container if isinstance(container, dict) else range(len(container)):
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


def json_document(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A JSON file with other values."""
    return json.dumps(document(json.loads(data), generator)).encode()


def json_lines(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A file of one JSON document a line, one of them with other values."""
    lines = data.splitlines()
    place = generator.randrange(len(lines))
    lines[place] = json_document(lines[place], generator, others)
    return b"\n".join(lines) + b"\n"


def yaml_document(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A YAML file with other values."""
    return yaml.safe_dump(document(yaml.safe_load(data), generator), allow_unicode=True).encode("utf-8", "replace")


def safetensors_header(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A safetensors file whose header says something else and has the right length."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(document(json.loads(data[8 : 8 + size]), generator)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def manifest(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A safetensors file whose manifest says something else under its right digest."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "triclip" not in header.get("__metadata__", {}):
        return blind(data, generator, others)
    body = json.loads(header["__metadata__"]["triclip"])
    del body["sha256"]
    body = document(body, generator)
    if isinstance(body, dict):
        body["sha256"] = hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).hexdigest()
    header["__metadata__"]["triclip"] = json.dumps(body, separators=(",", ":"))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def zip_members(change: Mutation = blind) -> Mutation:
    """A change of one member of a zip archive, whose checksums and sizes are right again."""

    def mutate(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        place = generator.randrange(len(members))
        if generator.random() < 0.7:  # what describes the tensors, rather than their numbers
            place = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), place)
        name, content = members[place]
        members[place] = name, change(content, generator, [content])
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in members:
                archive.writestr(zipfile.ZipInfo(name), content)
        return target.getvalue()

    return mutate


def bz2_content(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """Blind changes to what is compressed."""
    return bz2.compress(blind(bz2.decompress(data), generator, [bz2.decompress(other) for other in others]))


def pickle_operations(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A pickle some of whose operations are gone, twice there, moved, or other ones."""
    parts = _operations(data)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(parts))
        action = generator.randrange(4)
        if action == 0:
            del parts[place]
        elif action == 1:
            parts.insert(place, generator.choice(parts))
        elif action == 2:
            other = generator.randrange(len(parts))
            parts[place], parts[other] = parts[other], parts[place]
        else:
            parts[place] = generator.choice(_SMALL_OPERATIONS)
        if not parts:
            break
    return b"".join(parts)


def pickle_bombs(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A pickle with a value that is deep, or whose text is astronomically long, somewhere inside."""
    parts = _operations(data)
    depth = generator.choice((30, 900, 20_000))
    bomb = generator.choice(
        (
            b")r\xff\xff\0\0" + b"j\xff\xff\0\0\x86r\xff\xff\0\0" * 40,
            b"]r\xff\xff\0\0" + b"(j\xff\xff\0\0j\xff\xff\0\0lr\xff\xff\0\0" * 40,
            b")" + b"\x85" * depth,
            b"(" * depth + b"t" * depth,
            b"]" * depth + b"a" * (depth - 1),
            b"X" + struct.pack("<I", 1 << 16) + b"a" * (1 << 16) + b"r\xff\xff\0\0" + b"0j\xff\xff\0\0" * 500,
        )
    )
    parts.insert(generator.randrange(1, len(parts) + 1), bomb)
    return b"".join(parts)


_SMALL_OPERATIONS = (b"(", b")", b"}", b"]", b"N", b"\x88", b"t", b"\x85", b"\x86", b"R", b"b", b"u", b"s", b"a", b"e")
_SMALL_OPERATIONS += (b"0", b"h\0", b"q\0", b"Q", b"K\xff", b"\x8a\x01\xff", b"J\xff\xff\xff\xff", b"X\0\0\0\0", b".")


def _operations(data: bytes) -> list[bytes]:
    """The operations of a valid pickle; what follows its end, or cannot be read, is one part."""
    starts = []
    try:
        for _, _, position in pickletools.genops(data):
            starts.append(position)
    except Exception:  # a seed may hold what this parser does not take
        pass
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)])] or [data]


def png_chunks(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A PNG with one changed chunk whose checksum is right."""
    chunks, position = [], 8
    while position + 12 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    place = generator.randrange(len(chunks))
    kind, content = chunks[place]
    if kind == b"IDAT" and generator.random() < 0.5:
        content = zlib.compress(blind(zlib.decompress(content), generator, [content]))
    else:
        content = blind(content, generator, [content])
    chunks[place] = kind, content
    if generator.random() < 0.2:
        chunks.insert(place, generator.choice(chunks))
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def tar_headers(data: bytes, generator: random.Random, others: Sequence[bytes]) -> bytes:
    """A tar file with one changed header whose checksum is right."""
    changed = bytearray(data)
    headers = [start for start in range(0, len(data) - 511, 512) if data[start + 257 : start + 262] == b"ustar"]
    start = generator.choice(headers)
    field = generator.choice(_TAR_FIELDS)
    offset, size = field
    numbers = (b"\xff" * (size - 1) + b"\xfe", b"\x80" + b"\xff" * (size - 1), b"7" * (size - 1) + b"\0", bytes(size))
    changed[start + offset : start + offset + size] = generator.choice((*numbers, generator.randbytes(size)))
    header = changed[start : start + 512]
    header[148:156] = b" " * 8
    changed[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


_TAR_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 12))
