"""Which file a path stands for: a weights file, a folder with one, or the index of a model cut into several files.

The index is Hugging Face's: a JSON object whose ``weight_map`` says of each tensor in which file beside it it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from clip_core.errors import CheckpointError, ClipError

INDEX_SUFFIX = ".index.json"
MAX_INDEX_BYTES = 16 << 20
MAX_PARTS = 1000

# Where a folder has several of these, they hold the same model: the first of this order is read.
PREFERRED = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
    "open_clip_pytorch_model.bin",
)
_PART = re.compile(r"(.+)-[0-9]{5}-of-(?!00001)[0-9]{5}(\.[a-z]+)")  # the one file of one is no part


def find(path: str | os.PathLike[str], suffixes: Collection[str]) -> Path:
    """The weights file for ``path``, or its index where a model is in several files.

    A file stands for itself, a file of several for their index, and a folder for the first of `PREFERRED` in it, else
    for its only weights file. A path where nothing is stays as it is.

    Args:
        suffixes: those of weights files.

    Raises:
        ClipError: a folder has no weights file or several different ones, or a file of several has no index.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _in_folder(path, suffixes)
    if match := _PART.fullmatch(path.name):
        index = path.with_name(f"{match[1]}{match[2]}{INDEX_SUFFIX}")
        if os.path.exists(path) and not os.path.exists(index):
            raise ClipError(f"{path} is one of several files of a model, but their index {index.name} is not there.")
        return index
    if path.suffix.lower() == ".json" and not is_index(path):
        raise ClipError(f"{path} holds no weights; give its folder, or the weights file in it.")
    return path


def is_index(path: Path) -> bool:
    """Whether a file is the index of a model in several files, by its name."""
    return path.name.endswith(INDEX_SUFFIX)


def parts(index: Path, data: bytes) -> dict[Path, set[str]]:
    """The files that an index names, sorted, each with the tensors that must be in it.

    Raises:
        CheckpointError: the index cannot be read, or names a file that is not beside it.
    """
    try:
        weight_map = json.loads(data)["weight_map"]
        located = [(name, file) for name, file in weight_map.items() if type(file) is str]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the index cannot be read: {error!r:.200}.") from error
    if len(located) != len(weight_map) or not located:
        raise CheckpointError("the index does not map the names of tensors to the names of files.")
    found: dict[Path, set[str]] = {}
    for name, file in sorted(located, key=lambda entry: entry[1]):
        # A link may lead elsewhere, as in Hugging Face's cache, but a name may not.
        if file in ("", ".", "..") or re.search(r"[/\\:\0]", file):
            raise CheckpointError(f"the index puts {name!r:.80} into {file!r:.80}, which is no file beside it.")
        found.setdefault(index.with_name(file), set()).add(name)
    if len(found) > MAX_PARTS:
        raise CheckpointError(f"the index names {len(found)} files; at most {MAX_PARTS} are read.")
    for path in found:
        if not os.path.exists(path):
            raise CheckpointError(f"{path.name}, which the index names, is not beside it; fetch every file it names.")
    return found


def _in_folder(folder: Path, suffixes: Collection[str]) -> Path:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file())
    except OSError as error:
        raise ClipError(f"{folder} cannot be listed: {error.strerror}; check that it may be read.") from error
    for name in PREFERRED:
        if name in names:
            return folder / name
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if Path(name).suffix.lower() in suffixes and not _PART.fullmatch(name)]
    found = indices + files
    if not found:
        raise ClipError(
            f"{folder} is a folder without a weights file; expected {PREFERRED[0]} or another in it, "
            f"of the kinds {', '.join(suffixes)}."
        )
    if len(found) > 1:
        shown = ", ".join(found[:5]) + (" and more" if len(found) > 5 else "")
        raise ClipError(f"{folder} is a folder with several weights files: {shown}; give one of them.")
    return folder / found[0]
