"""An index on disk: a LanceDB table of embeddings, with the stamp of what made them.

::

    index.lance/embeddings.lance/   the table, all of whose versions are whole
    index.lance/.lock               held by whoever changes it

The table has the columns of the parts that it was built of (`clip_core.embedding.parts`), whose embeddings are made
vectors of length 1. The metadata of its schema hold the stamp under the key ``triclip``, and the number of this format
under ``triclip.index``. An approximate index has the recall that it was built with in the metadata of its vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from clip_core import files
from clip_core.embedding.parts import PICTURE_COLUMNS, TEXT_COLUMNS, Part
from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError
from clip_core.installation import requirement
from clip_core.search import filters
from clip_core.search.exact import LENGTH_ERROR, ROWS, Chunk, Damage, nearest
from clip_core.similarity import normalize

FORMAT = 1
MANY_FRAGMENTS = 32  # of a table, which are then made few

PARTITION = 4096  # vectors of a partition of an approximate index
PROBES = 24  # partitions that are searched
LEAST_PARTITIONS = 2
MORE = 4  # as many candidates as are asked for, of which the nearest are taken
SAMPLE = 100  # stored vectors whose neighbours tell the recall
NEIGHBOURS = 10

_TABLE = "embeddings"
_FOLDER = f"{_TABLE}.lance"
_STAMP, _FORMAT, _RECALL = b"triclip", b"triclip.index", b"triclip.recall"


class Hit(NamedTuple):
    """A row that was found."""

    score: float  # the cosine with the query
    row: dict[str, Any]  # column -> value


class Source(Protocol):
    """Embeddings to build an index of: `clip_core.embedding.parts.Parts`, or what is in memory."""

    stamp: Stamp
    texts: bool  # whether they are of texts; else they are of pictures
    dimension: int

    def __iter__(self) -> Iterator[Part]: ...


class Change(NamedTuple):
    """What became of rows that were to be added."""

    added: int
    replaced: int
    unchanged: int


class Held(NamedTuple):
    """All vectors in memory."""

    numbers: np.ndarray  # int64 [n]
    ids: Any  # pyarrow's array of n texts
    vectors: np.ndarray  # float16 or float32 [n, d]


def build(
    target: str | os.PathLike[str],
    parts: Source,
    *,
    force: bool = False,
    approximate: bool = False,
    least_recall: float = 0.95,
) -> Store:
    """Write an index of embeddings, whole or not at all.

    Args:
        force: replace an index that is there.
        approximate: make searches faster that may miss some of what is near.
        least_recall: of an approximate index, below which it is not written.

    Raises:
        ClipError: the embeddings cannot be used, the index cannot be written, or its recall is too low.
    """
    lancedb, pyarrow = _libraries()
    if os.path.isdir(target) and not (Path(target) / _FOLDER).is_dir():
        raise ClipError(f"{target} is a folder without an index; give the name of a new one.")
    with files.atomic_tree(target, replace=force) as temporary:
        schema = _schema(pyarrow, parts)
        with _source(_batches(pyarrow, parts, parts.stamp.normalized, schema), schema, target) as rows:
            lancedb.connect(str(temporary)).create_table(_TABLE, rows)
        store = Store(temporary)
        store.check_ids()
        if approximate:
            store.approximate(least_recall)
    return Store(target)


class Store:
    """An index as it was when it was opened, or changed by this object last.

    Attributes:
        stamp: of the embeddings.
        texts: whether they are of texts; else they are of pictures.
        dimension: of a vector.
        columns: the names of all others.
        recall: of an approximate index, the share of the `NEIGHBOURS` nearest that it found when it was built; of an
            exact one, None.

    Raises:
        ClipError: there is no index in the folder, it is damaged or of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._held: Held | None = None
        with files.errors_about(folder, "read"):
            if not self.folder.is_dir() or not (self.folder / _FOLDER).is_dir():
                raise ClipError(f"{folder} is no index; make one with clip index build.")
        lancedb, pyarrow = _libraries()
        with self._sound():
            self._table = lancedb.connect(os.path.abspath(folder)).open_table(_TABLE)
            schema = self._table.schema
        metadata = schema.metadata or {}
        if _STAMP not in metadata:
            raise ClipError(f"{folder} is no index that TriCLIP wrote; make one with clip index build.")
        if metadata.get(_FORMAT) != str(FORMAT).encode():
            found = metadata.get(_FORMAT, b"").decode(errors="replace")
            raise ClipError(
                f"{folder} has the format {found!r:.20}, and this version of TriCLIP reads {FORMAT}; install a newer "
                "one, or build the index again."
            )
        self.stamp = Stamp.from_json(metadata[_STAMP], str(folder))
        self.texts = "text" in schema.names
        kinds = TEXT_COLUMNS if self.texts else PICTURE_COLUMNS
        vectors = schema.field("embedding") if schema.names[-1:] == ["embedding"] else None
        if vectors is None or schema.names[:-1] != list(kinds) or not pyarrow.types.is_fixed_size_list(vectors.type):
            raise ClipError(f"{folder} has other columns than an index; build it again with clip index build.")
        self.columns, self.dimension = schema.names[:-1], vectors.type.list_size
        recall = (vectors.metadata or {}).get(_RECALL)
        self.recall = None if recall is None else float(recall)

    def __len__(self) -> int:
        with self._sound():
            return self._table.count_rows()

    def search(self, queries: np.ndarray, count: int, where: str | None = None, exact: bool = False) -> list[list[Hit]]:
        """The ``count`` rows that are nearest to each query, by the cosine.

        Of rows with equal cosines, that of the lower id comes first.

        Args:
            queries: float [m, d], none of length 0.
            where: a condition on the columns, as SQL: ``width > 500 AND label = 'cat'``.
            exact: search an approximate index exactly.

        Raises:
            ClipError: the queries have another dimension, the condition is none, or the index is damaged.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ClipError(
                f"The queries have the shape {queries.shape}, and the index has vectors of {self.dimension} numbers; "
                f"give queries [m, {self.dimension}]."
            )
        if not np.isfinite(normalize(queries)).all():
            raise ClipError("A query has no direction: its numbers are all 0, or not finite; give another one.")
        matching = None if where is None else self.matching(where)
        if matching is not None and not len(matching):
            return [[] for _ in queries]
        try:
            if self.recall is None or exact:
                found = nearest(queries, self._chunks(matching, where), count)
            else:
                found = [nearest(query[None], self._candidates(query, count, where), count)[0] for query in queries]
        except Damage as error:
            raise ClipError(
                f"{self.folder} is damaged: the vector of {error} has not the length 1; build it again."
            ) from error
        rows = self._rows([near.number for each in found for near in each])
        return [[Hit(-near.distance, rows[near.number]) for near in each] for each in found]

    def matching(self, where: str) -> np.ndarray:
        """The numbers int64 [n] of the rows that a condition holds for.

        Raises:
            ClipError: it is no condition on the columns.
        """
        wanted = filters.condition(where)
        try:
            with _without_panic():
                table = self._table.search().where(wanted).with_row_id(True).select(["id"]).to_arrow()
        except Exception as error:
            raise ClipError(
                f"The condition {where!r:.200} cannot be applied: {_reason(error)}; the columns are "
                f"{', '.join(self.columns)}, and a condition is like width > 500 AND label = 'cat'."
            ) from error
        return table["_rowid"].to_numpy().astype(np.int64)

    @property
    def vector_bytes(self) -> int:
        """What all vectors take, on the disk and in memory."""
        return len(self) * self.dimension * np.dtype(self.stamp.dtype).itemsize

    def hold(self) -> Held:
        """Read all vectors into memory, where later exact searches find them."""
        if self._held is None:
            _, pyarrow = _libraries()
            total, done = len(self), 0
            numbers, ids = np.empty(total, np.int64), []
            vectors = np.empty((total, self.dimension), self.stamp.dtype)
            for chunk in self._read():
                end = done + len(chunk.numbers)
                numbers[done:end], vectors[done:end] = chunk.numbers, chunk.vectors
                ids.append(chunk.ids)
                done = end
            self._held = Held(numbers, pyarrow.chunked_array(ids, pyarrow.string()).combine_chunks(), vectors)
        return self._held

    def rows(self) -> list[dict[str, Any]]:
        """All rows, in the order of `hold`."""
        with self._sound():
            return self._table.search().select(self.columns).to_arrow().to_pylist()

    def add(self, parts: Source) -> Change:
        """Add embeddings; a row whose id is there is replaced if its file has changed, and else left as it is.

        Raises:
            ClipError: the embeddings cannot be compared with these, cannot be used, or another process changes the
                index.
        """
        _, pyarrow = _libraries()
        if difference := self.stamp.difference(parts.stamp):
            raise ClipError(f"The embeddings do not belong into {self.folder}: {difference}")
        if parts.texts != self.texts:
            have, are = ("texts", "pictures") if self.texts else ("pictures", "texts")
            raise ClipError(
                f"{self.folder} is an index of {have}, and the embeddings are of {are}; build another index."
            )
        with files.exclusive(self.folder, "clip index"):
            self._refresh()
            told_by = "text" if self.texts else "sha256"
            with self._sound():
                known = self._table.search().select(["id", told_by]).to_arrow()
            known_as = dict(zip(known["id"].to_pylist(), known[told_by].to_pylist()))
            counts = {"added": 0, "replaced": 0, "unchanged": 0}
            schema = self._table.schema
            changed = _changed(parts, known_as, told_by, counts)
            batches = _batches(pyarrow, changed, parts.stamp.normalized, schema)
            first = next(batches, None)
            if first is not None:  # else not even a version is written
                with _source(chain([first], batches), schema, self.folder) as rows:
                    merging = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                    merging.execute(rows)
                self._tidy()
        return Change(**counts)

    def remove(self, ids: Iterable[str] = (), paths: Iterable[str] = (), where: str | None = None) -> int:
        """Remove the rows that have one of the ids, fit one of the patterns, or meet the condition; give their number.

        Args:
            paths: patterns of paths, like ``photos/2019/*``; of texts, patterns of the texts themselves.

        Raises:
            ClipError: the condition is none, or another process changes the index.
        """
        named = list(ids)
        wanted = [filters.any_of("id", named)] if named else []
        wanted += [filters.fits("text" if self.texts else "path", pattern) for pattern in paths]
        with files.exclusive(self.folder, "clip index"):
            self._refresh()
            if where is not None:
                self.matching(where)  # which says what is wrong with it
                wanted.append(filters.condition(where))
            if not wanted:
                return 0
            condition = " OR ".join(wanted)
            with self._sound():
                count = self._table.count_rows(condition)
                if count:  # else not even a version is written
                    self._table.delete(condition)
            self._tidy()
            return count

    def info(self) -> dict[str, Any]:
        """What there is to know of the index, as plain data for JSON."""
        of_files = [path.lstat().st_size for path in self.folder.rglob("*") if path.is_file()]
        with self._sound():
            version = self._table.version
        return {
            "kind": "texts" if self.texts else "pictures",
            "rows": len(self),
            "dimension": self.dimension,
            "dtype": self.stamp.dtype,
            "columns": self.columns,
            "search": "exact" if self.recall is None else "approximate",
            "recall": self.recall,
            "table_version": version,
            "bytes": sum(of_files),
            "model": self.stamp.source,
            "backend": self.stamp.backend,
            "precision": self.stamp.precision,
            "preprocessing": self.stamp.pixels,
            "versions": self.stamp.versions,
            "weights": self.stamp.weights,
            "tokenizer": self.stamp.tokenizer,
        }

    def check_ids(self) -> None:
        """Refuse rows that cannot be told apart.

        Raises:
            ClipError: an id occurs twice.
        """
        from pyarrow import compute

        with self._sound():
            ids = self._table.search().select(["id"]).to_arrow()["id"]
        counts = compute.value_counts(ids.combine_chunks())
        twice = counts.filter(compute.greater(counts.field("counts"), 1))
        if len(twice):
            raise ClipError(f"The id {twice[0]['values'].as_py()!r:.200} occurs more than once; embed again.")

    def approximate(self, least_recall: float) -> None:
        """Make partitions of the vectors, of which a search looks into a few, and measure what it finds.

        Raises:
            ClipError: the recall is below ``least_recall``.
        """
        from lancedb.index import IvfFlat

        total = len(self)
        if total <= NEIGHBOURS:
            raise ClipError(f"An approximate index of {total} vectors is of no use; build an exact one.")
        partitions = max(LEAST_PARTITIONS, total // PARTITION)
        with self._sound():
            self._table.create_index("embedding", config=IvfFlat(distance_type="cosine", num_partitions=partitions))
        self.recall = self._measured_recall(total)
        if self.recall < least_recall:
            raise ClipError(
                f"The approximate index finds {self.recall:.3f} of the {NEIGHBOURS} nearest, less than {least_recall}; "
                "build an exact one, or lower --min-recall."
            )
        with self._sound():
            metadata = {_RECALL.decode(): f"{self.recall:.4f}"}
            self._table.update_field_metadata({"path": "embedding", "metadata": metadata})

    def _measured_recall(self, total: int) -> float:
        """The share of the nearest others of some stored vectors that are found."""
        chosen = set(np.random.default_rng(0).choice(total, min(SAMPLE, total), replace=False).tolist())
        numbers, queries, place = [], [], 0
        for chunk in self._read():
            for row in range(len(chunk.numbers)):
                if place + row in chosen:
                    numbers.append(int(chunk.numbers[row]))
                    queries.append(chunk.vectors[row].astype(np.float32))
            place += len(chunk.numbers)
        count = min(NEIGHBOURS, total - 1)
        of_exact = nearest(np.stack(queries), self._chunks(), count + 1)
        right = 0
        for number, query, expected in zip(numbers, queries, of_exact):
            found = nearest(query[None], self._candidates(query, count + 1), count + 1)[0]
            others = [{near.number for near in each if near.number != number} for each in (expected, found)]
            right += len(others[0] & others[1])
        return right / sum(len({near.number for near in each} - {number}) for number, each in zip(numbers, of_exact))

    def _chunks(self, matching: np.ndarray | None = None, where: str | None = None) -> Iterator[Chunk]:
        """The vectors, or those that a condition holds for: from memory if they are held there, else from the disk."""
        if self._held is None:
            yield from self._read(where)
            return
        numbers, ids, vectors = self._held
        places = None if matching is None else np.flatnonzero(np.isin(numbers, matching))
        for start in range(0, len(numbers if places is None else places), ROWS):
            part: Any = slice(start, start + ROWS) if places is None else places[start : start + ROWS]
            of_part = ids[part] if places is None else ids.take(part)
            yield Chunk(numbers[part], of_part, vectors[part])

    def _read(self, where: str | None = None) -> Iterator[Chunk]:
        query = self._table.search().with_row_id(True).select(["id", "embedding"])
        if where is not None:
            query = query.where(filters.condition(where))
        with self._sound():
            for batch in query.to_batches(batch_size=ROWS):
                for start in range(0, batch.num_rows, ROWS):
                    yield self._chunk(batch.slice(start, ROWS))

    def _candidates(self, query: np.ndarray, count: int, where: str | None = None) -> list[Chunk]:
        """What the partitions have that is near."""
        searching = self._table.search(query.astype(np.float32), vector_column_name="embedding")
        searching = searching.distance_type("cosine").nprobes(PROBES).limit(MORE * count).with_row_id(True)
        if where is not None:
            searching = searching.where(filters.condition(where))
        with self._sound():
            table = searching.select(["id", "embedding", "_distance"]).to_arrow()
            return [self._chunk(batch) for batch in table.to_batches(max_chunksize=ROWS)]

    def _chunk(self, batch: Any) -> Chunk:
        vectors = batch["embedding"].flatten().to_numpy().reshape(-1, self.dimension)
        return Chunk(batch["_rowid"].to_numpy().astype(np.int64), batch["id"], vectors)

    def _rows(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Number -> row."""
        wanted = sorted(set(map(int, numbers)))
        if not wanted:
            return {}
        with self._sound():
            table = self._table.take_row_ids(wanted).with_row_id().select(self.columns).to_arrow()
        return {row.pop("_rowid"): row for row in table.to_pylist()}

    def _refresh(self) -> None:
        """See what other processes have changed."""
        self._held = None
        with self._sound():
            self._table.checkout_latest()

    def _tidy(self) -> None:
        """Make few fragments of many, which would be slow to read."""
        with self._sound():
            if self._table.stats()["fragment_stats"]["num_fragments"] > MANY_FRAGMENTS:
                self._table.optimize()

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Turn whatever a damaged table makes its reader raise into one sentence."""
        try:
            with _without_panic():
                yield
        except (ClipError, Damage):
            raise
        except Exception as error:
            raise ClipError(
                f"{self.folder} cannot be used: {_reason(error)}; if it is damaged, build it again with clip index "
                "build."
            ) from error


def _schema(pyarrow: Any, parts: Source) -> Any:
    stamp = replace(parts.stamp, normalized=True)
    types = {str: pyarrow.string(), int: pyarrow.int32()}
    kinds = TEXT_COLUMNS if parts.texts else PICTURE_COLUMNS
    fields = [pyarrow.field(name, types[kind]) for name, kind in kinds.items()]
    number = pyarrow.float16() if stamp.dtype == "float16" else pyarrow.float32()
    fields.append(pyarrow.field("embedding", pyarrow.list_(number, parts.dimension)))
    return pyarrow.schema(fields, {_STAMP: stamp.to_json().encode(), _FORMAT: str(FORMAT).encode()})


def _batches(pyarrow: Any, parts: Iterable[Part], normalized: bool, schema: Any) -> Iterator[Any]:
    """Each part as a batch of rows, whose vectors are made of length 1 if they are not ``normalized`` already."""
    kind = schema.field("embedding").type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    for part in parts:
        vectors = part.embeddings.astype(np.float32)
        if not normalized:
            vectors = normalize(vectors)
        wrong = np.flatnonzero(~(np.abs(np.linalg.norm(vectors, axis=1) - 1) < LENGTH_ERROR))
        if len(wrong):
            raise ClipError(
                f"The embedding of {part.columns['id'][wrong[0]]} has no direction or not the length 1; embed again, "
                "and look at the model with clip inspect."
            )
        columns = [pyarrow.array(part.columns[field.name], field.type) for field in list(schema)[:-1]]
        flat = pyarrow.array(vectors.astype(dtype).reshape(-1))
        columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, kind.list_size))
        yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _changed(parts: Source, known: dict[str, str], told_by: str, counts: dict[str, int]) -> Iterator[Part]:
    """Of each part the rows that are new, or have another digest than is known of their id."""
    for part in parts:
        kinds = [
            "added" if id not in known else "unchanged" if digest and known[id] == digest else "replaced"
            for id, digest in zip(part.columns["id"], part.columns[told_by])
        ]
        for kind in kinds:
            counts[kind] += 1
        places = [place for place, kind in enumerate(kinds) if kind != "unchanged"]
        if places:
            columns = {name: [values[place] for place in places] for name, values in part.columns.items()}
            yield Part(part.place, part.embeddings[places], columns)


@contextmanager
def _source(batches: Iterable[Any], schema: Any, target: str | os.PathLike[str]) -> Iterator[Any]:
    """Batches as LanceDB reads them; what is wrong with one is raised as it is, and not as what LanceDB makes of it."""
    import pyarrow

    faults: list[ClipError] = []

    def told() -> Iterator[Any]:
        try:
            yield from batches
        except ClipError as error:
            faults.append(error)
            raise

    try:
        with _without_panic():
            yield pyarrow.RecordBatchReader.from_batches(schema, told())
    except Exception as error:
        if faults:
            raise faults[0] from None
        if isinstance(error, ClipError):
            raise
        raise ClipError(f"{target} cannot be written: {_reason(error)}; check that the disk has space.") from error


@contextmanager
def _without_panic() -> Iterator[None]:
    """Turn a panic of LanceDB's, which is no `Exception`, into one."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise RuntimeError(str(error)) from error
        raise


def _reason(error: BaseException) -> str:
    """What LanceDB says of an error, without the place in its own sources and what it adds after the first sentence."""
    text = str(error).partition(", /")[0].partition(". ")[0]
    return text.removeprefix("Invalid input, ").removeprefix("lance error: ").rstrip(".") or type(error).__name__


def _libraries() -> tuple[Any, Any]:
    """The modules lancedb and pyarrow.

    Raises:
        ClipError: they are not installed.
    """
    os.environ.setdefault("LANCE_LOG", "error")  # its warnings are no part of a command's output
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise ClipError(
            f"An index needs LanceDB ({error}); install it with: pip install {requirement('search')}."
        ) from error
    return lancedb, pyarrow
