"""Tables, one row per picture and caption, with a header that names the columns.

The defaults are those of Conceptual Captions as open_clip lists them: separated by tabs, whatever the file is called,
with columns ``filepath`` and ``title``::

    filepath<tab>title
    train/0001.jpg<tab>a very typical bus station

WKIT separates by commas and has the columns ``Q`` (the caption) and ``IMG``. Rows with the same path are one picture
with several captions; relative paths start at ``images``. A row with more fields than the header is refused.

Lines end with LF or CR LF, or with CR in a file that has no LF between its lines. Any other CR belongs to its field;
outside of quotation marks it is refused in a table separated by anything but tabs.

Quotation marks:

- In a table separated by anything but tabs they are those of RFC 4180: a field that begins with one ends with one, and
  two stand for one inside of it. What breaks this rule is refused.
- Captions in tables separated by tabs have them anywhere. There a line is a row, and they are plain characters, unless
  the rule above holds for all fields of the line. Where the number of fields is right in one of the two readings only,
  that one counts.
- A field of such a table that has several lines is one when no further line of it could be a row; where each could be
  one, each is, and where only some could, the table is refused.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from clip_core.data.example import PictureFiles, SourceSettings, grouped
from clip_core.data.settings import shown
from clip_core.errors import ClipError
from clip_core.files import open_regular

_MOST_LINES = 64  # of one field in a table separated by tabs


class Table(SourceSettings):
    """A TSV or CSV file with a picture and a caption in each line."""

    kind: Literal["table"] = "table"
    file: str  # the table
    images: str | None = None  # folder that relative paths start at; by default the table's own
    image_column: str = "filepath"  # its name in the header
    caption_column: str = "title"  # likewise
    separator: Annotated[str, Field(min_length=1, max_length=1)] = "\t"

    def open(self, seed: int) -> PictureFiles:
        folder = os.path.dirname(self.file) if self.images is None else self.images
        return PictureFiles(self.file, folder, grouped(self._rows()))

    def _rows(self) -> list[tuple[str, str]]:
        # A byte order mark is not part of the first column's name.
        with open_regular(self.file) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
            try:
                lines = list(text)
            except UnicodeDecodeError as error:
                raise ClipError(f"{self.file} is not UTF-8: {error}; save it in UTF-8.") from error
        if len(lines) == 1:
            lines = list(io.StringIO(lines[0], newline=""))  # ends lines with CR too
        rows = (self._tab_separated if self.separator == "\t" else self._quoted)(lines)
        _, columns = next(rows, (1, []))
        for column in (self.image_column, self.caption_column):
            if columns.count(column) != 1:
                fault = "no" if column not in columns else "more than one"
                found = ", ".join(map(shown, columns[:20])) or "nothing"
                remedy = "set data.source.image_column, data.source.caption_column and data.source.separator"
                others = [
                    mark for mark in "\t,;|" if len(columns) == 1 and mark in columns[0] and mark != self.separator
                ]
                if others:
                    used = "a tab" if self.separator == "\t" else json.dumps(self.separator)
                    remedy = f"the separator is {used}, so write data.source.separator: {json.dumps(others[0])}"
                raise ClipError(f"{self.file} has {fault} column {column!r}, only {found}; {remedy}.")
        places = [columns.index(column) for column in (self.image_column, self.caption_column)]
        return [self._pair(number, row, len(columns), *places) for number, row in rows]

    def _pair(self, number: int, row: list[str], columns: int, image: int, caption: int) -> tuple[str, str]:
        if any(row[columns:]):
            raise ClipError(
                f"{self.file} has {len(row)} fields in line {number}, and {columns} columns; put a field that contains "
                "the separator into quotation marks."
            )
        return (row[image] if image < len(row) else ""), (row[caption] if caption < len(row) else "")

    def _quoted(self, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Number of the first line and fields of each row by RFC 4180."""
        reader = csv.reader(lines, delimiter=self.separator, strict=True)
        number = 1
        try:
            for row in reader:
                if row:
                    yield number, row
                number = reader.line_num + 1
        except csv.Error as error:
            raise ClipError(
                f"{self.file} cannot be read from line {number} on: {error}; give a table in which every quotation "
                "mark that begins a field has its end."
            ) from error

    def _tab_separated(self, lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """The same by the rule for tabs."""
        number, columns = 0, 0
        while number < len(lines):
            row, used = lines[number].removesuffix("\n").removesuffix("\r").split("\t"), 1
            if '"' in lines[number]:
                row, used = self._with_quotes(lines[number : number + _MOST_LINES], row, columns, number + 1)
            columns = columns or len(row)
            if row != [""]:
                yield number + 1, row
            number += used

    def _with_quotes(self, lines: Sequence[str], plain: list[str], columns: int, number: int) -> tuple[list[str], int]:
        """The fields of a row that begins with ``lines``, of which the first has quotation marks, and its lines."""
        reader = csv.reader(lines, delimiter="\t", strict=True)
        try:
            quoted = next(reader)
        except csv.Error:  # a quotation mark that begins a field and has no end, or characters after it
            return plain, 1
        used = reader.line_num
        if used == 1:
            return (plain if len(plain) == columns != len(quoted) else quoted), 1
        could_be_rows = [line.count("\t") + 1 == columns for line in lines[:used]]
        if all(could_be_rows):
            return plain, 1
        if any(could_be_rows[1:]):
            raise ClipError(
                f"{self.file} has a field in quotation marks from line {number} to {number + used - 1}, in which some "
                "lines could be rows; put the field into one line."
            )
        return quoted, used
