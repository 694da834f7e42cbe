"""Files of PyTorch before 1.6: pickles one after the other, and then the numbers of each storage.

They are: a magic number, the version of the protocol, a description of the machine, the object that was saved, the keys
of its storages, and for each key the number of its elements in 8 bytes and these. Files of PyTorch before 0.2, which
are tar archives, are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clip_core import pickles
from clip_core.buffers import Buffer, Content, shown, view
from clip_core.errors import CheckpointError
from clip_core.pickles import Rules, Unbuilt
from converters import states, torch_pickles
from converters.torch_pickles import Reference, Storage

_MAGIC = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_VERSION = 1001
_OPERATIONS = pickles.PYTHON_OPERATIONS | {"BINPERSID"}


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this starts with the magic number, in the pickle protocol that PyTorch used."""
    return start.startswith(_MAGIC)


def read(data: Buffer) -> Content:
    """The tensors of a state dictionary, alone or in another dictionary as `states` says.

    Raises:
        CheckpointError: the file is damaged, or holds no state dictionary.
    """
    rest = memoryview(data)[len(_MAGIC) :]
    version, rest = _next(rest)
    if type(version) is not int or version != _VERSION:
        raise CheckpointError("the file is of another protocol than PyTorch's files before 1.6 are.")
    machine, rest = _next(rest)
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise CheckpointError("the file's numbers are big-endian; save it again on a little-endian machine.")
    # The storages follow the object that refers to them: the first time, they are only listed.
    saved = rest
    references: dict[str, Reference] = {}
    _, rest = _next(saved, lambda found: _listed(found, references))
    keys, rest = _next(rest)
    storages = _storages(rest, keys, references)
    loaded, _ = _next(saved, lambda found: storages[found.key])
    state = states.find(loaded, torch_pickles.array_of, torch_pickles.fault)
    return Content("torch state dict", state.tensors, entry=state.entry)


def _next(data: memoryview, storage: Callable[[Reference], Any] | None = None) -> tuple[Any, memoryview]:
    """The object of the first pickle in ``data``, and what follows it."""

    def persistent(persistent_id: Any) -> Any:
        found = torch_pickles.reference(persistent_id)
        return found if storage is None or isinstance(found, Unbuilt) else storage(found)

    loaded, end = pickles.load_first(data, Rules(_OPERATIONS, torch_pickles.find, persistent))
    return loaded, data[end:]


def _listed(found: Reference, references: dict[str, Reference]) -> Unbuilt:
    """Add a storage to the list; what would be made of it stays unbuilt."""
    if references.setdefault(found.key, found) != found:
        raise CheckpointError(f"the pickle says two different things about storage {found.key}.")
    return Unbuilt("torch", found.kind.name)


def _storages(data: memoryview, keys: Any, references: dict[str, Reference]) -> dict[str, Storage]:
    """The storages at the start of ``data``, in the order of ``keys``: the number of elements in 8 bytes, and these."""
    listed = type(keys) is list and len(keys) == len(references) and all(type(key) is str for key in keys)
    if not listed or set(keys) != references.keys():
        raise CheckpointError("the file does not say in which order its storages are, or has some of unknown numbers.")
    storages = {}
    position = 0
    for key in keys:
        found = references[key]
        start, count = position + 8, int.from_bytes(data[position : position + 8], "little", signed=True)
        position = start + count * found.kind.dtype.itemsize
        if count < 0 or count != found.count or position > len(data):
            raise CheckpointError(
                f"storage {key} is said to have {shown(found.count)} elements, which the file does not hold."
            )
        storages[key] = Storage(found.kind, view(data, found.kind.dtype, (count,), start))
    if position != len(data):
        raise CheckpointError(f"{len(data) - position} bytes follow the last storage.")
    return storages
