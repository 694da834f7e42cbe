"""Retrieval: which caption belongs to a picture, and which picture to a caption."""

from __future__ import annotations

import numpy as np

BLOCK = 256  # queries that are compared with all targets at once


def ranks(
    queries: np.ndarray,
    targets: np.ndarray,
    query_pictures: np.ndarray | None = None,
    target_pictures: np.ndarray | None = None,
) -> np.ndarray:
    """How many foreign targets are at least as near to each query as the nearest of its own, int64 [n]; 0 is a hit.

    A foreign target as near as the own one counts as nearer, so that equal features earn nothing.

    Args:
        queries: unit features [n, d].
        targets: unit features [m, d].
        query_pictures: int [n], the picture that each query shows or describes; by default the number of its row.
        target_pictures: int [m], the same of the targets. A query's own targets are those of its picture: a picture
            with five captions has five, and is found by any of them.
    """
    query_pictures = np.arange(len(queries)) if query_pictures is None else query_pictures
    target_pictures = np.arange(len(targets)) if target_pictures is None else target_pictures
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        similarities = queries[block] @ targets.T
        own = query_pictures[block, None] == target_pictures
        nearest_own = np.where(own, similarities, -np.inf).max(axis=1, keepdims=True)
        found[block] = ((similarities >= nearest_own) & ~own).sum(axis=1)
    return found


def recall_at(count: int, ranks: np.ndarray) -> float:
    """The share of queries that have a target of their own among the nearest ``count``."""
    return float(np.mean(ranks < count))
