"""Near-duplicates: groups of vectors that are connected by pairs whose cosine is at least a threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from clip_core.search.store import Store
from clip_core.similarity import normalize

BLOCK = 2048  # vectors that are compared with as many others at once; their cosines take 16 MiB


class Member(NamedTuple):
    """A row of a group."""

    id: str
    path: str
    cosine: float  # with the first member of the group
    copy_of: str | None  # the id of the first member whose file has the same bytes, if there is an earlier one


def groups(
    store: Store, threshold: float, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[list[Member]]:
    """Groups of two or more, the largest first; the members of each, and groups of equal size, in the order of ids.

    Takes the memory of the vectors, and a time that grows with the square of their number.

    Args:
        threshold: the cosine from which on two vectors are near-duplicates.
        progress: told how many of how many blocks are compared.

    Raises:
        ClipError: the index is damaged.
    """
    vectors = store.hold().vectors
    roots = connected(vectors, threshold, progress)
    order = np.argsort(roots, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    rows = store.rows() if any(len(part) > 1 for part in parts) else []
    found = []
    for part in parts:
        if len(part) > 1:
            places = sorted(part.tolist(), key=lambda place: rows[place]["id"])
            unit = normalize(vectors[places].astype(np.float32))
            first_with: dict[str, str] = {}
            members = []
            for place, cosine in zip(places, (unit @ unit[0]).tolist()):
                row = rows[place]
                digest = row.get("sha256") or row["id"]
                first = first_with.setdefault(digest, row["id"])
                copy_of = None if first == row["id"] else first
                members.append(Member(row["id"], row.get("path") or row["text"], min(cosine, 1.0), copy_of))
            found.append(members)
    return sorted(found, key=lambda members: (-len(members), members[0].id))


def connected(vectors: np.ndarray, threshold: float, progress: Callable[[int, int], None]) -> np.ndarray:
    """Of each vector [n, d] the lowest number of those that it is connected with: int64 [n]."""
    parents = np.arange(len(vectors))
    starts = range(0, len(vectors), BLOCK)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for start in starts:
        ours = normalize(vectors[start : start + BLOCK].astype(np.float32))
        for other in range(start, len(vectors), BLOCK):
            theirs = normalize(vectors[other : other + BLOCK].astype(np.float32))
            first, second = np.nonzero(ours @ theirs.T >= threshold)
            _join(parents, first + start, second + other)
            done += 1
            progress(done, total)
    return _roots(parents, np.arange(len(vectors)))


def _join(parents: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Give the vectors of each pair the same root."""
    while len(first):
        ours, theirs = _roots(parents, first), _roots(parents, second)
        apart = ours != theirs
        first, second = ours[apart], theirs[apart]
        # Of several that want to be the parent of one, the lowest is; the others are joined in the next round.
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))


def _roots(parents: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The vector without a lower parent that each of ``places`` leads to."""
    found = parents[places]
    while True:
        above = parents[found]
        if np.array_equal(above, found):
            parents[places] = found
            return found
        found = above
