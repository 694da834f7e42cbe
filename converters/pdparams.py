"""Paddle's weights: pickles of NumPy arrays, in each of the variants that Paddle and PASSL write.

A ``.pdparams`` file is a dictionary from names to arrays, or one that holds it under ``state_dict``. ``paddle.load``
runs what a file tells it to; this reader runs nothing and refuses everything that is no array.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from converters import pickles
from converters.buffers import BFLOAT16, Buffer, Content, Tensor, checked_shape, view
from converters.pickles import Buildable, Function, Rules

# The manifest is a text that the pickle pushes and pops again, before anything else: readers pass over it.
MANIFEST_MARK = "triclip manifest "

_DTYPES = {code: np.dtype(f"<{code}") for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1")}
_OPERATIONS = pickles.PLAIN_OPERATIONS | {
    *("FRAME", "MEMOIZE", "STACK_GLOBAL"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
# Entries beside the parameters: Paddle's own names for them, and how it cut arrays above 1 GiB into slices.
_NAME_TABLE = "StructuredToParameterName@@"
_SLICES = "UnpackBigParamInfor@@"


class _Dtype(Buildable):
    def __init__(self, code: str) -> None:
        self.dtype = _DTYPES[code]

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise CheckpointError("an array of the pickle is not little-endian; save it again on such a machine.")


class _Array(Buildable):
    values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or not isinstance(state[2], _Dtype) or self.values is not None:
            raise CheckpointError("an array of the pickle is not made of a shape, a dtype and bytes.")
        _, shape, kind, fortran, raw = state
        shape, dtype = checked_shape(shape, "an array"), kind.dtype
        if not isinstance(raw, (bytes, memoryview)) or len(raw) != prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"an array of shape {shape} and dtype {dtype} does not have as many bytes as it needs."
            )
        values = view(raw, dtype, shape[::-1] if fortran is True else shape)  # type: ignore[arg-type]
        self.values = values.T if fortran is True else values


def recognise(data: Buffer) -> bool:
    """Whether the file starts like a pickle of protocol 2 or above."""
    return data[:1] == b"\x80" and data[1:2] in (b"\2", b"\3", b"\4", b"\5")


def read(data: Buffer) -> Content:
    """The arrays of a ``.pdparams`` file.

    Raises:
        CheckpointError: the pickle holds anything but named arrays and plain values, or is damaged.
    """
    stream, manifest = _split_manifest(data)
    loaded = pickles.load(stream, Rules(_OPERATIONS, _find))
    if type(loaded) is not dict:
        raise CheckpointError("the file does not hold a dictionary of parameters; save layer.state_dict().")
    state = loaded.get("state_dict", loaded)
    if type(state) is not dict:
        raise CheckpointError("the entry state_dict is not a dictionary.")
    tensors: Weights = {}
    for name, value in state.items():
        if name in (_NAME_TABLE, _SLICES):
            continue
        if type(value) is tuple and len(value) == 2 and type(value[0]) is str:
            value = value[1]  # (Paddle's own name, array)
        if type(name) is not str or not isinstance(value, _Array) or value.values is None:
            raise CheckpointError(f"the entry {name!r:.200} is not a named array.")
        # Paddle stores bfloat16 as uint16.
        tensors[name] = value.values.view(BFLOAT16) if value.values.dtype == np.uint16 else value.values
    return Content("pdparams", _join_slices(tensors, state.get(_SLICES, {})), manifest)


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


def _find(module: str, name: str) -> Any:
    if (module, name) in _GLOBALS:
        return _GLOBALS[module, name]
    if name == "eval":  # tensors of the static graph
        remedy = "If you trust this file, load it with Paddle and save layer.state_dict() of a dynamic-graph layer."
    else:
        remedy = "Save layer.state_dict() instead of a whole object, if you trust this file."
    raise CheckpointError(
        f"the pickle refers to {module}.{name}, which weights files have no use for; it was not run. {remedy}"
    )


def _reconstruct(*arguments: Any) -> _Array:
    if len(arguments) != 3 or arguments[0] is not _Array:
        raise CheckpointError("an array of the pickle is not a plain array.")
    return _Array()


def _dtype(*arguments: Any) -> _Dtype:
    if not arguments or arguments[0] not in _DTYPES:
        raise CheckpointError(f"an array has dtype {arguments[0]!r:.50}; weights are float32, float16 or float64.")
    return _Dtype(arguments[0])


def _encode(*arguments: Any) -> bytes:
    """Bytes as protocol 2 writes them: a text of the same code points."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise CheckpointError("bytes of the pickle are not written as Latin-1.")
    return arguments[0].encode("latin-1")


def _bytes(*arguments: Any) -> bytes:
    if arguments:  # protocol 2 writes only empty bytes like this
        raise CheckpointError("bytes of the pickle are not written as Latin-1.")
    return b""


def _tuple(*arguments: Any) -> tuple[Any, ...]:
    if len(arguments) != 1 or type(arguments[0]) not in (tuple, list):
        raise CheckpointError("a tuple of the pickle is not made of a sequence.")
    return tuple(arguments[0])


def _ordered_dictionary(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise CheckpointError("an ordered dictionary of the pickle is not made empty.")
    return {}


_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): Function(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): Function(_reconstruct),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): Function(_dtype),
    ("_codecs", "encode"): Function(_encode),
    ("__builtin__", "bytes"): Function(_bytes),
    ("builtins", "tuple"): Function(_tuple),
    ("__builtin__", "tuple"): Function(_tuple),
    ("collections", "OrderedDict"): Function(_ordered_dictionary),
}


def _join_slices(tensors: Weights, table: Any) -> Weights:
    """The arrays that Paddle cut into flat slices, whole again."""
    if type(table) is not dict:
        raise CheckpointError(f"the entry {_SLICES} is not a dictionary.")
    joined = dict(tensors)
    for name, entry in table.items():
        if type(entry) is not dict or type(entry.get("slices")) is not list:
            raise CheckpointError(f"the entry {name!r:.200} of {_SLICES} is not a list of slices.")
        shape = checked_shape(entry.get("OriginShape"), f"{name!r:.200}")
        slices = [joined.pop(part) for part in entry["slices"] if type(part) is str and part in joined]
        whole = slices and len(slices) == len(entry["slices"])
        if not whole or any(part.ndim != 1 or part.dtype != slices[0].dtype for part in slices):
            raise CheckpointError(f"the slices of {name!r:.200} are not all there.")
        if sum(part.size for part in slices) != prod(shape) or name in joined:
            raise CheckpointError(f"the slices of {name!r:.200} do not make an array of shape {shape}.")
        joined[name] = np.concatenate(slices).reshape(shape)
    return joined
