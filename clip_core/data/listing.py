"""Lists of pictures and captions as text or JSON, read with every fault as one sentence."""

from __future__ import annotations

import json
from typing import Any

from clip_core.errors import ClipError
from clip_core.files import read_regular


def lines_of(path: str) -> list[str]:
    """The lines of a text file in UTF-8, without blanks around them.

    Raises:
        ClipError: the file cannot be read, or is not UTF-8.
    """
    try:
        lines = read_regular(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8: {error}; save it in UTF-8.") from error
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]


def read_json(path: str) -> Any:
    """What a JSON file holds.

    Raises:
        ClipError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_regular(path))
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
