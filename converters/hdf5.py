"""NNabla's ``.h5`` files: one dataset for each parameter, in groups by the parts of its name.

The HDF5 library is used for the file's structure only; the numbers are views of the file's bytes. A file may hold plain
groups and plain datasets, stored whole and unfiltered, as NNabla writes them: links, datasets made of other files or of
other datasets, and compressed ones, whose size would be the file's word alone, are refused.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import h5py
import numpy as np

from clip_core import files
from clip_core.buffers import Buffer, Content, Tensor, checked_name, checked_shape, shown, view
from clip_core.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows refuses to open a locked file by itself
    fcntl = None  # type: ignore[assignment]

MAX_OBJECTS = 20_000  # RN50x64, the largest official model, has about 2,500 datasets and groups
MANIFEST_ATTRIBUTE = "triclip_manifest_"
MAX_MANIFEST_PARTS = 1_000
_ATTRIBUTE_BYTES = 60_000  # HDF5 keeps at most 64 KiB in one attribute

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DTYPES = [np.dtype(code) for code in ("<f2", "<f4", "<f8", "<i8", "<i4")]


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is an HDF5 file."""
    return start.startswith(_SIGNATURE)


def check_unlocked(path: str | os.PathLike[str]) -> None:
    """Refuse a file that another process has open for writing: it is whole only when that process has closed it.

    Raises:
        CheckpointError: the file is locked, as the HDF5 library locks what it writes.
    """
    if fcntl is None:
        return  # type: ignore[unreachable]
    with files.open_regular(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                "the file is locked: another process has it open for writing; close it there first."
            ) from error
        except OSError:  # a file system without locks
            pass


def read(data: Buffer | memoryview) -> Content:
    """The datasets of a file, under their paths, in the order of their attribute ``index``.

    Raises:
        CheckpointError: the file is damaged, or holds what NNabla does not write.
    """
    try:
        with h5py.File(data if isinstance(data, mmap.mmap) else io.BytesIO(data), "r") as file:
            found = [(*_parameter(name, dataset, data), name) for name, dataset in _datasets(file)]
            tensors = {name: array for _, array, name in sorted(found, key=lambda entry: (entry[0], entry[2]))}
            return Content("hdf5", tensors, _manifest(file))
    # Whatever the HDF5 library says of a damaged file, it is damaged.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the HDF5 file is damaged or cut short ({error!s:.200}); download it again.") from error


def write(path: Path, tensors: Mapping[str, Tensor], manifest: str) -> None:
    """Write the file that ``nnabla.load_parameters`` reads: ``need_grad`` and a running ``index`` on each dataset."""
    text = manifest.encode()
    _reserve(path, sum(tensor.nbytes for tensor in tensors.values()) + len(text))
    try:
        with h5py.File(path, "w") as file:
            for index, (name, tensor) in enumerate(tensors.items()):
                dataset = file.create_dataset(name, data=tensor.values())
                dataset.attrs["need_grad"] = tensor.trainable
                dataset.attrs["index"] = index
            for part, start in enumerate(range(0, len(text), _ATTRIBUTE_BYTES)):
                file.attrs[f"{MANIFEST_ATTRIBUTE}{part}"] = np.void(text[start : start + _ATTRIBUTE_BYTES])
    except RuntimeError as error:  # what h5py makes of a failed write
        raise OSError(errno.EIO, "the HDF5 library could not write all of it") from error


def _reserve(path: Path, size: int) -> None:
    """Find out that the disk is full before the HDF5 library does, which cannot close a file that it cannot write."""
    if not hasattr(os, "posix_fallocate"):
        return
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset with its path, groups walked without recursion."""
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        for name in group:
            path = f"{prefix}{name}"
            if {"", ".", ".."} & set(checked_name(path).split("/")):
                raise CheckpointError(f"the file has an object named {shown(path)}; NNabla writes no such names.")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise CheckpointError(f"{path} is a link to something else; save the parameters again without links.")
            found = group[name]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                raise CheckpointError(f"{path} is the same object as another of the file; each must occur once.")
            seen.add(address)
            if len(seen) > MAX_OBJECTS:
                raise CheckpointError(f"the file has more than {MAX_OBJECTS} objects.")
            if isinstance(found, h5py.Group):
                waiting.append((f"{path}/", found))
            elif isinstance(found, h5py.Dataset):
                yield path, found
            else:
                raise CheckpointError(f"{path} is neither a group nor a dataset.")


def _parameter(name: str, dataset: h5py.Dataset, data: Buffer | memoryview) -> tuple[int, np.ndarray]:
    """(its index, its values)"""
    plan = dataset.id.get_create_plist()
    if plan.get_external_count():
        raise CheckpointError(f"{name} keeps its values in another file; save the parameters again in one file.")
    if plan.get_layout() == h5py.h5d.VIRTUAL:
        raise CheckpointError(f"{name} is made of other datasets; save the parameters again as plain ones.")
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters():
        raise CheckpointError(f"{name} is stored in chunks or compressed; save the parameters again as plain datasets.")
    if dataset.dtype not in _DTYPES:
        raise CheckpointError(f"{name} has dtype {dataset.dtype!s:.100}; weights are float32, float16 or float64.")
    if dataset.shape is None:
        raise CheckpointError(f"{name} has no shape.")
    shape = checked_shape(tuple(map(int, dataset.shape)), name)
    size = prod(shape) * dataset.dtype.itemsize
    offset = dataset.id.get_offset()
    if size and (offset is None or dataset.id.get_storage_size() != size or offset + size > len(data)):
        raise CheckpointError(f"{name} of shape {shape} takes {size} bytes; the file does not hold them.")
    _number(name, dataset, "need_grad")
    return _number(name, dataset, "index"), view(data, dataset.dtype, shape, offset or 0)


def _number(name: str, dataset: h5py.Dataset, attribute: str) -> int:
    if attribute not in dataset.attrs:
        raise CheckpointError(
            f"{name} has no attribute {attribute}, which NNabla asks for; save the file with nnabla.save_parameters."
        )
    found = dataset.attrs.get_id(attribute)
    if found.shape != () or found.dtype.kind not in "biu":
        raise CheckpointError(f"the attribute {attribute} of {name} is not a number.")
    return int(dataset.attrs[attribute])


def _manifest(file: h5py.File) -> str | None:
    parts: list[bytes] = []
    while len(parts) < MAX_MANIFEST_PARTS and (name := f"{MANIFEST_ATTRIBUTE}{len(parts)}") in file.attrs:
        found = file.attrs.get_id(name)
        if found.shape != () or found.dtype.kind != "V":
            raise CheckpointError("the manifest in the file's attributes is damaged.")
        parts.append(file.attrs[name].tobytes())
    return b"".join(parts).decode("utf-8") if parts else None
