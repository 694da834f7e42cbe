"""Readers with faults, which fuzzing has to find."""

from __future__ import annotations

import os
from pathlib import Path

from clip_core.errors import ClipError
from tests.fuzz import mutations
from tests.fuzz.formats import Format

VALID = b"valid"


def _raises(path: Path) -> None:
    raise KeyError("x")


def _hangs(path: Path) -> None:
    while True:
        pass


def _takes_memory(path: Path) -> None:
    try:
        bytearray(4 << 30)
    except MemoryError as error:
        raise ClipError("There is too little memory for this file.") from error


def _crashes(path: Path) -> None:
    os.abort()


def _starts_a_program(path: Path) -> None:
    os.system("true")


def _writes_elsewhere(path: Path) -> None:
    open(path.parent.parent / "planted", "w").close()


def _refuses(path: Path) -> None:
    raise ClipError("This file is not valid; give a valid one.")


def _only_invalid(read):
    def guarded(path: Path) -> None:
        if path.read_bytes() != VALID:
            read(path)

    return guarded


FORMATS = {
    read.__name__.strip("_"): Format("a", lambda: [VALID], (mutations.blind,), _only_invalid(read))
    for read in (
        *(_raises, _hangs, _takes_memory, _crashes, _starts_a_program, _writes_elsewhere),
        _refuses,
    )
}
