"""safetensors files: everything the header says is checked before a tensor is made, and tensors are views of the file.

The format is described in the README of github.com/huggingface/safetensors. Its library is not used: it copies every
tensor, has no bfloat16 for NumPy, and takes the last of two entries with one name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.buffers import (
    BFLOAT16,
    Buffer,
    Content,
    Tensor,
    checked_name,
    checked_shape,
    checked_sizes,
    shown,
    view,
)
from clip_core.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20  # a CLIP needs 0.1 MB, its merges up to 1 MB, the largest tokenizer.json about 16 MB
MANIFEST_KEY = "triclip"

_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES: dict[np.dtype, str] = {dtype: name for name, dtype in _DTYPES.items()}


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is a safetensors file: an 8-byte length, no text of 8 letters, then JSON."""
    return start[6:9] == b"\0\0{"


def read(data: Buffer) -> Content:
    """The tensors and the manifest of a safetensors file.

    Raises:
        CheckpointError: the header is not what the format asks for, or does not describe every byte exactly once.
    """
    header, start = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(text) is not str for text in metadata.values()):
        raise CheckpointError("the header's __metadata__ does not map names to texts.")
    entries = sorted(
        ((checked_name(name), *_entry(name, entry)) for name, entry in header.items()),
        key=lambda entry: (entry[3], entry[4]),
    )
    tensors = {}
    end = 0
    for name, dtype, shape, begin, stop in entries:
        if begin != end:
            raise CheckpointError(f"{name} starts at byte {begin} of the data, expected {end}: a hole or an overlap.")
        end = stop
        if start + end > len(data):
            raise CheckpointError(f"{name} ends at byte {start + end}; the file has {len(data)}: it is cut short.")
        tensors[name] = view(data, _DTYPES[dtype], shape, start + begin)
    if start + end != len(data):
        raise CheckpointError(f"{len(data) - start - end} bytes follow the last tensor; there must be none.")
    return Content("safetensors", tensors, metadata.get(MANIFEST_KEY))


def write(path: Path, tensors: Mapping[str, Tensor], manifest: str) -> None:
    """Write a safetensors file."""
    with open(path, "wb") as file:
        for piece in pieces(tensors, manifest):
            file.write(piece)


def pieces(tensors: Mapping[str, Tensor], manifest: str | None = None) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece; the order is by falling width of the numbers, so that tensors are aligned."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    # "format" is what transformers asks of a file before it loads it.
    metadata = {"format": "pt"} | ({} if manifest is None else {MANIFEST_KEY: manifest})
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.data()


def _header(data: Buffer) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER_BYTES:
        raise CheckpointError(f"the header is said to be {size} bytes long; at most {MAX_HEADER_BYTES} are read.")
    if 8 + size > len(data):
        raise CheckpointError(f"the header ends at byte {8 + size}; the file has {len(data)}: it is cut short.")
    try:
        header = json.loads(
            data[8 : 8 + size].decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header is not JSON: {error!s:.200}.") from error
    if not isinstance(header, dict):
        raise CheckpointError("the header is not a JSON object.")
    return header, 8 + size


def _entry(name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"the header's entry for {name} is not a dtype, a shape and data_offsets.")
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(f"{name} has dtype {shown(dtype)}; weights are F32, F16, BF16 or F64.")
    shape = checked_shape(entry["shape"], name)
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise CheckpointError(f"the data_offsets of {name} are not two whole numbers.")
    begin, end = checked_sizes(offsets, f"the list data_offsets of {name}")
    if end - begin != prod(shape) * _DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{name} of shape {shape} and dtype {dtype} takes {prod(shape) * _DTYPES[dtype].itemsize} bytes; "
            f"its data_offsets give it {end - begin}."
        )
    return dtype, shape, begin, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
