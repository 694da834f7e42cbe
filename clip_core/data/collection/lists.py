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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_core import files
from clip_core.data.listing import read_json
from clip_core.errors import ClipError
from clip_core.files import open_regular
from clip_core.parquet import open_parquet

PICTURES = ("url", "image_url", "photo_image_url", "image", "filepath", "path", "img")
CAPTIONS = ("caption", "text", "title", "query", "q")
LABELS = ("label", "class", "cls")
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


Choose = Callable[[Sequence[str]], Sequence[str | None]]


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
    for row in read_columns(name, partial(_chosen, name, columns), bare=not any(columns)):
        yield Row(*row)


def read_columns(path: str, choose: Choose, bare: bool = False) -> Iterator[tuple[str, ...]]:
    """Of each row of a list, the texts in the chosen columns; what is missing, or no text, is empty.

    Args:
        choose: gives the names of the columns, of all that there are; None stands for a column that is always empty.
        bare: whether a table may be without a line that names the columns; its rows are an address and a caption then.

    Raises:
        ClipError: as `read_list`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _READERS:
        raise ClipError(f"{path} is no list of pictures by its name; give a file that ends in {', '.join(_READERS)}.")
    for row in _READERS[suffix](path, choose, bare):
        yield tuple(value.strip() if isinstance(value, str) else "" for value in row)


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


def _comma_separated(path: str, choose: Choose, bare: bool) -> Iterator[Sequence[Any]]:
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        yield from _table(path, csv.reader(text, strict=True), choose, bare)


def _tab_separated(path: str, choose: Choose, bare: bool) -> Iterator[Sequence[Any]]:
    with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
        yield from _table(path, map(_fields, text), choose, bare)


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


def _table(path: str, rows: Iterator[list[str]], choose: Choose, bare: bool) -> Iterator[Sequence[Any]]:
    number = 1
    try:
        first = next(rows, [])
        addresses = [place for place, field in enumerate(first) if field.startswith(("http://", "https://"))]
        places: list[int | None]
        if len(first) == 2 and len(addresses) == 1 and bare:
            places = [addresses[0], 1 - addresses[0]]
            yield first[addresses[0]], first[1 - addresses[0]]
        else:
            places = [None if name is None else first.index(name) for name in choose(first)]
        for number, row in enumerate(rows, 2):
            if row and row != [""]:
                if len(row) > len(first):
                    raise ClipError(f"{path} has {len(row)} fields in row {number}, and {len(first)} columns; mend it.")
                yield [row[place] if place is not None and place < len(row) else "" for place in places]
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8 in or behind row {number}: {error.reason}; save it in UTF-8.") from error
    except csv.Error as error:
        raise ClipError(
            f"{path} cannot be read in or behind row {number}: {error}; mend its quotation marks."
        ) from error


def _json_lines(path: str, choose: Choose, _: bool) -> Iterator[Sequence[Any]]:
    def objects() -> Iterator[Any]:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ClipError(f"{path} has no JSON in line {number}: {error}; mend it.") from error

    return _objects(path, objects(), choose)


def _json(path: str, choose: Choose, _: bool) -> Iterator[Sequence[Any]]:
    found = read_json(path)
    if not isinstance(found, list):
        raise ClipError(f"{path} holds no list; give a JSON file with a list of objects, one for each picture.")
    return _objects(path, iter(found), choose)


def _objects(path: str, objects: Iterator[Any], choose: Choose) -> Iterator[Sequence[Any]]:
    chosen: Sequence[str | None] = ()
    for number, found in enumerate(objects, 1):
        if not isinstance(found, dict):
            raise ClipError(f"{path}: entry {number} is no object; give one with a picture and a caption.")
        chosen = chosen or choose(list(found))
        yield [found.get(name) for name in chosen]


def _parquet(path: str, choose: Choose, _: bool) -> Iterator[Sequence[Any]]:
    with open_parquet(path) as parquet:
        from pyarrow.types import is_large_string, is_string

        chosen = choose(parquet.schema_arrow.names)
        names = list(dict.fromkeys(name for name in chosen if name is not None))
        for name in names:
            kind = parquet.schema_arrow.field(name).type
            if not (is_string(kind) or is_large_string(kind)):
                raise ClipError(f"{path} has the column {name} of type {kind}; give one of texts.")
        for batch in parquet.iter_batches(_BATCH, columns=names, use_threads=False):
            values = {name: batch.column(name).to_pylist() for name in names} | {None: [""] * len(batch)}
            yield from zip(*(values[name] for name in chosen))


_READERS: dict[str, Callable[[str, Choose, bool], Iterator[Sequence[Any]]]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def _chosen(path: str, columns: Columns, names: Sequence[str]) -> tuple[str, str]:
    """The names of the two columns among those that there are."""
    caption = column(path, names, columns.caption, CAPTIONS, "--caption-column")
    if columns.picture == "":
        return caption, caption
    return column(path, names, columns.picture, PICTURES, "--image-column"), caption


def column(path: str, names: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """The name of a column among those of a list.

    Args:
        given: by the user; None: it is the one with a usual name.
        option: of the command, by which users give it.

    Raises:
        ClipError: there is none, or several could be meant.
    """
    fitting = [name for name in names if (name == given if given is not None else name.lower() in usual)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
    if given is not None:
        raise ClipError(f"{path} has no column {given!r}, only {found}; give one of these to {option}.")
    several = "several columns could be meant" if fitting else f"no column has a usual name ({', '.join(usual)})"
    raise ClipError(f"{path} has the columns {found}, and {several}; name one by {option}.")
