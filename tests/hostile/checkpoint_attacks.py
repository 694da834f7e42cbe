"""Builders of bad weights files, and a child process of bounded memory to read them in."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.architecture import Architecture
from clip_core.naming import parameters
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile

ROOT = Path(__file__).resolve().parents[2]
SMALL = Architecture(
    embed_dim=4,
    image=VisionTransformer(resolution=8, patch=4, width=8, layers=1, heads=1),
    text=TextTransformer(context_length=4, vocabulary_size=6, width=8, layers=1, heads=1),
)


def small_checkpoint() -> ModelFile:
    generator = np.random.default_rng(0)
    weights = {p.name: np.asarray(generator.standard_normal(p.shape), np.float32) for p in parameters(SMALL)}
    return ModelFile(weights, SMALL)


def child(code: str, megabytes: int = 2000, seconds: int = 60) -> str:
    """What ``code`` prints in a process that may take so much address space and processor time."""
    limits = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20}, {megabytes << 20}))\n"
        f"resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent))),
        "OPENBLAS_NUM_THREADS": "1",  # each thread would take address space
    }
    done = subprocess.run(
        [sys.executable, "-c", limits + textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=4 * seconds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def zip_bytes(members: Iterable[tuple[str | bytes, bytes, Mapping[str, Any]]]) -> bytes:
    """A zip archive, whose headers may lie.

    Each member has a name, its bytes as they lie in the file, and changes to its headers: flags, method, crc, size and
    offset for both or the directory's, local_name, local_size and local_method for the local one.
    """
    body, directory, count = b"", b"", 0
    for name, data, lies in members:
        count += 1
        raw = name.encode() if isinstance(name, str) else name
        local_name = lies.get("local_name", raw)
        local_name = local_name.encode() if isinstance(local_name, str) else local_name
        flags, crc = lies.get("flags", 0x800), lies.get("crc", zlib.crc32(data))
        offset = lies.get("offset", len(body))
        local = (lies.get("local_method", 0), 0, 33, crc, len(data), lies.get("local_size", len(data)))
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, *local, len(local_name), 0) + local_name + data
        central = (lies.get("method", 0), 0, 33, crc, len(data), lies.get("size", len(data)))
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, *central, len(raw), 0, 0, 0, 0, 0, offset)
        directory += raw
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def persistent_id(kind: str, key: str, count: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(count) + b"tQ"


def tensor(storage: bytes, size: Iterable[int], stride: Iterable[int], offset: int) -> bytes:
    """The operations that make a tensor of a storage, which its own operations make."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + integer(offset)
        + integers(size)
        + integers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state_pickle(entries: Mapping[str, bytes]) -> bytes:
    """A pickle of a dictionary, each value given by the operations that make it."""
    return b"\x80\2}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def state_archive(
    tensors: Mapping[str, tuple[str, int, tuple[int, ...], tuple[int, ...], int]],
    storages: Mapping[str, bytes] | None = None,
    members: Mapping[str, bytes] | None = None,
    deflated: tuple[str, ...] = (),
    pickle: bytes | None = None,
) -> bytes:
    """A state-dictionary archive: name -> storage type, its elements, size, stride and offset of the tensor."""
    entries = {
        name: tensor(persistent_id(kind, str(key), count), size, stride, offset)
        for key, (name, (kind, count, size, stride, offset)) in enumerate(tensors.items())
    }
    content = {"a/data.pkl": state_pickle(entries) if pickle is None else pickle}
    content |= {f"a/data/{key}": data for key, data in (storages or {}).items()} | dict(members or {})
    method = {"method": 8, "local_method": 8}
    return zip_bytes((name, data, method if name in deflated else {}) for name, data in content.items())


def varint(value: int) -> bytes:
    """A number of Protocol Buffers."""
    result = b""
    while value > 0x7F:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def field(number: int, content: bytes) -> bytes:
    """A field of Protocol Buffers whose content is bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content
