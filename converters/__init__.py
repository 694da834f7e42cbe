"""Weights files in and out: every format and layout in use, read and written without any framework.

`read` gives a `Checkpoint` under the canonical names; `write` and `convert` publish a file only after it was read back
and compared bit for bit; `inspect` tells what a file is and everything that is wrong with it. Reading executes nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clip_core import files, naming
from clip_core.architecture import Architecture, name_of
from clip_core.errors import CheckpointError, ClipError
from clip_core.naming import Weights
from converters import companions, dialects, hdf5, pdparams, safetensors, torch_archive, verify
from converters.buffers import BFLOAT16, Buffer, Content, Tensor, from_bfloat16, map_file, pieces, sha256
from converters.manifest import Manifest

MAX_FILE_BYTES = 16 << 30  # the largest official model is 1.3 GB
MAX_SHARING = 2  # tensors may share bytes, but not so that a small file becomes large in memory

_FORMATS: dict[str, ModuleType] = {
    ".pt": torch_archive,
    ".pth": torch_archive,
    ".bin": torch_archive,
    ".safetensors": safetensors,
    ".h5": hdf5,
    ".pdparams": pdparams,
}
_READ_ONLY_SUFFIXES: dict[str, ModuleType] = {".hdf5": hdf5, ".pd": pdparams}
_KINDS: dict[ModuleType, str] = {
    torch_archive: "a PyTorch zip archive",
    hdf5: "an HDF5 file",
    pdparams: "a pickle, as Paddle and old versions of PyTorch write it",
    safetensors: "a safetensors file",
}
_DEFAULT_LAYOUTS = {torch_archive: "openai", safetensors: "openai", hdf5: "nnabla", pdparams: "paddle"}


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP's weights and what the file that held them says about itself."""

    # Canonical names, shapes and axis order; dtypes as stored, bfloat16 as float32, counters int64.
    # What `read` gives may be read-only: views of the file's bytes.
    weights: Weights
    architecture: Architecture  # from the manifest or the shapes
    container: str = "memory"  # "torch archive", "torch state dict", "safetensors", "hdf5" or "pdparams"
    layout: str = "openai"  # one of dialects.LAYOUTS
    sha256: str = ""  # of the very bytes that were read
    size: int = 0  # bytes of the file
    vocabulary: str | None = None  # the merges of the byte-pair encoding, one a line; None: OpenAI's
    source_sha256: str | None = None  # of the file that this one was converted from, by its manifest


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    source: str | None  # None: weights from memory
    target: str
    source_sha256: str
    target_sha256: str
    tensors: int  # in the target
    parameters: int  # trained scalars
    dtype: str  # of the target's tensors, counters apart; "float16 + float32" for a mixture
    layout: str
    max_abs_difference: float  # between the source's values and the target's, read back: 0.0 unless dtype was narrowed
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """What a file is, and everything that is wrong with it."""

    path: str
    size: int  # bytes
    sha256: str
    container: str
    layout: str
    model: str | None  # the registry's name for the architecture
    architecture: Architecture | None  # None: the weights are not those of a CLIP
    tensors: int
    scalars: int  # in all tensors, counters and statistics included
    dtypes: dict[str, int]  # dtype -> tensors
    manifest: bool  # whether the file carries one
    source_sha256: str | None
    own_vocabulary: bool  # False: OpenAI's
    zeros: tuple[str, ...]  # weights that are zero everywhere, which training seldom leaves
    faults: tuple[str, ...]  # empty: the file is sound

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"architecture": self.architecture and self.architecture.to_dict()}


@dataclass(frozen=True)
class _Loaded:
    """A file that could be taken apart, whether or not what it holds is right. Arrays are views of the file."""

    container: str
    layout: str
    weights: Weights
    architecture: Architecture | None
    manifest: Manifest | None
    faults: tuple[str, ...]  # of the manifest, and why there is no architecture


def read(path: str | os.PathLike[str], *, strict: bool = True) -> Checkpoint:
    """Read a weights file of any format and layout; the bytes, read once, are what is hashed and parsed.

    Args:
        strict: False gives weights whose names, shapes, dtypes or values do not fit the architecture as they are; what
            the file says of itself is verified all the same.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged, of another kind than its suffix says, not a CLIP, or does not fit.
    """
    return _finished(_open(path, strict))


def write(
    checkpoint: Checkpoint, path: str | os.PathLike[str], *, layout: str | None = None, dtype: str | None = None
) -> Report:
    """Write a checkpoint in the format of the path's suffix: whole and read back, or not at all.

    Args:
        layout: one of `dialects.LAYOUTS`; None: nnabla for ``.h5``, paddle for ``.pdparams``, else openai.
        dtype: ``float16`` or ``float32`` for everything but counters; None: each tensor as it is.

    Raises:
        ClipError: the suffix, the layout or the dtype is none there is, or the path cannot be written.
        CheckpointError: the weights do not fit their architecture, or a value does not fit ``dtype``.
    """
    return _publish(None, lambda: checkpoint, path, layout, dtype)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: str | None = None,
) -> Report:
    """`read` and `write` in one; memory stays near the source's size.

    Raises:
        ClipError: also when target and source are the same file.
    """
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise ClipError(f"{target} is the file to convert itself; give another name for the result.")
    return _publish(source, lambda: _open(source, strict=False), target, layout, dtype)


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """What a file is and everything that is wrong with it, as far as it can be taken apart.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged so that nothing can be said of what it holds, or is of another kind.
    """
    data, digest = _bytes_of(path)
    loaded = _load(path, data)
    architecture, manifest = loaded.architecture, loaded.manifest
    faults = list(loaded.faults)
    if architecture is not None:
        faults += naming.faults(architecture, loaded.weights)
    return Inspection(
        path=os.fspath(path),
        size=len(data),
        sha256=digest,
        container=loaded.container,
        layout=loaded.layout,
        model=None if architecture is None else name_of(architecture),
        architecture=architecture,
        tensors=len(loaded.weights),
        scalars=sum(array.size for array in loaded.weights.values()),
        dtypes=dict(sorted(Counter(array.dtype.name for array in loaded.weights.values()).items())),
        manifest=manifest is not None,
        source_sha256=None if manifest is None else manifest.source_sha256,
        own_vocabulary=manifest is not None and manifest.vocabulary is not None,
        zeros=tuple(name for name, array in loaded.weights.items() if array.size and array.ndim and not array.any()),
        faults=tuple(faults),
    )


def _open(path: str | os.PathLike[str], strict: bool) -> Checkpoint:
    """`read`, with arrays that may be views of the file in another axis order or not aligned."""
    data, digest = _bytes_of(path)
    loaded = _load(path, data)
    if loaded.faults or loaded.architecture is None:
        raise CheckpointError(f"{path}: {'; '.join(loaded.faults)}")
    if strict:
        naming.check(loaded.architecture, loaded.weights, os.fspath(path))
    manifest = loaded.manifest
    return Checkpoint(
        weights=loaded.weights,
        architecture=loaded.architecture,
        container=loaded.container,
        layout=loaded.layout,
        sha256=digest,
        size=len(data),
        vocabulary=None if manifest is None else manifest.vocabulary,
        source_sha256=None if manifest is None else manifest.source_sha256,
    )


def _finished(checkpoint: Checkpoint) -> Checkpoint:
    weights = checkpoint.weights
    for name in weights:  # in place, so that the old array can go before the next one is made
        # Not ascontiguousarray, which turns a scalar into a vector.
        weights[name] = np.require(weights[name], requirements=["C", "A"])
    return checkpoint


def _bytes_of(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise ClipError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES} are read here.")
        data = file.read(size)
    return data, hashlib.sha256(data).hexdigest()


def _load(path: str | os.PathLike[str], data: Buffer) -> _Loaded:
    module = _format_of(path, data)
    try:
        if module is hdf5:
            hdf5.check_unlocked(path)
        content = module.read(data)
        return _understand(path, content, len(data))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _understand(path: str | os.PathLike[str], content: Content, size: int) -> _Loaded:
    manifest = None if content.manifest is None else Manifest.from_text(content.manifest)
    weights = dialects.strip(_plain(content.tensors, size))
    layout = dialects.detect(weights)
    weights = dialects.to_canonical(weights, layout)
    architecture, faults = None, []
    try:
        if manifest is not None:
            architecture = manifest.architecture
        else:
            architecture = companions.infer_architecture(Path(path), weights, layout)
        weights = dialects.reorder(weights, architecture, layout)
    except CheckpointError as error:
        faults.append(str(error))
    if manifest is not None:
        faults += manifest.faults(weights)
    return _Loaded(content.container, layout, weights, architecture, manifest, tuple(faults))


def _plain(tensors: Weights, size: int) -> Weights:
    """``tensors`` of a file of ``size`` bytes, bfloat16 as float32, once it is sure that copies of them are bounded.

    Raises:
        CheckpointError: many tensors are made of the same bytes.
    """
    if sum(array.nbytes for array in tensors.values()) > MAX_SHARING * size:
        raise CheckpointError(f"its tensors together are more than {MAX_SHARING} times as large as the file.")
    return {name: from_bfloat16(array) if array.dtype == BFLOAT16 else array for name, array in tensors.items()}


def _format_of(path: str | os.PathLike[str], data: Buffer) -> ModuleType:
    """The reader for a file, by its first bytes; its suffix, where it has a known one, must agree.

    Raises:
        CheckpointError: it is no weights file, or not of the kind that its suffix says.
    """
    suffix = Path(path).suffix.lower()
    expected = _FORMATS.get(suffix) or _READ_ONLY_SUFFIXES.get(suffix)
    found = next((module for module in _KINDS if module.recognise(data)), None)
    if found is None:
        wanted = f"; expected {_KINDS[expected]}" if expected else ""
        raise CheckpointError(f"{path}: the file is {_describe(data)}{wanted}.")
    if expected is not None and found is not expected:
        remedy = "give it the suffix that fits"
        if expected is torch_archive and found is pdparams:
            remedy = "if PyTorch before 1.6 wrote it, save it again with a newer one"
        raise CheckpointError(f"{path}: the file is {_KINDS[found]}; expected {_KINDS[expected]}; {remedy}.")
    return found


def _describe(data: Buffer) -> str:
    """What a file that is no weights file is, from its first bytes."""
    start = bytes(data[:512])
    if not start:
        return "empty"
    if start[:2] == b"\x1f\x8b":
        return "compressed by gzip: decompress it first"
    if start[257:262] == b"ustar":
        return "a tar archive, as PyTorch before 0.2 wrote it: save it again with a newer one"
    if start[:4] == b"PK\x05\x06":
        return "an empty zip archive"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    try:
        # Incremental, since the last letter may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        text = "\0"
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return f"text that starts with {text.strip()[:40]!r}: download it again"
    return "none of the known kinds, or cut short"


def _publish(
    source: str | os.PathLike[str] | None,
    load: Callable[[], Checkpoint],
    target: str | os.PathLike[str],
    layout: str | None,
    dtype: str | None,
) -> Report:
    start = time.monotonic()
    target = Path(target)
    if target.suffix.lower() not in _FORMATS:
        raise ClipError(f"{target} has no suffix to write a format by; end it in one of {', '.join(_FORMATS)}.")
    module = _FORMATS[target.suffix.lower()]
    layout = layout or _DEFAULT_LAYOUTS[module]
    if layout not in dialects.LAYOUTS:
        raise ClipError(f"There is no layout {layout!r}; choose one of {', '.join(dialects.LAYOUTS)}.")
    if dtype not in (None, "float16", "float32"):
        raise ClipError(f"There is no dtype {dtype!r} to write; choose float16 or float32.")
    digest = hashlib.sha256()
    architecture: Architecture
    manifest = ""
    tensors: dict[str, Tensor] = {}

    def check(temporary: Path) -> None:
        buffer = map_file(temporary)
        content = module.read(buffer)
        found = dialects.strip(content.tensors)
        found_layout = dialects.detect(found)
        found = dialects.reorder(dialects.to_canonical(found, found_layout), architecture, found_layout)
        verify.compare(target, tensors, manifest, found, content.manifest, buffer)
        for piece in pieces(buffer):
            digest.update(piece)

    # The target is opened first, so that one that cannot be written is found before the work.
    with files.atomic_path(target, check) as temporary:
        checkpoint = load()
        architecture = checkpoint.architecture
        naming.check(architecture, checkpoint.weights, os.fspath(source) if source else "The checkpoint")
        tensors = _tensors(checkpoint, dtype)
        difference = 0.0
        entries = {}
        for name, tensor in tensors.items():
            try:
                difference = max(difference, verify.largest_difference(tensor))
            except CheckpointError as error:
                raise CheckpointError(f"{source or 'The checkpoint'}: {name} {error}") from error
            entries[name] = (tensor.dtype.name, sha256(tensor.values()))
        manifest = Manifest(architecture, entries, checkpoint.vocabulary, checkpoint.sha256 or None).to_text()
        spelled = dialects.spell(tensors, architecture, layout)
        module.write(temporary, spelled, manifest)
    companions.write_beside(target, architecture, layout)
    return Report(
        source=None if source is None else os.fspath(source),
        target=os.fspath(target),
        source_sha256=checkpoint.sha256,
        target_sha256=digest.hexdigest(),
        tensors=len(spelled),
        parameters=naming.count(architecture),
        dtype=" + ".join(sorted({t.dtype.name for t in tensors.values()} - {"int64"})),
        layout=layout,
        max_abs_difference=difference,
        seconds=time.monotonic() - start,
    )


def _tensors(checkpoint: Checkpoint, dtype: str | None) -> dict[str, Tensor]:
    result = {}
    for parameter in naming.parameters(checkpoint.architecture):
        array = checkpoint.weights[parameter.name]
        keep = dtype is None or parameter.kind == "counter"
        result[parameter.name] = Tensor(array, array.dtype if keep else np.dtype(dtype), parameter.trainable)
    return result
