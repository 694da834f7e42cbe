"""Data saved to disk by Hugging Face's ``datasets`` (``save_to_disk``), read with pyarrow alone.

::

    dataset_dict.json                {"splits": ["train"]}; then each split is a folder of its own
    train/state.json                 {"_data_files": [{"filename": "data-00000-of-00002.arrow"}, ...], ...}
    train/data-00000-of-00002.arrow  Arrow streams

The column of pictures holds what ``datasets`` makes of its ``Image`` feature (a record of ``bytes`` and ``path``), or
encoded pictures as bytes, or in base64 as a text or a list that begins with one. The column of captions holds a text or
a list of texts. Rows without a picture, as SBU's are whose address was dead, are left out.

So that a small file cannot ask for gigabytes, compressed files are refused, which ``save_to_disk`` does not write, and
so are columns of types in which rows can share their content.

M3IT (`M3it`) has its pictures in ``image_base64_str`` and its captions in ``outputs``. A picture has a row for each of
its captions there, so rows with the same picture are made one example.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from clip_core.data.example import Photograph, SourceSettings, Texts, captions, fingerprint_of
from clip_core.data.listing import read_json, records
from clip_core.errors import ClipError, ImageError
from clip_core.image import open_image
from clip_core.installation import requirement


class Saved(SourceSettings):
    """A folder that ``save_to_disk`` wrote."""

    kind: Literal["saved"] = "saved"
    folder: str
    split: str | None = None  # needed when the folder holds several
    image_column: str = "image"
    caption_column: str = "caption"

    def rows(self) -> Rows:
        """The rows of all files, in their order."""
        if find_spec("pyarrow") is None:
            raise ClipError(
                f"{self.folder} is read with pyarrow, which is not installed; run: pip install {requirement('data')}."
            )
        folder = self.folder
        listing = os.path.join(folder, "dataset_dict.json")
        if os.path.exists(listing):
            found = read_json(listing)
            splits = found.get("splits") if isinstance(found, dict) else None
            if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
                raise ClipError(f"{listing} has no list 'splits'; give a folder that save_to_disk wrote.")
            wanted = splits[0] if self.split is None and len(splits) == 1 else self.split
            if wanted not in splits:
                raise ClipError(f"{folder} has the splits {', '.join(splits)}; set data.source.split to one of them.")
            folder = os.path.join(folder, str(wanted))
        state = os.path.join(folder, "state.json")
        files = records(state, read_json(state), "_data_files", filename=str)
        paths = [os.path.join(folder, file["filename"]) for file in files]
        return Rows(folder, paths, self.image_column, self.caption_column)

    def open(self, seed: int) -> SavedRows:
        rows = self.rows()
        return SavedRows(rows, [[number] for number in rows.with_picture()])


class M3it(Saved):
    """A folder that ``save_to_disk`` wrote of M3IT; rows with the same picture are one example."""

    kind: Literal["m3it"] = "m3it"  # type: ignore[assignment]  # only one of the two is read
    image_column: str = "image_base64_str"
    caption_column: str = "outputs"

    def open(self, seed: int) -> SavedRows:
        rows = self.rows()
        by_picture: dict[bytes, list[int]] = {}
        for number in rows.with_picture():
            try:
                stored = rows.picture(number)
            except ClipError:  # which is met again when the example is asked for
                stored = f"row {number}"
            digest = hashlib.sha256(stored if isinstance(stored, bytes) else str(stored).encode()).digest()
            by_picture.setdefault(digest, []).append(number)
        return SavedRows(rows, list(by_picture.values()))


class Rows:
    """The rows of Arrow files, which each process maps into memory for itself.

    Raises:
        ClipError: a file is missing or damaged, or lacks a column.
    """

    def __init__(self, folder: str, files: list[str], image_column: str, caption_column: str):
        self.folder = folder
        self._files = files
        self.image_column, self.caption_column = image_column, caption_column
        self._opened: Any = None
        self._sound: bool | None = None  # whether no row is damaged; None before it is known

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}

    def with_picture(self) -> list[int]:
        """The numbers of the rows whose picture is not null."""
        return np.flatnonzero(self._table["image"].is_valid()).tolist()

    def picture(self, number: int) -> object:
        """What stands for the picture in a row: its encoded bytes, the path of a file, or a text in base64."""
        stored = self._value("image", number)
        if isinstance(stored, dict):
            return stored.get("bytes") or _Path(stored.get("path") or "")
        return stored[0] if isinstance(stored, list) and stored else stored

    def fingerprint(self) -> str:
        """Of the names and sizes of the files, and of all captions if no row is damaged."""
        names = Texts(os.path.basename(file) for file in self._files)
        sizes = [os.path.getsize(file) for file in self._files]
        chunks = self._table["caption"].chunks if self._sound else []
        return fingerprint_of(names, sizes, Texts(str(stored) for chunk in chunks for stored in chunk.to_pylist()))

    def files(self) -> Iterable[str]:
        return self._files

    def captions(self, number: int) -> list[object]:
        """The captions of a row."""
        stored = self._value("caption", number)
        return stored if isinstance(stored, list) else [stored]

    def _value(self, column: str, number: int) -> Any:
        cell = self._table[column].slice(number, 1).chunk(0)
        try:
            if not self._sound:
                # Of a record, the slice alone would still have its fields whole.
                for part in cell.flatten() if hasattr(cell, "field") else [cell]:
                    part.validate(full=True)
            return cell[0].as_py()
        except ValueError as error:  # offsets that lead outside, or a text that is not UTF-8
            raise ClipError(f"Row {number} of {self.folder} is damaged: {error}; save it again.") from error

    @property
    def _table(self) -> Any:
        if self._opened is None:
            import pyarrow

            tables = [_read(pyarrow, file, (self.image_column, self.caption_column)) for file in self._files]
            try:
                self._opened = pyarrow.concat_tables(tables)
                self._opened.validate()  # lengths in a damaged file must not lead outside of it
                if self._sound is None:
                    with suppress(pyarrow.ArrowInvalid):  # then each row is checked when it is asked for
                        self._opened.validate(full=True)
                        self._sound = True
                self._sound = bool(self._sound)
            except pyarrow.ArrowException as error:
                raise ClipError(
                    f"The files of {self.folder} are damaged or do not fit together: {error}; save it again."
                ) from error
        return self._opened


class _Path(str):
    """The path of a picture, told from a text in base64."""


def _read(pyarrow: Any, file: str, columns: tuple[str, str]) -> Any:
    try:
        with pyarrow.memory_map(file) as mapped:
            if any(_is_compressed(message.metadata.to_pybytes()) for message in _messages(pyarrow, mapped)):
                raise ClipError(f"{file} is compressed, which is not read here; save the data with save_to_disk again.")
            mapped.seek(0)
            with pyarrow.ipc.open_stream(mapped) as stream:
                table = stream.read_all()
        for column in columns:
            if table.column_names.count(column) != 1:
                raise ClipError(
                    f"{file} has the columns {', '.join(table.column_names)}, not {column}; "
                    "set data.source.image_column and data.source.caption_column."
                )
            kind = table.schema.field(column).type
            if not _is_bounded(pyarrow.types, kind):
                raise ClipError(
                    f"{file} has the column {column} of type {kind}, which is not read here; save it as texts, as "
                    "bytes, or as lists or records of them."
                )
        if len(table) > os.path.getsize(file):
            raise ClipError(f"{file} states {len(table)} rows, more than it has bytes; save the data again.")
        return table.select(columns).rename_columns(["image", "caption"])
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, struct.error) as error:
        raise ClipError(f"{file} cannot be read as an Arrow stream: {error}; save the data again.") from error


def _is_bounded(types: Any, kind: Any, in_list: bool = False) -> bool:
    """Whether all that a column of such a type holds has a place of its own in the file, but for nulls, one per row."""
    if types.is_struct(kind):
        fields = [kind.field(number).type for number in range(kind.num_fields)]
        return bool(fields) and all(_is_bounded(types, field, in_list) for field in fields)
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_bounded(types, kind.value_type, in_list=True)
    plain = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(is_kind(kind) for is_kind in plain) or (types.is_null(kind) and not in_list)


def _messages(pyarrow: Any, stream: Any) -> Iterator[Any]:
    """The messages of an Arrow stream."""
    reader = pyarrow.ipc.MessageReader.open_stream(stream)
    with suppress(StopIteration):
        while True:
            yield reader.read_next_message()


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message has rows, or the values of a dictionary, in compressed buffers.

    Args:
        metadata: the flat buffer of the message, which pyarrow has verified.
    """
    message = _followed(metadata, 0)
    kind = _field(metadata, message, 1)
    if kind is None or metadata[kind] not in (2, 3):
        return False
    batch = _followed(metadata, _field(metadata, message, 2))
    if metadata[kind] == 2:  # a dictionary, with its values in a batch
        batch = _followed(metadata, _field(metadata, batch, 1))
    return _field(metadata, batch, 3) is not None or b"ARROW:experimental_compression" in metadata


def _followed(data: bytes, place: int | None) -> int:
    """Where the offset at a place of a flat buffer leads."""
    if place is None:
        raise OSError("a message has no header")
    return place + int(struct.unpack_from("<I", data, place)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a table of a flat buffer has the field of that number; None without it."""
    offsets = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", data, offsets)[0]:
        return None
    offset = struct.unpack_from("<H", data, offsets + entry)[0]
    return table + int(offset) if offset else None


class SavedRows:
    """Examples made of one row, or of several rows with the same picture.

    Raises:
        ClipError: there are none.
    """

    def __init__(self, rows: Rows, examples: list[list[int]]):
        if not examples:
            raise ClipError(f"{rows.folder} has no row with a picture; give data with at least one batch of them.")
        self._rows = rows
        self._numbers = np.array([number for example in examples for number in example])
        self._ends = np.cumsum([0] + [len(example) for example in examples])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Photograph:
        numbers = self._numbers[self._ends[index] : self._ends[index + 1]].tolist()
        name = f"Row {numbers[0]} of {self._rows.folder}"
        texts = captions([text for number in numbers for text in self._rows.captions(number)], name)
        stored = self._rows.picture(numbers[0])
        if isinstance(stored, str) and not isinstance(stored, _Path):
            try:
                stored = base64.b64decode(stored, validate=True)
            except ValueError as error:
                raise ImageError(f"{name}: the picture is not in base64: {error}.") from error
        if not isinstance(stored, (bytes, str)) or not stored:
            raise ImageError(f"{name} holds no picture in column {self._rows.image_column}.")
        try:
            return Photograph(open_image(stored), texts)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error

    def fingerprint(self) -> str:
        return fingerprint_of(self._rows.fingerprint(), self._numbers, self._ends)

    def files(self) -> Iterable[str]:
        return self._rows.files()

    def captions(self) -> Iterator[str]:
        for number in self._numbers.tolist():
            with suppress(ClipError):  # a fault of its example
                yield from (text for text in self._rows.captions(number) if isinstance(text, str))
