"""Lists of pictures with captions, by address or by path, as data sets publish them; read row by row.

- ``.csv``: separated by commas, with quotation marks by RFC 4180.
- ``.tsv``: separated by tabs. A line is a row, and quotation marks are characters unless RFC 4180 holds for the line.
- ``.jsonl``: a JSON object on each line. ``.json``: a list of objects.
- ``.parquet``, as LAION publishes its lists.

The first line of a table names the columns. Of a table without such a line, whose rows have two fields of which one is
an http address, as those of Conceptual Captions, the other is the caption. The columns are those given, or the ones
whose names are usual.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_core import files
from clip_core.data.listing import read_json
from clip_core.errors import ClipError
from clip_core.files import open_regular

PICTURES = ("url", "image_url", "photo_image_url", "image", "filepath", "img")
CAPTIONS = ("caption", "text", "title", "query", "q")
"""Names of columns, in lower case, that are taken where none is given."""

_BATCH = 1024  # rows of a Parquet file that are in memory


class Row(NamedTuple):
    """A row of a list; what is missing, or no text, is empty."""

    picture: str
    caption: str


class Columns(NamedTuple):
    """The names of the columns; where one is ``None``, a usual name is looked for.

    With an empty name of the column of pictures there need not be one, and what rows have there means nothing.
    """

    picture: str | None = None
    caption: str | None = None


USUAL = Columns()


class Joined(NamedTuple):
    rows: int
    kept: int
    incomplete: int  # rows that lack one of the two
    repeated: int  # rows that stand further up already


def read_list(path: str | os.PathLike[str], columns: Columns = USUAL) -> Iterator[Row]:
    """The rows of a list.

    Raises:
        ClipError: it cannot be read, is of another kind, or lacks a column.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if suffix not in _READERS:
        raise ClipError(f"{name} is no list of pictures by its name; give a file that ends in {', '.join(_READERS)}.")
    for row in _READERS[suffix](name, columns):
        yield Row(*(value.strip() if isinstance(value, str) else "" for value in row))


def join(paths: Sequence[str | os.PathLike[str]], target: Path, columns: Columns, replace: bool) -> Joined:
    """Write the rows of several lists into one CSV of ``query`` and ``image``, each row once.

    What is kept of each row in memory is 16 bytes.

    Raises:
        ClipError: a list cannot be read, no row is complete, or the target cannot be written.
    """
    digests = np.frombuffer(b"".join(_digest(row) for path in paths for row in read_list(path, columns)), "<u8")
    digests = digests.reshape(-1, 2)
    complete = digests.any(axis=1)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equal rows, the first comes first
    first = np.ones(len(digests), bool)
    first[order[1:]] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    kept = complete & first
    if not kept.any():
        raise ClipError(f"{', '.join(map(str, paths))}: no row has a picture and a caption; check the columns.")
    rows = (row for path in paths for row in read_list(path, columns))
    write_csv(target, ("query", "image"), ((row.caption, row.picture) for row, use in zip(rows, kept) if use), replace)
    total, whole, written = len(kept), int(complete.sum()), int(kept.sum())
    return Joined(total, written, total - whole, whole - written)


def write_corpus(paths: Sequence[str | os.PathLike[str]], target: Path, column: str | None, replace: bool) -> int:
    """Write the captions of lists, one on each line, and give their number.

    Raises:
        ClipError: a list cannot be read, there is no caption, or the target cannot be written.
    """
    count = 0
    with files.atomic_open(target, replace) as file:
        for path in paths:
            for row in read_list(path, Columns("", column)):
                if text := " ".join(row.caption.split()):
                    file.write(text.encode("utf-8", "replace") + b"\n")
                    count += 1
        if not count:
            raise ClipError(f"{', '.join(map(str, paths))}: there is no caption; check the column.")
    return count


def write_csv(target: Path, names: Sequence[object], rows: Iterable[Sequence[object]], replace: bool) -> None:
    """Write a table by RFC 4180, which a recipe reads with the separator ``,``."""
    with files.atomic_open(target, replace) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
        text.detach()


def _digest(row: Row) -> bytes:
    """16 bytes that tell rows apart; zeros for one that lacks something."""
    if not (row.picture and row.caption):
        return bytes(16)
    pair = json.dumps(row).encode()
    return hashlib.blake2b(pair, digest_size=16).digest()


def _comma_separated(path: str, columns: Columns) -> Iterator[tuple[Any, Any]]:
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from _table(path, csv.reader(text, strict=True), columns)


def _tab_separated(path: str, columns: Columns) -> Iterator[tuple[Any, Any]]:
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
        yield from _table(path, map(_fields, text), columns)


def _fields(line: str) -> list[str]:
    line = line.rstrip("\r\n")
    plain = line.split("\t")
    if '"' in line:
        try:
            (quoted,) = csv.reader([line], delimiter="\t", strict=True)
        except csv.Error:  # a quotation mark that begins a field and has no end, or characters after it
            return plain
        return quoted if len(quoted) == len(plain) else plain
    return plain


def _table(path: str, rows: Iterator[list[str]], columns: Columns) -> Iterator[tuple[str, str]]:
    number = 1
    try:
        first = next(rows, [])
        addresses = [place for place, field in enumerate(first) if field.startswith(("http://", "https://"))]
        if len(first) == 2 and len(addresses) == 1 and not any(columns):
            places = (addresses[0], 1 - addresses[0])
            yield first[places[0]], first[places[1]]
        else:
            picture, caption = _chosen(path, first, columns)
            places = (first.index(picture), first.index(caption))
        for number, row in enumerate(rows, 2):
            if row and row != [""]:
                if len(row) > len(first):
                    raise ClipError(f"{path} has {len(row)} fields in row {number}, and {len(first)} columns; mend it.")
                yield tuple(row[place] if place < len(row) else "" for place in places)  # type: ignore[misc]
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8 in or behind row {number}: {error.reason}; save it in UTF-8.") from error
    except csv.Error as error:
        raise ClipError(
            f"{path} cannot be read in or behind row {number}: {error}; mend its quotation marks."
        ) from error


def _json_lines(path: str, columns: Columns) -> Iterator[tuple[Any, Any]]:
    def objects() -> Iterator[Any]:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ClipError(f"{path} has no JSON in line {number}: {error}; mend it.") from error

    return _objects(path, objects(), columns)


def _json(path: str, columns: Columns) -> Iterator[tuple[Any, Any]]:
    found = read_json(path)
    if not isinstance(found, list):
        raise ClipError(f"{path} holds no list; give a JSON file with a list of objects, one for each picture.")
    return _objects(path, iter(found), columns)


def _objects(path: str, objects: Iterator[Any], columns: Columns) -> Iterator[tuple[Any, Any]]:
    chosen = None
    for number, found in enumerate(objects, 1):
        if not isinstance(found, dict):
            raise ClipError(f"{path}: entry {number} is no object; give one with a picture and a caption.")
        chosen = chosen or _chosen(path, list(found), columns)
        yield found.get(chosen[0]), found.get(chosen[1])


def _parquet(path: str, columns: Columns) -> Iterator[tuple[Any, Any]]:
    if find_spec("pyarrow") is None:
        raise ClipError(f"{path} is read with pyarrow, which is not installed; run: pip install 'triclip[data]'.")
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_regular(path) as file:
        try:
            parquet = ParquetFile(file)
            names = parquet.schema_arrow.names
            chosen = _chosen(path, names, columns)
            for name in chosen:
                kind = parquet.schema_arrow.field(name).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    raise ClipError(f"{path} has the column {name} of type {kind}; give one of texts.")
            if parquet.metadata.num_rows > os.fstat(file.fileno()).st_size:
                raise ClipError(
                    f"{path} states {parquet.metadata.num_rows} rows, more than it has bytes; get it again."
                )
            for batch in parquet.iter_batches(_BATCH, columns=list(dict.fromkeys(chosen)), use_threads=False):
                yield from zip(*(batch.column(name).to_pylist() for name in chosen))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ClipError(f"{path} cannot be read as Parquet: {error}; get it again.") from error


_READERS: dict[str, Callable[[str, Columns], Iterator[tuple[Any, Any]]]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def _chosen(path: str, names: Sequence[str], columns: Columns) -> tuple[str, str]:
    """The names of the two columns among those that there are."""
    caption = _column(path, names, columns.caption, CAPTIONS, "--caption-column")
    if columns.picture == "":
        return caption, caption
    return _column(path, names, columns.picture, PICTURES, "--image-column"), caption


def _column(path: str, names: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    fitting = [name for name in names if (name == given if given is not None else name.lower() in usual)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
    if given is not None:
        raise ClipError(f"{path} has no column {given!r}, only {found}; give one of these to {option}.")
    several = "several columns could be meant" if fitting else f"no column has a usual name ({', '.join(usual)})"
    raise ClipError(f"{path} has the columns {found}, and {several}; name one by {option}.")
