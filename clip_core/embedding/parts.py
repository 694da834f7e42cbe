"""Embeddings on disk: a folder of parts, each written whole or not at all, with the stamp of what made them.

Pictures and texts are numbered in the order of the input. A part has those from one number up to another, and its name
has the first of them::

    from-00000000.parquet  from-00004096.parquet ...  faults.jsonl

A Parquet file has the columns of `PICTURE_COLUMNS` or of `TEXT_COLUMNS`, and ``embedding``, a list of fixed size of
float16 or float32. Its metadata hold the stamp under the key ``triclip``, and under ``triclip.part`` which numbers it
has, out of how many, a digest of the input, and the faults of what is left out.

With the format ``npy`` a part is ``from-00000000.npy``, an array [n, d], and ``from-00000000.json``, which has all else
and is written last.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError
from clip_core.files import atomic_path, open_regular, read_regular, reason, write_bytes, write_text
from clip_core.parquet import open_parquet, require_pyarrow

PART = 4096  # pictures or texts of one part, by default

PICTURE_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("id", "path"), str),
    **dict.fromkeys(("width", "height"), int),
    **dict.fromkeys(("sha256", "caption", "label"), str),
}
"""Of a row of a picture. ``id`` is never twice in a folder; ``sha256`` is of the file's bytes; caption and label may be
null."""

TEXT_COLUMNS: dict[str, type] = {"id": str, "text": str}

Format = Literal["parquet", "npy"]
FORMATS: tuple[Format, ...] = ("parquet", "npy")

MOST_BYTES = 4 << 30  # of a part

_NAME = re.compile(r"from-(\d{8,18})\.(parquet|npy|json)")
_STAMP, _PART = "triclip", "triclip.part"  # keys of the metadata
_REMEDY = "embed again"
_AGAIN = "run the same clip embed with --resume"


class Fault(NamedTuple):
    """A picture or text that was left out."""

    number: int  # in the input
    name: str
    sentence: str


@dataclass(frozen=True)
class Place:
    """Which numbers of an input a part has."""

    first: int
    end: int  # one behind the last
    total: int  # of the input
    inputs: str  # a digest of the input
    faults: tuple[Fault, ...] = ()  # of what is left out


class Part(NamedTuple):
    """Embeddings and what is known of each."""

    place: Place
    embeddings: np.ndarray  # [n, d], float16 or float32
    columns: dict[str, list[Any]]  # of `PICTURE_COLUMNS` or `TEXT_COLUMNS`, each of n values


def require_libraries(path: str | os.PathLike[str], format: Format) -> None:
    """Refuse a format whose library is not installed.

    Raises:
        ClipError: as above.
    """
    if format == "parquet":
        require_pyarrow(path, ", or embed with --format npy")


def write(folder: Path, part: Part, stamp: Stamp, format: Format = "parquet") -> Path:
    """Write a part, whole or not at all, and give the name of its file.

    Equal parts give equal bytes, with one version of pyarrow.

    Raises:
        ClipError: it cannot be written, or pyarrow is not installed.
    """
    path = folder / f"from-{part.place.first:08}.{format}"
    if format == "npy":
        array = io.BytesIO()
        np.lib.format.write_array(array, part.embeddings, version=(1, 0))
        write_bytes(path, array.getvalue())
        content = {_STAMP: json.loads(stamp.to_json()), _PART: asdict(part.place), "columns": part.columns}
        write_text(path.with_suffix(".json"), json.dumps(content) + "\n")
        return path
    require_libraries(path, format)
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int32()}
    kinds = TEXT_COLUMNS if "text" in part.columns else PICTURE_COLUMNS
    arrays = [pyarrow.array(part.columns[name], types[kind]) for name, kind in kinds.items()]
    flat = pyarrow.array(part.embeddings.reshape(-1))
    arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, part.embeddings.shape[1]))
    metadata = {_STAMP: stamp.to_json(), _PART: json.dumps(asdict(part.place))}
    table = pyarrow.Table.from_arrays(arrays, [*kinds, "embedding"]).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary, use_dictionary=False)
    return path


class Parts:
    """The parts of a folder, read one by one.

    Args:
        whole: whether every part has to be there.

    Attributes:
        stamp: of all parts.
        texts: whether the embeddings are of texts; else they are of pictures.
        dimension: of an embedding.

    Raises:
        ClipError: there are none, they do not follow one another, differ in their stamps or are of different inputs, or
            a file is none of ours or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], whole: bool = True) -> None:
        self.folder = Path(folder)
        self._paths = _paths_in(self.folder)
        self._heads = [_read_head(path) for path in self._paths]
        self.stamp, first, self.texts, self.dimension = self._heads[0]
        self.total, self.inputs = first.total, first.inputs  # the numbers of the input, and its digest
        self.format = self._paths[0].suffix[1:]
        end = 0
        for path, head in zip(self._paths, self._heads):
            if head.stamp != self.stamp:
                raise ClipError(
                    f"{self._paths[0]} and {path.name} have different stamps: {self.stamp.change(head.stamp)}; keep "
                    "each in a folder of its own."
                )
            of_input = (head.place.total, head.place.inputs, head.texts, head.dimension)
            if of_input != (self.total, self.inputs, self.texts, self.dimension):
                raise ClipError(f"{path} is of another input than {self._paths[0].name}; embed into a new folder.")
            if head.place.first < end or head.place.end > self.total or (whole and head.place.first > end):
                found = f"{head.place.first} and not at {end}"
                raise ClipError(f"{path} begins at {found}, where the part before it ends; {_AGAIN}.")
            end = head.place.end
        if whole and end != self.total:
            raise ClipError(f"{self.folder} was not embedded to its end, it has {end} of {self.total}; {_AGAIN}.")

    @property
    def places(self) -> list[Place]:
        """Which numbers of the input each part has."""
        return [head.place for head in self._heads]

    def __len__(self) -> int:
        """The number of embeddings."""
        return sum(head.place.end - head.place.first - len(head.place.faults) for head in self._heads)

    def __iter__(self) -> Iterator[Part]:
        return map(_read, self._paths, self._heads)

    @property
    def faults(self) -> list[Fault]:
        """What is left out, in the order of the input."""
        return [fault for head in self._heads for fault in head.place.faults]

    def embeddings(self) -> np.ndarray:
        """All embeddings in one array [n, d]."""
        return np.concatenate([part.embeddings for part in self])


def any_in(folder: Path) -> bool:
    """Whether a folder has a part of embeddings.

    Raises:
        ClipError: it cannot be read, or has files like parts that are none.
    """
    return bool(_numbered(folder))


class _Head(NamedTuple):
    """What a file says of itself."""

    stamp: Stamp
    place: Place
    texts: bool
    dimension: int


def _paths_in(folder: Path) -> list[Path]:
    """The parts of a folder in the order of their numbers.

    Raises:
        ClipError: as `any_in`, or there are none.
    """
    found = _numbered(folder)
    if not found:
        raise ClipError(f"{folder} has no embeddings; make them with clip embed.")
    return [found[number] for number in sorted(found)]


def _numbered(folder: Path) -> dict[int, Path]:
    """The file with the embeddings of each part, by the first number of the part."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except (OSError, ValueError) as error:
        raise ClipError(f"{folder} cannot be read: {reason(error).lower()}; give a folder of embeddings.") from error
    found: dict[int, Path] = {}
    for name in names:
        if name.endswith((".parquet", ".npy")):
            of_ours = _NAME.fullmatch(name)
            if of_ours is None:
                raise ClipError(f"{folder / name} is no part of embeddings; give a folder that clip embed wrote.")
            number = int(of_ours[1])
            if number in found:
                raise ClipError(f"{folder} has {found[number].name} and {name}; remove what is not wanted.")
            if name.endswith(".parquet") or f"{Path(name).stem}.json" in names:  # else it was cut off
                found[number] = folder / name
    return found


def _read_head(path: Path) -> _Head:
    if path.suffix == ".npy":
        content = _json_of(path.with_suffix(".json"))
        stamp, place = (json.dumps(content.get(key)) for key in (_STAMP, _PART))
        names = list(content["columns"])
        with open_regular(path) as file, _readable(path):
            rows, dimension = _header_of(file)[0]
    else:
        with open_parquet(path, _REMEDY) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        metadata = schema.metadata or {}
        stamp, place = (metadata.get(key.encode(), b"").decode(errors="replace") for key in (_STAMP, _PART))
        *names, last = schema.names or [""]
        dimension = getattr(schema.field(last).type, "list_size", 0) if last == "embedding" else 0
    texts = names == list(TEXT_COLUMNS)
    if not (stamp and place and dimension > 0 and (texts or names == list(PICTURE_COLUMNS))):
        raise ClipError(f"{path} is no part of embeddings; give a folder that clip embed wrote.")
    try:
        found = TypeAdapter(Place).validate_json(place, strict=True)
    except ValidationError as error:
        raise ClipError(f"{path} does not say which part it is: {error.errors()[0]['msg']}; embed again.") from error
    number = int(path.stem.partition("-")[2])
    if rows != found.end - found.first - len(found.faults) or found.first != number or found.end <= number:
        raise ClipError(f"{path} has {rows} rows, which are not those that it says it has; embed again.")
    return _Head(Stamp.from_json(stamp, str(path)), found, texts, dimension)


def _read(path: Path, head: _Head) -> Part:
    names = TEXT_COLUMNS if head.texts else PICTURE_COLUMNS
    if path.suffix == ".npy":
        columns = _json_of(path.with_suffix(".json"))["columns"]
        with open_regular(path) as file, _readable(path):
            shape, fortran_order, dtype = _header_of(file)
            if fortran_order or dtype.hasobject:
                raise ValueError("its order or type is another one")
            embeddings = np.frombuffer(file.read(MOST_BYTES), dtype).reshape(shape)
    else:
        with open_parquet(path, _REMEDY) as parquet:
            table = parquet.read(use_threads=False).combine_chunks()
            table.validate(full=True)
            columns = {name: table[name].to_pylist() for name in names}
            vectors = table["embedding"].combine_chunks()
            if vectors.null_count or vectors.flatten().null_count:
                raise ValueError("an embedding is missing")
            embeddings = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, head.dimension)
    sound = embeddings.dtype == head.stamp.dtype and all(
        len(columns[name]) == len(embeddings) and all(isinstance(value, kind | None) for value in columns[name])
        for name, kind in names.items()
    )
    if not sound:
        raise ClipError(f"{path} has values of other types than embeddings have; embed again.")
    return Part(head.place, embeddings, columns)


def _json_of(path: Path) -> dict[str, Any]:
    """The content of a file beside an array."""
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ClipError(f"{path} is not JSON: {error}; embed again.") from error
    columns = content.get("columns") if isinstance(content, dict) else None
    if not isinstance(columns, dict) or not all(isinstance(values, list) for values in columns.values()):
        raise ClipError(f"{path} is no part of embeddings; give a folder that clip embed wrote.")
    return content


def _header_of(file: BinaryIO) -> tuple[tuple[int, int], bool, np.dtype]:
    """Shape, order and type of the array [n, d] in a file.

    Raises:
        ValueError: it has none.
    """
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 2:
        raise ValueError(f"its shape is {shape}")
    return (shape[0], shape[1]), fortran_order, dtype


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into one sentence."""
    try:
        yield
    except ClipError:
        raise
    except Exception as error:
        raise ClipError(f"{path} is damaged: {error}; {_REMEDY}.") from error
