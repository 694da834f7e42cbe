"""Lists of pictures and captions as text or JSON, and folders of them, read with every fault as one sentence."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

from clip_core.errors import ClipError
from clip_core.files import read_regular

_SHOWN_SUFFIXES = 5


def lines_of(path: str) -> list[str]:
    """The lines of a text file in UTF-8, without blanks around them.

    Raises:
        ClipError: the file cannot be read, or is not UTF-8.
    """
    return lines_in(read_regular(path), path)


def lines_in(data: bytes, path: str) -> list[str]:
    """The same of the content of a file.

    Raises:
        ClipError: it is not UTF-8.
    """
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8: {error}; save it in UTF-8.") from error
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        ClipError: the file cannot be read, or is not JSON.
    """
    return json_in(read_regular(path), path)


def json_in(data: bytes, path: str) -> Any:
    """The same of the content of a file.

    Raises:
        ClipError: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ClipError(f"{path} is not JSON: {error}; get it again.") from error


def records(path: str, within: Any, key: str, **types: type) -> list[dict[str, Any]]:
    """The list under ``key`` of a JSON object, each entry an object that has the keys ``types`` of those types.

    Raises:
        ClipError: it is anything else.
    """
    entries = within.get(key) if isinstance(within, dict) else None
    if not isinstance(entries, list):
        raise ClipError(f"{path} has no list {key!r}; give a file in the published layout.")
    for number, entry in enumerate(entries):
        for name, kind in types.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise ClipError(f"{path}: entry {number} of {key!r} has no {name!r} of type {kind.__name__}.")
    return entries


def tree(folder: str) -> tuple[list[str], list[str]]:
    """All files in a folder and in those below it or linked in it, by name; without those whose name begins with a dot.

    Returns:
        The paths of the files, and of the folders that are passed over, since links lead to them a second time.

    Raises:
        ClipError: a folder cannot be read.
    """
    files, again, seen = [], [], set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            again.append(parent)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(parent, name) for name in sorted(names) if not name.startswith(".")]
    return files, again


def _refuse(error: OSError) -> None:
    reason = (error.strerror or str(error)).lower()
    raise ClipError(f"{error.filename} cannot be read: {reason}; give a folder that may be read whole.") from error


def warn_of_rest(folder: str, files: Iterable[str], again: Iterable[str] = ()) -> None:
    """Warn of what a reader of a folder skips: files of other suffixes, and folders that links lead to again."""
    suffixes = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in files)
    passed = [f"{count} with {suffix}" for suffix, count in suffixes.most_common(_SHOWN_SUFFIXES)]
    if len(suffixes) > _SHOWN_SUFFIXES:
        passed.append(f"of {len(suffixes) - _SHOWN_SUFFIXES} other kinds")
    folders = [f"the folder {path}, which is there under another name" for path in again]
    if len(folders) > 1:
        folders = [f"{len(folders)} folders that are there under other names"]
    if passed or folders:
        counted = [f"{sum(suffixes.values())} files ({', '.join(passed)})"] if passed else []
        warnings.warn(f"Of {folder} are passed over: {' and '.join(counted + folders)}.", stacklevel=2)
