"""Paddle's weights: pickles of NumPy arrays, in each of the variants that Paddle and PASSL write.

A ``.pdparams`` file is a dictionary from names to arrays, or one that holds it beside other things. ``paddle.load``
runs what a file tells it to; this reader runs nothing and builds nothing but arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clip_core import pickled_arrays, pickles
from clip_core.buffers import BFLOAT16, Buffer, Content, Tensor, checked_name, checked_shape
from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from clip_core.pickled_arrays import Array
from clip_core.pickles import Rules, Unbuilt
from converters import states

# The manifest is a text that the pickle pushes and pops again, before anything else: readers pass over it.
MANIFEST_MARK = "triclip manifest "

_SLICES = "UnpackBigParamInfor@@"  # the entry that says how Paddle cut arrays above 1 GiB into slices


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is a pickle of protocol 2 or above."""
    return start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read(data: Buffer) -> Content:
    """The arrays of a ``.pdparams`` file.

    Raises:
        CheckpointError: the pickle is damaged, or does not hold named arrays as `states` looks for them.
    """
    stream, manifest = _split_manifest(data)
    loaded = pickles.load(stream, Rules(pickles.PYTHON_OPERATIONS, pickled_arrays.find))
    state = states.find(loaded, _array_of, _fault)
    tensors = _join_slices(state.tensors, state.entries.get(_SLICES, {}), len(data))
    return Content("pdparams", tensors, manifest, state.entry)


def write(path: Path, tensors: Mapping[str, Tensor], manifest: str) -> None:
    """Write a pickle, protocol 4, of {name: array}, as ``paddle.load`` reads it; equal weights give equal bytes.

    Names that all start with ``model.``, which are PASSL's, go under ``state_dict`` as its trainer saves them.
    """
    nested = all(name.startswith("model.") for name in tensors)
    with open(path, "wb") as file:
        file.write(b"\x80\4" + _text(MANIFEST_MARK + manifest) + b"0")
        file.write(b"}" + _text("state_dict") + b"}(" if nested else b"}(")
        for name, tensor in tensors.items():
            file.write(_text(name) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R")
            shape = b"".join(b"J" + struct.pack("<i", size) for size in tensor.shape)
            file.write(b"(K\1(" + shape + b"tcnumpy\ndtype\n" + _text(tensor.dtype.str[1:]) + b"\x89\x88\x87R")
            file.write(b"(K\3" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
            file.write(b"\x89\x8e" + struct.pack("<Q", tensor.nbytes))
            file.write(tensor.data())
            file.write(b"tb")
        file.write(b"us." if nested else b"u.")


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _split_manifest(data: Buffer) -> tuple[memoryview, str | None]:
    """The pickle without its manifest, and the manifest."""
    view = memoryview(data)
    mark = MANIFEST_MARK.encode()
    if data[2:3] != b"X" or data[7 : 7 + len(mark)] != mark:
        return view, None
    end = 7 + int.from_bytes(data[3:7], "little")
    if data[end : end + 1] != b"0":
        raise CheckpointError("the manifest in the pickle is damaged or cut short.")
    try:
        return view[end + 1 :], data[7 + len(mark) : end].decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("the manifest is not UTF-8.") from error


def _array_of(value: Any) -> np.ndarray | None:
    value = _unnamed(value)
    if type(value) is not Array or value.values is None:
        return None
    # Paddle stores bfloat16 as uint16.
    return value.values.view(BFLOAT16) if value.values.dtype == np.uint16 else value.values


def _fault(value: Any) -> str | None:
    value = _unnamed(value)
    if type(value) is Array and value.values is None:
        return f"an array of the pickle {value.fault}."
    if type(value) is not Unbuilt:
        return None
    if value.name == "eval":  # tensors of the static graph
        remedy = "If you trust this file, load it with Paddle and save layer.state_dict() of a dynamic-graph layer."
    else:
        remedy = "Save layer.state_dict() instead of a whole object, if you trust this file."
    return f"the pickle refers to {value}, which weights files have no use for; it was not run. {remedy}"


def _unnamed(value: Any) -> Any:
    """A value that may be paired with Paddle's own name for it, without the name."""
    return value[1] if type(value) is tuple and len(value) == 2 and type(value[0]) is str else value


def _join_slices(tensors: Weights, table: Any, size: int) -> Weights:
    """The arrays that Paddle cut into flat slices, whole again; each slice of a file of ``size`` bytes is used once."""
    if type(table) is not dict:
        raise CheckpointError(f"the entry {_SLICES} is not a dictionary.")
    joined = dict(tensors)
    made = 0
    for name, entry in table.items():
        checked_name(name)
        if type(entry) is not dict or type(entry.get("slices")) is not list:
            raise CheckpointError(f"the entry {name} of {_SLICES} is not a list of slices.")
        shape = checked_shape(entry.get("OriginShape"), name)
        slices: list[np.ndarray] = []
        for part in entry["slices"]:
            if type(part) is not str or part not in joined or joined[part].ndim != 1:
                raise CheckpointError(f"the slices of {name} are not all there.")
            slices.append(joined.pop(part))
        if len({part.dtype for part in slices}) != 1 or sum(part.size for part in slices) != prod(shape):
            raise CheckpointError(f"the slices of {name} do not make an array of shape {shape}.")
        if name in joined:
            raise CheckpointError(f"the file has {name} whole and in slices.")
        made += sum(part.nbytes for part in slices)
        if made > size:  # slices of the same bytes
            raise CheckpointError("the slices of arrays are together larger than the file.")
        joined[name] = np.concatenate(slices).reshape(shape)
    return joined
