"""The table that a training reads: the pictures of another table that can be opened and are large enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from clip_core.data.collection.lists import USUAL, Columns, Row, read_list, write_csv
from clip_core.errors import ClipError, ImageError
from clip_core.image import image_size

_THREADS = 8  # that wait for a disk
_AT_ONCE = 1000  # rows


class Indexed(NamedTuple):
    rows: int
    kept: int
    small: int
    unusable: int
    fault: str | None  # of the first that is unusable


def index(
    table: Path,
    images: Path,
    target: Path,
    smallest_side: int,
    *,
    columns: Columns = USUAL,
    names: tuple[str, str] = ("filepath", "title"),
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Indexed:
    """Write a CSV of the pictures of ``table`` whose shorter side has at least ``smallest_side`` pixels.

    Args:
        images: the folder that relative paths start at, in ``table`` and in what is written.
        names: of the columns of paths and captions that are written.
        progress: called with the number of rows so far, and of all.

    Raises:
        ClipError: the table cannot be read, no picture is left, or the target cannot be written.
    """
    total = sum(1 for _ in read_list(table, columns))
    counts = {"rows": 0, "kept": 0, "small": 0, "unusable": 0}
    first_fault = None

    def kept() -> Iterator[Row]:
        nonlocal first_fault
        for row, found in _sized(images, read_list(table, columns)):
            if isinstance(found, str):
                first_fault = first_fault or found
                outcome = "unusable"
            else:
                outcome = "kept" if found >= smallest_side else "small"
            counts["rows"] += 1
            counts[outcome] += 1
            progress(counts["rows"], total)
            if outcome == "kept":
                yield row
        if not counts["kept"]:
            why = f": {first_fault}" if first_fault else "; lower --min-side."
            raise ClipError(
                f"No picture of {table} can be used and has {smallest_side} pixels on its shorter side{why}"
            )

    write_csv(target, names, kept(), replace)
    return Indexed(**counts, fault=first_fault)


def _sized(images: Path, rows: Iterator[Row]) -> Iterator[tuple[Row, int | str]]:
    """Each row with the shorter side of its picture, or with what is wrong with it."""

    def side(row: Row) -> int | str:
        if not row.picture or not row.caption:
            return f"A row has no {'caption' if row.picture else 'picture'}."
        try:
            return min(image_size(os.path.join(images, row.picture)))
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as pool:
        while some := list(islice(rows, _AT_ONCE)):
            yield from zip(some, pool.map(side, some))
