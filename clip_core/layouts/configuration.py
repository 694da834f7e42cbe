"""Reading configuration files: values out of strangers' JSON, each refused in a sentence if it cannot be used.

A key that changes what a model computes is taken over or refused by its name; none is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_core import files
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts.parts import Word
from clip_core.towers.parts import MAX_NUMBER

MAX_BYTES = 1 << 20
ASSUMED = "triclip_assumed"
"""The key of a configuration written here for the fields that nobody has stated; other libraries pass over it."""


def read_json(file: Path) -> Any:
    """The value in a file.

    Raises:
        ClipError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(files.read_regular(file, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ClipError(f"it is not JSON ({error!r:.100}).") from error


def as_object(value: Any, what: str) -> dict[str, Any]:
    """``value`` if it is a JSON object; ``what`` names it in the message."""
    if not isinstance(value, dict):
        raise ClipError(f"{what} is {type(value).__name__}, expected an object.")
    return value


def number(section: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number above 0."""
    value = section.get(name, default)
    if type(value) is not int or not 1 <= value <= MAX_NUMBER:
        raise ClipError(f"its {name} is {value!r:.80}; it must be a whole number from 1 to {MAX_NUMBER}.")
    return value


def side(section: Mapping[str, Any], name: str, default: int) -> int:
    """The side of a square that is given as one number or as two equal ones."""
    value = section.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return number({name: value}, name, default)


def colour(value: Any) -> Any:
    """Red, green and blue; what is no list is left to `Architecture.check`."""
    return tuple(value) if isinstance(value, list) else value


def placed(place: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a tower by its place and their names."""
    return {f"{place}.{name}": value for name, value in fields.items()}


def without_assumed(found: list[Word], config: Mapping[str, Any], inferred: Architecture) -> list[Word]:
    """``found`` without what ``config`` says is only assumed, unless somebody has corrected it since."""
    names, guesses = config.get(ASSUMED, []), inferred.named_fields
    if not isinstance(names, list):
        raise CheckpointError(f"{found[0].source} cannot be used: its {ASSUMED} is {type(names).__name__}, not a list.")

    def holds(name: str, value: Any) -> bool:
        return name not in names or value != guesses.get(name)

    return [
        replace(word, fields={name: value for name, value in word.fields.items() if holds(name, value)})
        for word in found
    ]
