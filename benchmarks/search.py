"""The nearest of many stored vectors: an index on the disk and in memory, beside NumPy, LanceDB and faiss.

python benchmarks/search.py --rows 1000000

All search vectors in float16 exactly; those of NumPy and faiss are float32 in memory, which takes twice as much. Memory
is that of the whole process, with what it takes to read the vectors.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import numpy as np

from clip_core.embedding.parts import PART, PICTURE_COLUMNS, Part, Place
from clip_core.embedding.stamp import Stamp, pixels_of
from clip_core.models import SHAPES
from clip_core.search.store import Store, build
from clip_core.similarity import normalize

COUNT = 20  # rows that are looked for
PACKAGES = {"faiss": "faiss"}


@dataclass
class Vectors:
    """Random unit vectors as an index takes them."""

    rows: int
    dimension: int
    texts = False
    stamp = Stamp("0" * 64, "none", SHAPES.to_dict(), None, pixels_of(SHAPES), "fp32", "float16", True, "numpy", {})

    def __iter__(self) -> Iterator[Part]:
        for first in range(0, self.rows, PART):
            count = min(PART, self.rows - first)
            columns: dict[str, list] = {name: [None] * count for name in PICTURE_COLUMNS}
            columns["id"] = columns["path"] = [f"{number:09}.jpg" for number in range(first, first + count)]
            vectors = np.random.default_rng(first).standard_normal((count, self.dimension), dtype=np.float32)
            yield Part(Place(first, first + count, self.rows, ""), normalize(vectors).astype(np.float16), columns)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--index", type=Path, help="where the index is, if it was built before")
    arguments = parser.parse_args()
    if not arguments.contender:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.index is None:
                arguments.index = Path(folder) / "index.lance"
                build(arguments.index, Vectors(arguments.rows, arguments.dimension))
            harness.compare(__file__, list(CONTENDERS), "queries", arguments, PACKAGES)
            return
    queries = normalize(np.random.default_rng(1).standard_normal((8, arguments.dimension), dtype=np.float32))
    search, found = CONTENDERS[arguments.contender](Store(arguments.index)), {}
    for count in (1, len(queries)):
        first = np.asarray(search(queries[:count])).tolist()
        found["1 query" if count == 1 else f"{count} queries"] = {
            "seconds": harness.seconds_of(lambda count=count: search(queries[:count]), arguments.calls, before=0),
            "amount": count,
            "first": first,
            "peak_memory_mib": harness.peak_memory_mib(),
        }
    print(json.dumps(found))


Search = Callable[[np.ndarray], object]  # queries float32 [m, d] -> the highest cosines [m, COUNT]


def numpy(store: Store) -> Search:
    vectors = store.hold().vectors.astype(np.float32)

    def search(queries: np.ndarray) -> np.ndarray:
        products = queries @ vectors.T
        best = np.partition(products, -COUNT, axis=1)[:, -COUNT:]
        return np.sort(best, axis=1)[:, ::-1]

    return search


def on_disk(store: Store) -> Search:
    return lambda queries: [[hit.score for hit in found] for found in store.search(queries, COUNT)]


def in_memory(store: Store) -> Search:
    store.hold()
    return on_disk(store)


def lancedb(store: Store) -> Search:
    import lancedb

    table = lancedb.connect(store.folder).open_table("embeddings")

    def search(queries: np.ndarray) -> list[list[float]]:
        found = []
        for query in queries:
            searching = table.search(query, vector_column_name="embedding").distance_type("cosine")
            rows = searching.limit(COUNT).select(["id", "_distance"]).to_arrow()
            found.append((1 - rows["_distance"].to_numpy()).tolist())
        return found

    return search


def faiss(store: Store) -> Search:
    import faiss

    vectors = store.hold().vectors
    index = faiss.IndexFlatIP(store.dimension)
    for first in range(0, len(vectors), PART):
        index.add(vectors[first : first + PART].astype(np.float32))
    return lambda queries: index.search(queries, COUNT)[0]


CONTENDERS = {
    "numpy": numpy,
    "clip on disk": on_disk,
    "clip in memory": in_memory,
    "lancedb": lancedb,
    "faiss": faiss,
}

if __name__ == "__main__":
    main()
