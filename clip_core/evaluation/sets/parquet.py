"""Parquet files as Hugging Face publishes data sets of pictures, read with pyarrow alone.

::

    data/test-00000-of-00003.parquet       rows with a picture and a label

The files of a split have its name, or are in a folder of that name; they may be in folders below the given one. The
column of pictures is the one whose feature is an ``Image``: records of ``bytes`` and ``path``. The column of labels is
the one whose feature is a ``ClassLabel``, which has the names of the classes; underscores in them become blanks. Where
there are several, as in CIFAR-100, ``label`` or ``fine_label`` is taken unless the key ``label_column`` says otherwise.

Rows come in their order, since a row is read together with those around it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from PIL import Image

from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.listing import tree
from clip_core.errors import ClipError, ImageError
from clip_core.evaluation.sets.labelled import LabelledPictures, PublishedSettings
from clip_core.image import open_image
from clip_core.installation import requirement

SPLITS = ("test", "validation")
"""Those that are taken without being named, the first that is there."""

MOST_BYTES = 1 << 30
"""Of the pictures in one group of rows; those that Hugging Face writes have 100 to 1000 rows, and about 100 MB."""


class Parquet(PublishedSettings):
    """A folder of Parquet files, or of folders of them, as Hugging Face publishes data sets."""

    kind: Literal["parquet"] = "parquet"
    split: str | None = None  # by default `test`, else `validation`, else the only one
    image_column: str | None = None
    label_column: str | None = None

    def labelled(self) -> LabelledPictures:
        if find_spec("pyarrow") is None:
            raise ClipError(
                f"{self.folder} is read with pyarrow, which is not installed; run: pip install {requirement('data')}."
            )
        files = self._files()
        features = _features(files[0])
        image = _column(files[0], features, "image_column", self.image_column, "Image", ("image", "img"))
        label = _column(files[0], features, "label_column", self.label_column, "ClassLabel", ("label", "fine_label"))
        names = features[label].get("names")
        if not isinstance(names, list) or not names:
            raise ClipError(f"{files[0]} has no names of the classes in its column {label}; set label_column.")
        labels = np.concatenate([_labels(file, label) for file in files])
        classes = self.class_names([str(name).replace("_", " ") for name in names])
        return LabelledPictures(
            self.folder, Rows(self.folder, files, image), labels, classes, self.prompts(classes), in_turn=False
        )

    def _files(self) -> list[str]:
        """The files of the split, in the order of their paths."""
        found, _ = tree(self.folder)
        by_split: dict[str, list[str]] = {}
        for path in found:
            if path.endswith(".parquet"):
                folder, name = os.path.split(path)
                split = name.removesuffix(".parquet").partition("-")[0]
                if split.isdecimal() or split == "part":  # as 0000.parquet in a folder of the split
                    split = os.path.basename(folder)
                by_split.setdefault(split, []).append(path)
        if not by_split:
            raise ClipError(f"{self.folder} has no files of the kind .parquet; give the folder that has them.")
        usual = [split for split in SPLITS if split in by_split]
        split = self.split or (usual[0] if usual else next(iter(by_split)))
        if split not in by_split or (self.split is None and not usual and len(by_split) > 1):
            raise ClipError(f"{self.folder} has the splits {', '.join(by_split)}; set split to one of them.")
        return by_split[split]


class Rows:
    """The pictures in a column of some files, which each process opens for itself.

    A group of rows is kept until a row of another one is asked for.
    """

    def __init__(self, folder: str, files: list[str], column: str):
        self._folder, self._files, self._column = folder, files, column
        rows = [_rows_of_groups(path, column) for path in files]
        self._groups = [(file, group) for file, of_file in enumerate(rows) for group in range(len(of_file))]
        self._ends = np.cumsum([0] + [count for of_file in rows for count in of_file])
        self._starts = np.cumsum([0] + [sum(of_file) for of_file in rows])
        self._kept: tuple[int, Any] = (-1, None)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": (-1, None)}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Image.Image:
        place = int(np.searchsorted(self._ends, index, side="right")) - 1
        if self._kept[0] != place:
            file, group = self._groups[place]
            leaf = _leaf(self._files[file], self._column)
            # A value that many rows share is kept once, so that a small file does not take much memory.
            with _opened(self._files[file], read_dictionary=[leaf]) as content:
                self._kept = place, content.read_row_group(group, columns=[leaf]).column(0)
        with _readable(self._files[self._groups[place][0]]):
            stored = self._kept[1][int(index - self._ends[place])].as_py()
        data = stored.get("bytes") if isinstance(stored, dict) else stored
        if not isinstance(data, bytes) or not data:
            raise ImageError(f"{self.name(index)} of {self._folder} holds no picture in column {self._column}.")
        try:
            return open_image(data)
        except ImageError as error:
            raise ImageError(f"{self.name(index)} of {self._folder}: {error}") from error

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{os.path.relpath(self._files[file], self._folder)}/{index - self._starts[file]}"

    def fingerprint(self) -> str:
        names = Texts(os.path.relpath(file, self._folder) for file in self._files)
        return fingerprint_of(names, [os.path.getsize(file) for file in self._files])

    def files(self) -> Iterable[str]:
        return self._files


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Whatever pyarrow says of a file as one sentence."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ClipError(f"{path} cannot be read as Parquet: {error!s:.300}; get it again.") from error


@contextmanager
def _opened(path: str, **options: Any) -> Iterator[Any]:
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path, **options) as content:
        yield content


def _features(path: str) -> dict[str, dict[str, Any]]:
    """What the ``datasets`` of Hugging Face know of each column; at least its type in Parquet."""
    with _opened(path) as content:
        schema = content.schema_arrow
        columns: dict[str, dict[str, Any]] = {field.name: {"_type": str(field.type)} for field in schema}
        stored = (content.metadata.metadata or {}).get(b"huggingface", b"{}")
    try:
        found = json.loads(stored)["info"]["features"]
        return columns | {name: known for name, known in found.items() if name in columns and isinstance(known, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return columns


def _column(
    path: str, features: dict[str, dict[str, Any]], key: str, chosen: str | None, kind: str, usual: tuple[str, ...]
) -> str:
    """The column of a kind of feature: the chosen one, the only one, or the first of the usual names."""
    found = [name for name, feature in features.items() if feature.get("_type") == kind]
    if chosen is not None:
        found = [name for name in features if name == chosen]
    elif len(found) > 1:
        found = [name for name in usual if name in found]
    if not found:
        columns = ", ".join(f"{name} ({feature.get('_type')})" for name, feature in features.items())
        raise ClipError(f"{path} has the columns {columns}, and one of the kind {kind} is needed; set {key}.")
    return found[0]


def _labels(path: str, column: str) -> np.ndarray:
    """The labels of a file, int64 [n]."""
    with _opened(path) as content:
        if content.metadata.num_rows > os.path.getsize(path):
            raise ClipError(f"{path} states {content.metadata.num_rows} rows, more than it has bytes; get it again.")
        found = content.read(columns=[column]).column(0)
        if not str(found.type).startswith(("int", "uint")) or found.null_count:
            kind = f"type {found.type}, and {found.null_count} of them are null"
            raise ClipError(f"{path} has labels of {kind}; give a split with whole numbers for labels.")
        return found.to_numpy().astype(np.int64)


def _leaf(path: str, column: str) -> str:
    """Where in a column the bytes of the pictures are."""
    with _opened(path) as content:
        paths = [content.schema.column(number).path for number in range(len(content.schema))]
    return next(leaf for leaf in (f"{column}.bytes", column) if leaf in paths or leaf == column)


def _rows_of_groups(path: str, column: str) -> list[int]:
    """How many rows each group of rows has."""
    with _opened(path) as content:
        groups = [content.metadata.row_group(number) for number in range(content.metadata.num_row_groups)]
        for group in groups:
            parts = [group.column(number) for number in range(group.num_columns)]
            size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
            if size > MOST_BYTES:
                raise ClipError(
                    f"{path} has {size} bytes of pictures in a group of rows, and at most {MOST_BYTES} are read at "
                    "once; save it with smaller groups."
                )
        return [group.num_rows for group in groups]
