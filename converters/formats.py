"""Which module reads and writes a file: what its first bytes say, with which its suffix must agree."""

from __future__ import annotations

import codecs
from pathlib import Path
from types import ModuleType

from clip_core import safetensors
from clip_core.buffers import shown
from clip_core.errors import CheckpointError
from converters import hdf5, nnp, pdparams, protobuf, torch_archive, torch_legacy

WRITTEN: dict[str, ModuleType] = {
    ".pt": torch_archive,
    ".pth": torch_archive,
    ".bin": torch_archive,
    ".safetensors": safetensors,
    ".h5": hdf5,
    ".pdparams": pdparams,
}
_READ_ONLY: dict[str, ModuleType] = {".hdf5": hdf5, ".pd": pdparams, ".protobuf": protobuf, ".nnp": nnp}
_OLD_FORMATS = {torch_archive: torch_legacy}  # of the same suffixes
_KINDS: dict[ModuleType, str] = {  # in the order in which they are looked for: the first two are special cases
    nnp: "an archive of NNabla",
    torch_legacy: "a file of PyTorch before 1.6",
    torch_archive: "a PyTorch zip archive",
    hdf5: "an HDF5 file",
    pdparams: "a pickle, as Paddle writes it",
    protobuf: "parameters of NNabla in Protocol Buffers",
    safetensors: "a safetensors file",
}
SUFFIXES = (*WRITTEN, *_READ_ONLY)


def of(path: Path, start: bytes) -> ModuleType:
    """The module for a file, by its first bytes; its suffix, where it has a known one, must agree.

    Raises:
        CheckpointError: it is no weights file, or not of the kind that its suffix says.
    """
    suffix = path.suffix.lower()
    expected = WRITTEN.get(suffix) or _READ_ONLY.get(suffix)
    found = next((module for module in _KINDS if module.recognise(start)), None)
    if found is None:
        wanted = f"; expected {_KINDS[expected]}" if expected else ""
        raise CheckpointError(f"the file is {_describe(start)}{wanted}.")
    if expected is not None and found not in (expected, _OLD_FORMATS.get(expected)):
        remedy = "give it the suffix that fits"
        if expected is torch_archive and found is pdparams:
            remedy += ", or save the weights with torch.save"
        raise CheckpointError(f"the file is {_KINDS[found]}; expected {_KINDS[expected]}; {remedy}.")
    return found


def _describe(start: bytes) -> str:
    """What a file that is no weights file is, from its first bytes."""
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
        return f"text that starts with {shown(text.strip()[:40])}: download it again"
    return "none of the known kinds, or cut short"
