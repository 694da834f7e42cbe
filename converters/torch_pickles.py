"""What PyTorch's pickles are made of, in archives and in older files: types of storages, and tensors that view them.

Nothing is imported: each global that makes a tensor has a function here, and all others stay unbuilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_core.buffers import BFLOAT16, checked_shape, checked_sizes, shown
from clip_core.errors import CheckpointError
from clip_core.pickles import ORDERED_DICTIONARY, Function, Unbuilt

STORAGES: dict[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MAX_KEY_DIGITS = 20


@dataclass(frozen=True)
class StorageType:
    """What stands for a class such as ``torch.FloatStorage``."""

    name: str  # in `STORAGES`

    @property
    def dtype(self) -> np.dtype:
        return STORAGES[self.name]


@dataclass(frozen=True)
class Storage:
    """The numbers that tensors are views of."""

    kind: StorageType
    values: np.ndarray  # [n]


@dataclass(frozen=True)
class Reference:
    """What a persistent id says of a storage."""

    kind: StorageType
    key: str  # digits
    count: int  # elements


def find(module: str, name: str) -> Any:
    """What stands for a global of a state dictionary."""
    if module == "torch" and name in STORAGES:
        return StorageType(name)
    return _FUNCTIONS.get((module, name)) or Unbuilt(module, name)


def reference(persistent_id: Any) -> Reference | Unbuilt:
    """The storage that a persistent id stands for, `Unbuilt` for one of numbers that are not read.

    A persistent id is ("storage", type, key, location, elements); the location is ignored. Older files add the part of
    another storage that it is, which is None in those that can be read.

    Raises:
        CheckpointError: it is something else.
    """
    parts = persistent_id if type(persistent_id) is tuple else ()
    if len(parts) == 6 and parts[5] is None:
        parts = parts[:5]
    if len(parts) != 5 or type(parts[0]) is not str or parts[0] != "storage":
        raise CheckpointError("a persistent id of the pickle is not that of a storage.")
    _, kind, key, _, count = parts
    if type(kind) is Unbuilt:
        return kind
    if type(kind) is not StorageType or type(key) is not str or type(count) is not int:
        raise CheckpointError("a persistent id of the pickle does not give a storage's type, key and size.")
    if not (len(key) <= MAX_KEY_DIGITS and key.isascii() and key.isdigit()):
        raise CheckpointError(f"a storage of the pickle has the key {shown(key)}; expected digits.")
    return Reference(kind, key, count)


def is_tensor(unbuilt: Unbuilt) -> bool:
    """Whether it represents a tensor of a kind that is not read."""
    return unbuilt.module == "torch._utils" or (unbuilt.module == "torch" and unbuilt.name.endswith("Storage"))


def array_of(value: Any) -> np.ndarray | None:
    """A tensor's array; None for what is no tensor."""
    return value if isinstance(value, np.ndarray) else None


def fault(value: Any) -> str | None:
    """Why a value cannot be a weight, if it is one that stays unbuilt."""
    return reason(value) if type(value) is Unbuilt else None


def reason(unbuilt: Unbuilt) -> str:
    """Why it stays unbuilt."""
    if unbuilt.module == "torch" and unbuilt.name.endswith("Storage"):
        return f"the file holds tensors of {unbuilt}; weights are float32, float16, bfloat16 or float64."
    return (
        f"the pickle refers to {unbuilt}, which weights files have no use for; "
        "it was not run. Save model.state_dict() instead of a whole object, if you trust this file."
    )


def _rebuild_tensor(*arguments: Any) -> np.ndarray:
    """(storage, offset, size, stride, requires_grad, hooks[, metadata]), all in elements -> a view of the storage"""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage):
        raise CheckpointError("a tensor of the pickle is not made of a storage, an offset, a size and a stride.")
    storage, offset, size, stride = arguments[:4]
    if metadata := arguments[6:] and arguments[6]:
        mark = next(iter(metadata)) if type(metadata) is dict else metadata  # as "neg": the numbers are its opposite
        raise CheckpointError(
            f"a tensor of the pickle is marked {shown(mark)}, so that its numbers are other ones than are stored; "
            "save tensor.resolve_conj().resolve_neg() in its place."
        )
    values = storage.values
    if type(offset) is not int or offset < 0:
        raise CheckpointError(f"the offset of a tensor is {shown(offset)}; expected a whole number of at least 0.")
    shape = checked_shape(size, "a tensor")
    strides = checked_sizes(stride, "the strides of a tensor")
    if len(shape) != len(strides):
        raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(strides)} strides.")
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    reach = 1  # elements from the first to the last, and what one stride must pass to overlap nothing
    for step, length in sorted((step, length) for step, length in zip(strides, shape) if length > 1):
        if step < reach:
            raise CheckpointError(f"a tensor of shape {shape} and strides {strides} overlaps itself.")
        reach += step * (length - 1)
    if offset + reach > values.size:
        raise CheckpointError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} ends at element {offset + reach} "
            f"of a storage of {values.size}."
        )
    return np.lib.stride_tricks.as_strided(
        values[offset:], shape, [step * values.itemsize for step in strides], writeable=False
    )


def _rebuild_parameter(*arguments: Any) -> np.ndarray:
    if len(arguments) != 3 or not isinstance(arguments[0], np.ndarray):
        raise CheckpointError("a parameter of the pickle is not made of a tensor.")
    return arguments[0]


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("collections", "OrderedDict"): ORDERED_DICTIONARY,
}
