"""PyTorch's zip archives: TorchScript modules, as OpenAI published its models, and state dictionaries.

Only the tensors are read, never the code; neither reading nor writing imports PyTorch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clip_core import pickles
from clip_core.buffers import Buffer, Content, Tensor, checked_name, shown, view
from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from clip_core.pickles import Buildable, Rules, Unbuilt
from converters import archives, states, torch_pickles
from converters.archives import Member
from converters.torch_pickles import Storage

MAX_PICKLE_BYTES = 64 << 20
MAX_ATTRIBUTES = 100_000  # RN50x64, the largest official model, has about 20,000
MAX_DEPTH = 64
MANIFEST_MEMBER = "triclip/manifest.json"

_WRITTEN_STORAGES: dict[np.dtype, str] = {dtype: name for name, dtype in torch_pickles.STORAGES.items()}
_ALIGNMENT = 64

_STATE_OPERATIONS = pickles.PYTHON_OPERATIONS | {"BINPERSID"}


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
    seen: dict[str, Storage] = field(default_factory=dict)

    def find(self, persistent_id: Any) -> Storage | Unbuilt:
        """The storage that a persistent id stands for."""
        found = torch_pickles.reference(persistent_id)
        if isinstance(found, Unbuilt):
            return found
        kind, key, count = found.kind, found.key, found.count
        if key not in self.seen:
            member = self.members.get(f"{self.root}/data/{key}")
            if member is None:
                raise CheckpointError(f"the archive has no member {self.root}/data/{key}, which its pickle refers to.")
            if member.size != count * kind.dtype.itemsize:
                raise CheckpointError(
                    f"the archive's member {member.name} has {member.size} bytes; "
                    f"its pickle declares {shown(count)} elements of {kind.dtype.itemsize} bytes."
                )
            raw = archives.content(self.data, member)
            self.seen[key] = Storage(kind, view(raw, kind.dtype, (count,)))
        storage = self.seen[key]
        if (storage.kind, storage.values.size) != (kind, count):
            raise CheckpointError(f"the pickle says two different things about storage {key}.")
        return storage


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is a zip archive."""
    return start.startswith(b"PK\3\4")


def read(data: Buffer) -> Content:
    """The tensors of a TorchScript module, under their attribute paths, or of a state dictionary.

    Views are honoured; where the dictionary is one of several in the file, `states` says which is taken.

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
        operations=pickles.SCRIPT_OPERATIONS if script else _STATE_OPERATIONS,
        find=_find_in_script if script else torch_pickles.find,
        persistent=storages.find,
    )
    loaded = pickles.load(archives.content(data, member), rules)
    manifest = members.get(f"{root}/{MANIFEST_MEMBER}")
    text = None if manifest is None else _text(bytes(archives.content(data, manifest)))
    if script:
        return Content("torch archive", _script_tensors(loaded), text)
    state = states.find(loaded, torch_pickles.array_of, torch_pickles.fault)
    return Content("torch state dict", state.tensors, text, state.entry)


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


def _find_in_script(module: str, name: str) -> Any:
    return _Module if module.split(".")[0] == "__torch__" else torch_pickles.find(module, name)


def _script_tensors(loaded: Any) -> Weights:
    if not isinstance(loaded, _Module):
        raise CheckpointError(torch_pickles.fault(loaded) or "the TorchScript archive does not hold a module.")
    tensors: Weights = {}
    visited = 0

    def walk(module: _Module, prefix: str, depth: int) -> None:
        nonlocal visited
        visited += 1 + len(module.attributes)
        if depth > MAX_DEPTH or visited > MAX_ATTRIBUTES:
            raise CheckpointError("the modules of the TorchScript archive contain themselves, or are far too many.")
        for name, value in module.attributes.items():
            if isinstance(value, (np.ndarray, _Module)):
                path = checked_name(f"{prefix}{checked_name(name)}")
                if isinstance(value, _Module):
                    walk(value, f"{path}.", depth + 1)
                else:
                    tensors[path] = value
            elif type(value) is Unbuilt and torch_pickles.is_tensor(value):
                raise CheckpointError(torch_pickles.reason(value))

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
