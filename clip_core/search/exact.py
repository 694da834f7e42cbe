"""Exact search: the cosine of each query with every vector, in parts that stay in the processor's caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

ROWS = 1024  # of a chunk; in float32, 512 numbers of each are 2 MiB
LENGTH_ERROR = 1e-2  # by which the length of a stored vector may differ from 1; rounding to float16 makes it 5e-4

_HALF_ERROR = 2.0**-11  # relative, of a number that is rounded to float16


class Chunk(NamedTuple):
    """At most `ROWS` of the vectors."""

    numbers: np.ndarray  # int64 [n], by which the rows are asked for
    ids: Sequence[Any]  # [n], whose texts are the ids
    vectors: np.ndarray  # float16 or float32 [n, d], of length 1 up to rounding


class Near(NamedTuple):
    """A vector that is near to a query. Sorted, the nearest comes first, and of equally near ones the lower id."""

    distance: float  # 0 less the cosine
    id: str
    number: int


class Damage(ValueError):
    """A vector whose length is not 1."""


def nearest(queries: np.ndarray, chunks: Iterable[Chunk], count: int) -> list[list[Near]]:
    """The ``count`` nearest vectors of each query.

    Which ones they are, and their order, depends on the numbers alone: products in float32 choose candidates, whose
    cosines are then computed in float64, each by itself.

    Args:
        queries: float [m, d], none of length 0.

    Raises:
        Damage: a candidate has another length than 1; its id is the message.
    """
    exactly = queries / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)  # float64 [m, d]
    directions = exactly.astype(np.float32).T
    dimension = len(directions)
    found: list[list[Near]] = [[] for _ in queries]
    least = np.full(len(queries), -np.inf)  # products below it are of no candidate
    room = np.empty((ROWS, dimension), np.float32)
    for chunk in chunks:
        products = single(chunk.vectors, room) @ directions  # [n, m]
        of_rounding = _HALF_ERROR if chunk.vectors.dtype == np.float16 else 0
        error = 2 * (of_rounding + dimension * float(np.finfo(np.float32).eps))
        # What is no number passes, too, and is then found to be damaged.
        passing = ~(products < least)
        for query in np.flatnonzero(passing.any(axis=0)):
            places = np.flatnonzero(passing[:, query])
            distances = -cosines(chunk, places, exactly[query])
            more = [
                Near(distance, str(chunk.ids[place]), int(chunk.numbers[place]))
                for distance, place in zip(distances.tolist(), places.tolist())
            ]
            found[query] = sorted([*found[query], *more])[:count]
            if len(found[query]) == count:
                least[query] = -found[query][-1].distance - error
    return found


def cosines(chunk: Chunk, places: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines float64 [p] of some vectors of a chunk with a query float64 [d] of length 1.

    Raises:
        Damage: as `nearest`.
    """
    vectors = chunk.vectors[places].astype(np.float64)
    # Sums along the last axis of each row alone, so that equal vectors have equal cosines wherever they stand.
    lengths = np.sqrt((vectors * vectors).sum(axis=1))
    wrong = places[~(np.abs(lengths - 1) < LENGTH_ERROR)]
    if len(wrong):
        raise Damage(str(chunk.ids[int(wrong[0])]))
    return (vectors * query).sum(axis=1) / lengths


def single(vectors: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Vectors [n, d] in float32; for finite numbers of float16 it is what ``astype`` gives, in a tenth of the time.

    Args:
        room: float32 [n or more, d], which the result is a part of; new memory would take longer than the work.
    """
    if vectors.dtype != np.float16:
        return vectors
    numbers = room[: len(vectors)]
    bits = numbers.view(np.int32)
    # The bits of exponent and fraction go where float32 has them, which leaves the exponent too small by 112.
    np.copyto(bits, vectors.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, ~0x70001FFF, out=bits)
    return np.multiply(numbers, np.float32(2.0**112), out=numbers)
