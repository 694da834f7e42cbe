"""Tables, one row per picture and caption, with a header that names the columns.

The defaults are those of Conceptual Captions as open_clip lists them: separated by tabs, whatever the file is called,
with columns ``filepath`` and ``title``::

    filepath<tab>title
    train/0001.jpg<tab>a very typical bus station

WKIT separates by commas and has the columns ``Q`` (the caption) and ``IMG``. Fields may be quoted as in any CSV file.
Rows with the same path are one picture with several captions; relative paths start at ``images``.
"""

from __future__ import annotations

import csv
import io
import os
from typing import Annotated

from pydantic import Field

from clip_core.data.source import PictureFiles, SourceSettings, grouped
from clip_core.errors import ClipError
from clip_core.files import open_regular


class Table(SourceSettings):
    """A TSV or CSV file."""

    file: str
    images: str | None = None  # folder that relative paths start at; by default the table's own
    image_column: str = "filepath"
    caption_column: str = "title"
    separator: Annotated[str, Field(min_length=1, max_length=1)] = "\t"

    def open(self, seed: int) -> PictureFiles:
        folder = os.path.dirname(self.file) if self.images is None else self.images
        return PictureFiles(self.file, folder, grouped(self._rows()))

    def _rows(self) -> list[tuple[str, str]]:
        with open_regular(self.file) as file:
            # A byte order mark is not part of the first column's name.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(text, delimiter=self.separator, restval="")
            try:
                columns = reader.fieldnames or []
                for column in (self.image_column, self.caption_column):
                    if column not in columns:
                        raise ClipError(
                            f"{self.file} has no column {column!r}, only {', '.join(map(repr, columns)) or 'nothing'}; "
                            "set data.image_column, data.caption_column and data.separator."
                        )
                return [(row[self.image_column], row[self.caption_column]) for row in reader]
            except (csv.Error, UnicodeDecodeError) as error:
                raise ClipError(
                    f"{self.file} cannot be read after line {reader.line_num}: {error}; give a table in UTF-8 in which "
                    "every quotation mark that begins a field has its end."
                ) from error
