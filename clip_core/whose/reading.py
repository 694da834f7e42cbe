"""Embeddings that any program has written: .npy, .npz, Parquet, CSV, or a folder of such files; nothing is executed."""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError
from clip_core.files import open_regular, read_regular
from clip_core.installation import requirement

MAX_BYTES = 8 << 30  # of the arrays of one file
NAMES = ("path", "filepath", "file_path", "file_name", "filename", "file", "image", "image_path", "name", "id", "key")
"""What a column or an array of the pictures' names is called, the likelier first."""


class Given(NamedTuple):
    """Embeddings as they were found."""

    embeddings: np.ndarray  # float16, float32 or float64 [n, d]
    names: list[str] | None  # of the pictures, where the file tells them


def read(path: Path) -> Given:
    """The embeddings of a file, or of all files of a folder in the order of their names.

    Raises:
        ClipError: there are none, they are of no known form, or not all finite numbers with a direction.
    """
    if path.is_dir() and any(path.glob("from-*")):
        ours = Parts(path, whole=False)
        given = Given(ours.embeddings(), [name for part in ours for name in part.columns["path"]])
    elif path.is_dir():
        parts = [read_file(each) for each in sorted(path.iterdir()) if each.suffix.lower() in READERS]
        if not parts:
            raise ClipError(f"{path} has no embeddings in it ({', '.join(READERS)}); give the folder or file of some.")
        widths = {part.embeddings.shape[1] for part in parts}
        if len(widths) > 1:
            raise ClipError(
                f"{path} has embeddings of {' and '.join(map(str, sorted(widths)))} dimensions; give those of one "
                "model."
            )
        names = [name for part in parts for name in part.names or ()]
        given = Given(
            np.concatenate([part.embeddings for part in parts]),
            names if all(part.names is not None for part in parts) else None,
        )
    else:
        given = read_file(path)
    if not len(given.embeddings):
        raise ClipError(f"{path} has no embeddings in it; give a file with one for each picture.")
    return given


def read_file(path: Path) -> Given:
    """The embeddings of one file.

    Raises:
        ClipError: as `read`.
    """
    if path.suffix.lower() not in READERS:
        raise ClipError(
            f"{path} has the suffix {path.suffix or 'of no kind'!r}, expected one of {', '.join(READERS)}, or a folder "
            "with such files; save the embeddings as .npy, for example."
        )
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        raise ClipError(f"{path} has {size} bytes, and at most {MAX_BYTES} are read; give the first part of it.")
    with _one_sentence(path):
        return READERS[path.suffix.lower()](path)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except ClipError:
        raise
    except Exception as error:  # a damaged file can make a reader raise anything
        raise ClipError(
            f"{path} cannot be read: {str(error) or type(error).__name__}; give a file that is whole."
        ) from error


def _npy(path: Path) -> Given:
    with open_regular(path) as file:
        return Given(_matrix(path, _array(file)), None)


def _npz(path: Path) -> Given:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
        if declared > MAX_BYTES:
            raise ClipError(f"{path} unpacks to {declared} bytes, and at most {MAX_BYTES} are read; give a part of it.")
        for member in archive.namelist():
            with archive.open(member) as file:
                arrays[member.removesuffix(".npy")] = _array(file)
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"}
    if len(matrices) != 1:
        found = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items()) or "nothing"
        raise ClipError(f"{path} holds {found}; expected one matrix of floats, [pictures, dimensions], and names.")
    (matrix,) = matrices.values()
    texts = {name.lower(): array for name, array in arrays.items() if array.ndim == 1 and array.dtype.kind in "SU"}
    named = next((texts[name] for kind in NAMES for name in (kind, f"{kind}s") if name in texts), None)
    return Given(_matrix(path, matrix), None if named is None else [_text(name) for name in named.tolist()])


def _array(file: IO[bytes]) -> np.ndarray:
    """The array in a file of NumPy's format, unless it needs code to be built.

    Raises:
        ValueError: it does, or is not whole.
    """
    header = _HEADERS[np.lib.format.read_magic(file)]
    shape, fortran_order, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python's objects, not numbers")
    size = prod(shape) * dtype.itemsize
    data = file.read(min(size, MAX_BYTES))
    if len(data) != size:
        raise ValueError(f"it has {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _parquet(path: Path) -> Given:
    if find_spec("pyarrow") is None:
        raise ClipError(f"{path} is read with pyarrow, which is not installed; run: pip install {requirement('data')}.")
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema = file.schema_arrow
        lists = [
            field.name
            for field in schema
            if hasattr(field.type, "value_type") and pyarrow.types.is_floating(field.type.value_type)
        ]
        column = "embedding" if "embedding" in lists else lists[0] if len(lists) == 1 else None
        if column is None:
            raise ClipError(
                f"{path} has the columns {', '.join(schema.names[:20])}, of which {len(lists)} have lists of floats; "
                "expected one, or one called embedding."
            )
        texts = {
            field.name.lower(): field.name
            for field in schema
            if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
        }
        named = next((texts[name] for name in NAMES if name in texts), None)
        table = file.read([column] if named is None else [column, named])
    vectors = table.column(column).combine_chunks()
    if vectors.null_count:
        raise ClipError(f"{path} has {vectors.null_count} rows without an embedding; leave them out.")
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    if len(vectors) and len(flat) % len(vectors):
        raise ClipError(f"{path} has embeddings of different lengths; give those of one model.")
    names = None if named is None else [str(name) for name in table.column(named).to_pylist()]
    return Given(_matrix(path, flat.reshape(len(vectors), -1)), names)


def _csv(path: Path) -> Given:
    text = io.StringIO(read_regular(path, MAX_BYTES).decode("utf-8-sig"), newline="")
    rows = [row for row in csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]
    if rows and _names_columns(rows[0]):
        rows = rows[1:]
    named = bool(rows) and not _is_number(rows[0][0])
    numbers = [row[1:] if named else row for row in rows]
    if len({len(row) for row in numbers}) > 1:
        raise ClipError(
            f"{path} has rows of different lengths; give one embedding a row, with or without a name first."
        )
    return Given(_matrix(path, np.array(numbers, np.float64)), [row[0] for row in rows] if named else None)


def _names_columns(row: Sequence[str]) -> bool:
    """Whether a first row has names in place of numbers, or numbers the columns."""
    return not any(map(_is_number, row[1:])) or list(row[1:]) == [str(number) for number in range(len(row) - 1)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


READERS: dict[str, Callable[[Path], Given]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
}


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _matrix(path: Path, array: np.ndarray) -> np.ndarray:
    """The array itself, if it can be embeddings."""
    if array.ndim != 2 or array.dtype.name not in ("float16", "float32", "float64"):
        raise ClipError(
            f"{path} holds {array.dtype} of shape {array.shape}, expected floats of 16, 32 or 64 bits of shape "
            "(pictures, dimensions)."
        )
    return array


def matched(source: Path, given: Given, pictures: Sequence[str]) -> list[tuple[int, int]]:
    """Which row of the embeddings is of which picture, in the order of the rows.

    Names are compared whole, then by their last parts, then by these without their suffixes. Without names the rows are
    in the order of the pictures.

    Args:
        source: of the embeddings, for messages.
        pictures: paths.

    Raises:
        ClipError: without names, the numbers differ; with names, none is of a picture, or it may be of several.
    """
    if given.names is None:
        if len(given.embeddings) != len(pictures):
            raise ClipError(
                f"{source} has {len(given.embeddings)} embeddings and no names of pictures, and there are "
                f"{len(pictures)} pictures; name those that it has, in its order, with --names FILE."
            )
        return [(place, place) for place in range(len(pictures))]
    if len(given.names) != len(given.embeddings):
        raise ClipError(
            f"{source} has {len(given.embeddings)} embeddings, and there are {len(given.names)} names; give one name "
            "for each."
        )
    kinds: tuple[Callable[[str], str], ...] = (os.path.normpath, os.path.basename, lambda name: Path(name).stem)
    for kind in kinds:
        places: dict[str, list[int]] = {}
        for place, picture in enumerate(pictures):
            places.setdefault(kind(picture), []).append(place)
        pairs = [(row, places[kind(name)]) for row, name in enumerate(given.names) if kind(name) in places]
        if pairs:
            doubtful = next((row for row, of_row in pairs if len(of_row) > 1), None)
            if doubtful is not None:
                raise ClipError(
                    f"{source} has an embedding of {given.names[doubtful]!r}, and several pictures are called that; "
                    "give the pictures of one folder, or longer names."
                )
            return [(row, of_row[0]) for row, of_row in pairs]
    raise ClipError(
        f"{source} has an embedding of {given.names[0]!r} first, and no picture is called as any of its embeddings; "
        "give the folder of the pictures that it was made of."
    )
