"""What is nearest to what: the ranks of a query's own targets, and retrieval of captions by pictures and back.

A foreign target that is as near as the own one counts as nearer, so that equal features earn nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 256  # queries that are compared with all targets at once


@dataclass(frozen=True)
class Comparison:
    """How near the own and the foreign targets of n queries are; each field is [n]."""

    ranks: np.ndarray
    """int64: how many foreign targets are at least as near as the nearest own one; 0 is a hit."""
    own: np.ndarray
    """float32: the similarity of the nearest own target."""
    foreign: np.ndarray
    """float32: that of the nearest foreign target, ``-inf`` where all targets are own ones."""
    nearest: np.ndarray
    """int64: the row of the nearest target; of equally near ones the first foreign one."""

    @property
    def margins(self) -> np.ndarray:
        """By how much the nearest own target is nearer than any foreign one, float32 [n]; above 0 is a hit."""
        return self.own - self.foreign


def compare(
    queries: np.ndarray, targets: np.ndarray, own: Sequence[Sequence[int] | np.ndarray] | np.ndarray | None = None
) -> Comparison:
    """Compare each query with all targets, block by block.

    A similarity that is not a number counts as nearer than any own one, and is never a hit.

    Args:
        queries: unit features [n, d].
        targets: unit features [m, d].
        own: the rows of each query's own targets, at least one; by default the row of its own number. A picture with
            five captions has five, and is found by any of them.
    """
    parts = []
    for place, similarities in blocks(queries, targets):
        is_own = np.zeros(similarities.shape, bool)
        for row, number in enumerate(range(place.start, place.stop)):
            is_own[row, number if own is None else own[number]] = True
        of_own, of_foreign = np.where(is_own, similarities, -np.inf), np.where(is_own, -np.inf, similarities)
        nearest_own, nearest_foreign = of_own.max(axis=1), of_foreign.max(axis=1)
        ranks = (~(similarities < nearest_own[:, None]) & ~is_own).sum(axis=1)
        nearest = np.where(nearest_own > nearest_foreign, of_own.argmax(axis=1), of_foreign.argmax(axis=1))
        parts.append((ranks, nearest_own, nearest_foreign, nearest))
    return Comparison(*map(np.concatenate, zip(*parts)))


def blocks(queries: np.ndarray, targets: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Similarities [block, m] of queries [n, d] and targets [m, d], with the queries that they are of.

    Equal targets are exactly equally near. A product of matrices alone may round differently from column to column.
    """
    first_by_row: dict[bytes, int] = {}
    first = [first_by_row.setdefault(row.tobytes(), number) for number, row in enumerate(targets)]
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ targets.T
        if len(first_by_row) < len(targets):
            similarities = similarities[:, first]
        yield slice(start, start + len(similarities)), similarities


def ranks(
    queries: np.ndarray, targets: np.ndarray, own: Sequence[Sequence[int] | np.ndarray] | np.ndarray | None = None
) -> np.ndarray:
    """How many foreign targets are at least as near to each query as the nearest of its own, int64 [n]; 0 is a hit.

    Args:
        queries, targets, own: as of `compare`.
    """
    return compare(queries, targets, own).ranks


def owners(own_texts: Sequence[Sequence[int] | np.ndarray], texts: int) -> list[list[int]]:
    """The pictures of each text, from the texts of each picture.

    Args:
        texts: how many there are.
    """
    own_images: list[list[int]] = [[] for _ in range(texts)]
    for picture, of_picture in enumerate(own_texts):
        for number in of_picture:
            own_images[number].append(picture)
    return own_images


def recall_at(count: int, ranks: np.ndarray) -> float:
    """The share of queries that have a target of their own among the nearest ``count``."""
    return float(np.mean(ranks < count))
