"""NumPy's arrays in a pickle: what `clip_core.pickles` makes of them, without calling anything of NumPy's pickling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from clip_core.buffers import checked_shape, shown, view
from clip_core.errors import CheckpointError
from clip_core.pickles import ORDERED_DICTIONARY, Buildable, Function, Unbuilt

_DTYPES = {code: np.dtype(f"<{code}") for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "b1")}


class _Dtype(Buildable):
    def __init__(self, code: str) -> None:
        self.code = code
        self.little_endian = True

    def build(self, state: Any) -> None:
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        self.little_endian = type(order) is str and order in ("<", "|")


class Array(Buildable):
    """An array, as soon as its state is set; one of numbers that are no weights has a fault instead."""

    values: np.ndarray | None = None
    fault = "is not a whole array"

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _Dtype or self.values is not None:
            raise CheckpointError("an array of the pickle is not made of a shape, a dtype and bytes.")
        _, shape, kind, fortran, raw = state
        if kind.code not in _DTYPES:
            self.fault = f"has dtype {shown(kind.code)}; weights are float32, float16 or float64"
            return
        if not kind.little_endian:
            self.fault = "is not little-endian; save it again on such a machine"
            return
        shape, dtype = checked_shape(shape, "an array"), _DTYPES[kind.code]
        if type(raw) is str:  # as Python 2 writes bytes
            raw = raw.encode("latin-1")
        if type(raw) not in (bytes, memoryview) or len(raw) != prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"an array of shape {shape} and dtype {dtype} does not have as many bytes as it needs."
            )
        values = view(raw, dtype, shape[::-1] if fortran is True else shape)
        self.values = values.T if fortran is True else values


def find(module: str, name: str) -> Any:
    """What stands for a global of a pickle of arrays, for `clip_core.pickles.Rules`."""
    return _GLOBALS.get((module, name)) or Unbuilt(module, name)


def _reconstruct(*arguments: Any) -> Array:
    if len(arguments) != 3 or arguments[0] is not Array:
        raise CheckpointError("an array of the pickle is not a plain array.")
    return Array()


def _dtype(*arguments: Any) -> _Dtype:
    if not arguments or type(arguments[0]) is not str:
        raise CheckpointError("a dtype of the pickle is not made of a text.")
    return _Dtype(arguments[0])


def _encode(*arguments: Any) -> bytes:
    """Bytes as protocol 2 writes them: a text of the same code points."""
    if [type(argument) for argument in arguments] != [str, str] or arguments[1] != "latin1":
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


_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): Function(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): Function(_reconstruct),
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Function(_dtype),
    ("_codecs", "encode"): Function(_encode),
    ("__builtin__", "bytes"): Function(_bytes),
    ("builtins", "tuple"): Function(_tuple),
    ("__builtin__", "tuple"): Function(_tuple),
    ("collections", "OrderedDict"): ORDERED_DICTIONARY,
}
