"""Parquet files, opened with pyarrow, which is imported when it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from clip_core.data.trees import MOST_EXPANSION
from clip_core.errors import ClipError
from clip_core.files import open_regular
from clip_core.installation import requirement

_SMALL = 1 << 24  # bytes that a file may have inside whatever its own size


def require_pyarrow(path: str | os.PathLike[str], otherwise: str = "") -> None:
    """Refuse to go on without pyarrow.

    Args:
        path: of the file that needs it.
        otherwise: what can be done without it.

    Raises:
        ClipError: it is not installed.
    """
    if find_spec("pyarrow") is None:
        remedy = f"run: pip install {requirement('data')}{otherwise}"
        raise ClipError(f"{path} needs pyarrow, which is not installed; {remedy}.")


@contextmanager
def open_parquet(path: str | os.PathLike[str], remedy: str = "get it again") -> Iterator[Any]:
    """A file as pyarrow's ``ParquetFile``; what pyarrow raises while the block reads it becomes one sentence.

    Args:
        remedy: against a damaged file.

    Raises:
        ClipError: pyarrow is not installed, or the file is missing or damaged.
    """
    require_pyarrow(path)
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_regular(path) as file:
        try:
            parquet = ParquetFile(file)
            size = os.fstat(file.fileno()).st_size
            groups = range(parquet.metadata.num_row_groups)
            inside = sum(parquet.metadata.row_group(number).total_byte_size for number in groups)
            if inside > max(_SMALL, MOST_EXPANSION * size):
                raise ClipError(f"{path} has more than {MOST_EXPANSION} times its own bytes inside; {remedy}.")
            if parquet.metadata.num_rows > size:
                raise ClipError(f"{path} states {parquet.metadata.num_rows} rows, more than it has bytes; {remedy}.")
            yield parquet
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            first = str(error).partition(". ")[0].rstrip(".")  # pyarrow says more than a sentence
            raise ClipError(f"{path} cannot be read as Parquet: {first}; {remedy}.") from error
