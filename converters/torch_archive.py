"""PyTorch's zip archives: TorchScript modules, as OpenAI published its models, and state dictionaries.

Only the tensors are read, never the code; neither reading nor writing imports PyTorch. The older files of PyTorch,
which are bare pickles or tar archives, are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from converters import archives, pickles
from converters.archives import Member
from converters.buffers import BFLOAT16, Buffer, Content, Tensor, checked_shape, view
from converters.pickles import Buildable, Function, Rules

MAX_PICKLE_BYTES = 64 << 20
MAX_MODULES = 100_000
MAX_DEPTH = 64
MANIFEST_MEMBER = "triclip/manifest.json"

_STORAGES: dict[str, np.dtype] = {
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
_WRITTEN_STORAGES: dict[np.dtype, str] = {dtype: name for name, dtype in _STORAGES.items()}
_ALIGNMENT = 64

_STATE_OPERATIONS = pickles.PLAIN_OPERATIONS | {"BINPERSID"}
_SCRIPT_OPERATIONS = _STATE_OPERATIONS | {"NEWOBJ"}


@dataclass(frozen=True)
class _StorageType:
    name: str


@dataclass(frozen=True)
class _Storage:
    name: str  # of its type
    values: np.ndarray


class _Module(Buildable):
    """An object of TorchScript: its attributes, of which tensors and other modules matter."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        if type(state) is not dict or self.attributes:
            raise CheckpointError("the state of a module is not one dictionary.")
        self.attributes = state


@dataclass
class _Storages:
    """The storages of an archive, each checked when it is first referred to."""

    data: Buffer
    members: Mapping[str, Member]
    root: str
    seen: dict[str, _Storage] = field(default_factory=dict)

    def find(self, reference: Any) -> _Storage:
        """The storage for a persistent id: ("storage", type, key, location, elements); the location is ignored."""
        if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
            raise CheckpointError("a persistent id of the pickle is not that of a storage.")
        _, kind, key, _, count = reference
        if not isinstance(kind, _StorageType) or type(key) is not str or type(count) is not int:
            raise CheckpointError("a persistent id of the pickle does not give a storage's type, key and size.")
        if not (key.isascii() and key.isdigit()):
            raise CheckpointError(f"a storage of the pickle has the key {key!r:.100}; expected digits.")
        dtype = _STORAGES[kind.name]
        if key not in self.seen:
            member = self.members.get(f"{self.root}/data/{key}")
            if member is None:
                raise CheckpointError(f"the archive has no member {self.root}/data/{key}, which its pickle refers to.")
            if member.size != count * dtype.itemsize:
                raise CheckpointError(
                    f"the archive's member {member.name} has {member.size} bytes; "
                    f"its pickle declares {count} elements of {dtype.itemsize} bytes."
                )
            raw = archives.content(self.data, member)
            self.seen[key] = _Storage(kind.name, view(raw, dtype, (count,)))
        storage = self.seen[key]
        if (storage.name, storage.values.size) != (kind.name, count):
            raise CheckpointError(f"the pickle says two different things about storage {key}.")
        return storage


def recognise(data: Buffer) -> bool:
    """Whether the file starts like a zip archive."""
    return data[:4] == b"PK\3\4"


def read(data: Buffer) -> Content:
    """The tensors of a TorchScript module, under their attribute paths, or of a state dictionary.

    Views are honoured; a dictionary's entry ``state_dict`` is taken if there is one.

    Raises:
        CheckpointError: the archive, its pickle or a tensor is not what PyTorch writes.
    """
    members = archives.members(data)
    root = _root(members)
    member = members[f"{root}/data.pkl"]
    if member.size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{member.name} has {member.size} bytes; at most {MAX_PICKLE_BYTES} are read.")
    byteorder = members.get(f"{root}/byteorder")
    if byteorder is not None and bytes(archives.content(data, byteorder)) != b"little":
        raise CheckpointError("the archive's numbers are big-endian; save it again on a little-endian machine.")
    script = f"{root}/constants.pkl" in members
    storages = _Storages(data, members, root)
    rules = Rules(
        operations=_SCRIPT_OPERATIONS if script else _STATE_OPERATIONS,
        find=partial(_find, script),
        persistent=storages.find,
    )
    loaded = pickles.load(archives.content(data, member), rules)
    manifest = members.get(f"{root}/{MANIFEST_MEMBER}")
    return Content(
        container="torch archive" if script else "torch state dict",
        tensors=_script_tensors(loaded) if script else state_tensors(loaded),
        manifest=None if manifest is None else _text(bytes(archives.content(data, manifest))),
    )


def state_tensors(loaded: Any) -> Weights:
    """The arrays of a state dictionary, or of its entry ``state_dict``.

    Raises:
        CheckpointError: it is no dictionary, or holds something else.
    """
    if type(loaded) is not dict:
        raise CheckpointError("the file does not hold a state dictionary; save model.state_dict().")
    state = loaded.get("state_dict", loaded)
    if type(state) is not dict:
        raise CheckpointError("the entry state_dict is not a dictionary.")
    for name, value in state.items():
        if type(name) is not str or not isinstance(value, np.ndarray):
            raise CheckpointError(f"the entry {name!r:.200} of the state dictionary is not a named tensor.")
    return dict(state)


def write(path: Path, tensors: Mapping[str, Tensor], manifest: str) -> None:
    """Write a state dictionary that ``torch.load(weights_only=True)`` reads; equal weights give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def member(name: str, data: bytes | memoryview) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")  # with the fixed date of 1980
            header = archive.start_dir + 30 + len(info.filename)
            padding = -(header + 4) % _ALIGNMENT
            # An extra field of a kind that readers pass over, so that tensors can be used where they are.
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"\0" * padding
            info.file_size = len(data)
            with archive.open(info, "w") as file:
                file.write(data)

        member("data.pkl", _pickle(tensors))
        member("byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            member(f"data/{key}", tensor.data())
        member("version", b"3\n")
        member(MANIFEST_MEMBER, manifest.encode())


def _root(members: Mapping[str, Member]) -> str:
    roots = [name.split("/")[0] for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        found = f"several: {', '.join(sorted(roots))}" if roots else "none"
        raise CheckpointError(
            f"the archive must have one folder with a data.pkl, as PyTorch writes it; it has {found}."
        )
    return roots[0]


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("the manifest is not UTF-8.") from error


def _find(script: bool, module: str, name: str) -> Any:
    if script and module.split(".")[0] == "__torch__":
        return _Module
    if module == "torch" and name in _STORAGES:
        return _StorageType(name)
    if module == "torch" and name.endswith("Storage"):
        raise CheckpointError(
            f"the file holds tensors of torch.{name}; weights are float32, float16, bfloat16 or float64."
        )
    if (module, name) in _FUNCTIONS and not (script and name == "_rebuild_parameter"):
        return _FUNCTIONS[module, name]
    raise CheckpointError(
        f"the pickle refers to {module}.{name}, which weights files have no use for; "
        "it was not run. Save model.state_dict() instead of a whole object, if you trust this file."
    )


def _rebuild_tensor(*arguments: Any) -> np.ndarray:
    """(storage, offset, size, stride, requires_grad, hooks[, metadata]), all in elements -> a view of the storage"""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], _Storage):
        raise CheckpointError("a tensor of the pickle is not made of a storage, an offset, a size and a stride.")
    storage, offset, size, stride = arguments[:4]
    values = storage.values
    if type(offset) is not int or offset < 0:
        raise CheckpointError(f"a tensor starts at element {offset!r:.100} of its storage.")
    shape = checked_shape(size, "a tensor")
    strides = checked_shape(stride, "a tensor's strides")
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


def _ordered_dictionary(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise CheckpointError("an ordered dictionary of the pickle is not made empty.")
    return {}


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("collections", "OrderedDict"): Function(_ordered_dictionary),
}


def _script_tensors(loaded: Any) -> Weights:
    if not isinstance(loaded, _Module):
        raise CheckpointError("the TorchScript archive does not hold a module.")
    tensors: Weights = {}
    modules = 0

    def walk(module: _Module, prefix: str, depth: int) -> None:
        nonlocal modules
        modules += 1
        if depth > MAX_DEPTH or modules > MAX_MODULES:
            raise CheckpointError("the modules of the TorchScript archive contain themselves, or are far too many.")
        for name, value in module.attributes.items():
            if isinstance(value, np.ndarray):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                walk(value, f"{prefix}{name}.", depth + 1)

    walk(loaded, "", 1)
    return tensors


def _pickle(tensors: Mapping[str, Tensor]) -> bytes:
    """The pickle, protocol 2, of {name: tensor}, where tensor number i lies in storage i."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw

    def integer(value: int) -> bytes:
        if value < 1 << 31:
            return b"J" + value.to_bytes(4, "little", signed=True)
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    parts = [b"\x80\2}("]
    for key, (name, tensor) in enumerate(tensors.items()):
        storage = f"ctorch\n{_WRITTEN_STORAGES[tensor.dtype]}\n".encode()
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
        parts += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            *(text("storage"), storage, text(str(key)), text("cpu"), integer(prod(tensor.shape)), b"tQ"),
            *(integer(0), integers(tensor.shape), integers(strides), b"\x89"),
            b"ccollections\nOrderedDict\n)RtR",
        ]
    return b"".join(parts) + b"u."
