"""What can be embedded: pictures in files, folders, archives, tables and on the network, and lists of texts.

An argument is one of these, and its pictures come in this order:

- a picture, or a pattern such as ``a/*.png``: as sorted;
- a folder: the pictures in it, sorted, and then those of each folder below it; if there are none, the archives in it,
  or else the Parquet files;
- a tar file, also as WebDataset has them, or a zip file: the pictures in the order of its members. Members with the
  same stem are the caption (``txt``, or a key of ``json``) and the label (``cls``) of a picture;
- a ``.parquet`` file with encoded pictures in a column, as bytes or as Hugging Face's ``datasets`` keeps them;
- a list: ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` or ``.parquet`` with a column of paths or addresses, or a ``.txt``
  with one a line. Relative paths start at the list's folder;
- an http or https address, which is fetched as `clip_core.data.collection.fetching` does.

What is held of each picture is its name and where it is. Its bytes are read when they are asked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from glob import glob
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from clip_core.data.collection.fetching import Fetcher, Limits
from clip_core.data.collection.lists import CAPTIONS, LABELS, PICTURES, column, read_columns
from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.listing import json_in, lines_of, tree, warn_of_rest
from clip_core.data.trees import Archive, Place, archive, size_of
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.files import read_regular
from clip_core.image import MAX_FILE_BYTES, SUFFIXES
from clip_core.parquet import open_parquet

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".txt")
PARQUET = ".parquet"

MOST_TEXT_BYTES = 1 << 20  # of a caption or label
AT_ONCE = 16  # addresses that a process fetches at the same time

_ROWS = 16  # of a Parquet file that are in memory


class Columns(NamedTuple):
    """The names of the columns of lists and Parquet files; where one is None, a usual name is looked for.

    In an archive, ``caption`` is the key of ``json`` members that have the captions.
    """

    image: str | None = None
    caption: str | None = None
    label: str | None = None


class Encoded(NamedTuple):
    """A picture as it is stored."""

    id: str
    path: str
    data: bytes | Image.Image  # a picture that was given as such is not encoded
    caption: str | None = None
    label: str | None = None


class Pictures(Protocol):
    """Encoded pictures by number, which may be asked for in another process."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What messages call a picture."""

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        """For each of the numbers the picture, or why it cannot be read."""

    def fingerprint(self) -> str:
        """What tells these pictures from others: their names, sizes, captions and labels, without reading them."""


def open_pictures(arguments: Sequence[str], columns: Columns = Columns()) -> Pictures:  # noqa: B008  # it is frozen
    """The pictures that arguments stand for, in their order.

    Raises:
        ClipError: there are none, or an argument cannot be read or is named twice.
    """
    sources: list[Pictures] = []
    single: dict[str, None] = {}  # pictures one after the other, each once
    seen: Counter[str] = Counter()

    def finish() -> None:
        new = [name for name in single if not seen[name]]
        seen.update(new)
        if new:
            sources.append(Listed(new))
        single.clear()

    for argument in arguments:
        for name in _fitting(argument):
            opened = _kind(name)
            if opened is None:
                single[name] = None
                continue
            finish()
            if seen[name]:
                raise ClipError(f"{name} is named more than once; name each archive and list once.")
            seen[name] += 1
            sources.append(opened(name, columns))
    finish()
    if not any(map(len, sources)):
        raise ClipError(
            f"{', '.join(arguments[:5]) or 'Nothing'} names no pictures; give pictures ({', '.join(SUFFIXES)}), a "
            "folder, an archive, a list or addresses."
        )
    return sources[0] if len(sources) == 1 else Joined(sources)


class Listed:
    """Pictures by their paths and addresses.

    Args:
        names: of the pictures, none of them twice; they are also their ids.
        folder: where relative paths start.
        captions, labels: as many, empty where there is none.
    """

    def __init__(
        self, names: Iterable[str], folder: str = "", captions: Iterable[str] = (), labels: Iterable[str] = ()
    ) -> None:
        self._names, self._folder = Texts(names), folder
        self._captions, self._labels = Texts(captions), Texts(labels)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        name = self._names[number]
        return name if is_address(name) else os.path.join(self._folder, name)

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        if not any(is_address(self._names[number]) for number in numbers):
            yield from map(self._read, numbers)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self._read, numbers)

    def _read(self, number: int) -> Encoded | ClipError:
        name = self.name(number)
        try:
            if not self._names[number]:
                raise ImageError(f"Row {number} (counted from 0) of the list in {self._folder} names no picture.")
            data = _fetcher().fetch(name) if is_address(name) else read_regular(name, MAX_FILE_BYTES)
        except ClipError as error:
            return error
        about = (texts[number] or None if len(texts) else None for texts in (self._captions, self._labels))
        return Encoded(self._names[number], name, data, *about)

    def fingerprint(self) -> str:
        sizes = [size_of(self.name(number)) for number in range(len(self))]
        return fingerprint_of(self._names, sizes, self._captions, self._labels)


class Members:
    """The pictures in an archive, with the captions and labels beside them."""

    def __init__(self, path: str, columns: Columns) -> None:
        self._path, self._key = path, columns.caption
        found = archive(path)
        self._file = found.file
        shown = [name for name in found.places if not any(part.startswith(".") for part in name.split("/"))]
        names = [name for name in shown if os.path.splitext(name)[1].lower() in SUFFIXES]
        self._names = Texts(names)
        absent = (-1,) * len(Place._fields)
        suffixes = ("", "txt" if self._key is None else "json", "cls")
        self._places = np.array(
            [
                [
                    [-1 if value is None else value for value in found.places.get(member, absent)]
                    for member in (name, *(f"{_stem(name)}.{suffix}" for suffix in suffixes[1:]))
                ]
                for name in names
            ],
            np.int64,
        ).reshape(-1, 3, len(absent))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        return f"{self._path}/{self._names[number]}"

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        for number in numbers:
            name = self.name(number)
            try:
                data = self._member(number, 0, MAX_FILE_BYTES)
                caption, label = (self._text(number, column) for column in (1, 2))
                yield Encoded(name, name, data or b"", caption, label)
            except ClipError as error:
                yield error

    def _text(self, number: int, column: int) -> str | None:
        data = self._member(number, column, MOST_TEXT_BYTES)
        if data is None:
            return None
        if column == 1 and self._key is not None:
            found = json_in(data, f"The json member of {self.name(number)}")
            text = found.get(self._key) if isinstance(found, dict) else None
            return text.strip() if isinstance(text, str) and text.strip() else None
        return data.decode("utf-8", "replace").strip() or None

    def _member(self, number: int, column: int, limit: int) -> bytes | None:
        start, stored, size, deflated, checksum = self._places[number, column].tolist()
        if start < 0:
            return None
        name = self._names[number]
        place = Place(start, stored, size, bool(deflated), None if checksum < 0 else checksum)
        return Archive(self._path, self._file, {name: place}).read(name, limit)

    def fingerprint(self) -> str:
        return fingerprint_of(self._names, self._places[:, :, 2].ravel())


class Rows:
    """The rows of a Parquet file with encoded pictures in a column.

    Raises:
        ClipError: it is damaged, or lacks a column.
    """

    def __init__(self, path: str, columns: Columns) -> None:
        self._path = path
        with open_parquet(path) as opened:
            names = opened.schema_arrow.names
            self._image = column(path, names, columns.image, PICTURES, "--image-column")
            self._caption = _optional(path, columns.caption, CAPTIONS, "--caption-column", names)
            self._label = _optional(path, columns.label, LABELS, "--label-column", names)
            groups = [opened.metadata.row_group(number).num_rows for number in range(opened.metadata.num_row_groups)]
        self._ends = np.cumsum([0, *groups])  # of the rows of each group
        self._reader: Iterator[Any] | None = None
        self._next = 0  # the row that the reader gives next

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_reader": None}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, number: int) -> str:
        return f"{self._path}#{number}"

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        try:
            if self._reader is None or not self._next <= numbers.start:
                group = int(np.searchsorted(self._ends, numbers.start, side="right")) - 1
                self._reader, self._next = self._rows_from(group), int(self._ends[group])
            for row in self._reader:
                number, self._next = self._next, self._next + 1
                if number >= numbers.start:
                    yield self._encoded(number, *row)
                if self._next >= numbers.stop:
                    return
            raise ClipError(f"{self._path} has {self._next} rows, fewer than it states; get it again.")
        except ClipError as error:
            self._reader = None
            yield from (error for _ in range(max(self._next, numbers.start), numbers.stop))

    def _rows_from(self, group: int) -> Iterator[tuple[Any, ...]]:
        names = [self._image, self._caption, self._label]
        wanted = list(dict.fromkeys(name for name in names if name is not None))
        with open_parquet(self._path) as opened:
            for batch in opened.iter_batches(
                _ROWS, row_groups=range(group, len(self._ends) - 1), columns=wanted, use_threads=False
            ):
                batch.validate(full=True)
                for row in range(len(batch)):  # one at a time: in a small file, all rows may share a large picture
                    yield tuple(None if name is None else batch.column(name)[row].as_py() for name in names)

    def _encoded(self, number: int, image: object, caption: object, label: object) -> Encoded | ClipError:
        stored = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(stored, bytes) or not stored:
            return ImageError(f"{self.name(number)} holds no picture in column {self._image}.")
        texts = (None if value is None else str(value).strip() or None for value in (caption, label))
        return Encoded(self.name(number), self.name(number), stored, *texts)

    def fingerprint(self) -> str:
        return fingerprint_of(self._path, [size_of(self._path)], self._ends)


class Joined:
    """The pictures of several sources one after the other."""

    def __init__(self, sources: Sequence[Pictures]) -> None:
        self._sources = sources
        self._ends = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, number: int) -> str:
        source = int(np.searchsorted(self._ends, number, side="right")) - 1
        return self._sources[source].name(number - int(self._ends[source]))

    def read(self, numbers: range) -> Iterator[Encoded | ClipError]:
        for source, first, end in zip(self._sources, self._ends.tolist(), self._ends[1:].tolist()):
            inside = range(max(numbers.start, first) - first, min(numbers.stop, end) - first)
            if inside:
                yield from source.read(inside)

    def fingerprint(self) -> str:
        return fingerprint_of(Texts(source.fingerprint() for source in self._sources))


def texts_of(path: str, column_name: str | None = None) -> list[str]:
    """The texts of a list: lines that are not blank, or the column of captions of a table.

    Raises:
        ClipError: it cannot be read, or has none.
    """
    if Path(path).suffix.lower() in (*LISTS[:-1], PARQUET):
        choose: Callable[[Sequence[str]], Sequence[str]] = lambda names: [  # noqa: E731
            column(path, names, column_name, CAPTIONS, "--caption-column")
        ]
        texts = [text for (text,) in read_columns(path, choose)]
    else:
        texts = [line for line in lines_of(path) if line]
    if not texts:
        raise TextError(f"{path} has no texts; give a file with one in each line or row.")
    return texts


def is_address(name: str) -> bool:
    """Whether it is one of http or https."""
    return name.startswith(("http://", "https://"))


def _fitting(argument: str) -> list[str]:
    """A file itself, what a folder stands for, or both for all that fits a pattern."""
    if is_address(argument) or os.path.lexists(argument) or not re.search("[*?[]", argument):
        fitting = [argument]
    else:
        fitting = sorted(glob(argument, recursive=True))
    return list(chain.from_iterable(_inside(name) if os.path.isdir(name) else [name] for name in fitting))


def _inside(folder: str) -> list[str]:
    """What a folder stands for."""
    paths, again = tree(folder)
    for suffixes in (SUFFIXES, ARCHIVES, (PARQUET,)):
        found = [path for path in paths if path.lower().endswith(suffixes)]
        if found:
            warn_of_rest(folder, [path for path in paths if not path.lower().endswith(suffixes)], again)
            return found
    return []


def _kind(name: str) -> Callable[[str, Columns], Pictures] | None:
    """What opens a source of many pictures; None: it is a picture."""
    lower = name.lower()
    if is_address(name):
        return None
    if lower.endswith(ARCHIVES):
        return Members
    if lower.endswith(PARQUET):
        return _of_parquet
    return _listed if lower.endswith(LISTS) else None


def _of_parquet(path: str, columns: Columns) -> Pictures:
    """The pictures of a Parquet file, or those that it lists."""
    with open_parquet(path) as opened:
        schema = opened.schema_arrow
        kind = schema.field(column(path, schema.names, columns.image, PICTURES, "--image-column")).type
    return _listed(path, columns) if str(kind) in ("string", "large_string") else Rows(path, columns)


def _listed(path: str, columns: Columns) -> Listed:
    """The pictures that a list names, each once, with the first of its captions."""
    if path.lower().endswith(".txt"):
        return Listed(dict.fromkeys(line for line in lines_of(path) if line), os.path.dirname(path))
    rows: dict[str, tuple[str, ...]] = {}
    for name, *about in read_columns(path, partial(_chosen, path, columns), bare=not any(columns)):
        rows.setdefault(name, (*about, "", "")[:2])
    captions, labels = ([about[place] for about in rows.values()] for place in (0, 1))
    return Listed(rows, os.path.dirname(path), captions, labels)


def _chosen(path: str, columns: Columns, names: Sequence[str]) -> list[str | None]:
    """The names of the columns of pictures, captions and labels."""
    return [
        column(path, names, columns.image, PICTURES, "--image-column"),
        _optional(path, columns.caption, CAPTIONS, "--caption-column", names),
        _optional(path, columns.label, LABELS, "--label-column", names),
    ]


def _optional(path: str, given: str | None, usual: Sequence[str], option: str, names: Sequence[str]) -> str | None:
    """The name of a column, if it is given or there is one with a usual name."""
    if given is None and not any(name.lower() in usual for name in names):
        return None
    return column(path, names, given, usual, option)


def _stem(name: str) -> str:
    """What the members of one sample have in common: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


@lru_cache(1)
def _fetcher() -> Fetcher:
    """The one of this process."""
    return Fetcher(Limits())
