"""The lines of text files, one after the other, for learning a vocabulary from them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

from clip_core.errors import TextError
from clip_core.files import open_regular
from clip_core.text.tokenizer import MAXIMUM_CHARACTERS


def lines(path: str | os.PathLike[str]) -> Iterator[str]:
    """Each line of a file; one of more than `MAXIMUM_CHARACTERS` comes in pieces.

    Raises:
        TextError: the file is not UTF-8, or empty.
        ClipError: it cannot be read.
    """
    number = 0
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="\n") as text:
        try:
            while line := text.readline(MAXIMUM_CHARACTERS):
                number += 1
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise TextError(
                f"{os.fspath(path)} is not UTF-8: {error.reason} in or behind line {number + 1}; save it as UTF-8."
            ) from error
    if not number:
        raise TextError(f"{os.fspath(path)} is empty; give text files with a text on each line.")
