"""Retrieval: which caption belongs to a picture, and which picture to a caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 256  # queries that are compared with all targets at once


def ranks(
    queries: np.ndarray, targets: np.ndarray, own: Sequence[Sequence[int] | np.ndarray] | None = None
) -> np.ndarray:
    """How many foreign targets are at least as near to each query as the nearest of its own, int64 [n]; 0 is a hit.

    A foreign target as near as the own one counts as nearer, so that equal features earn nothing.

    Args:
        queries: unit features [n, d].
        targets: unit features [m, d].
        own: the rows of each query's own targets, at least one; by default the row of its own number. A picture with
            five captions has five, and is found by any of them.
    """
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), BLOCK):
        similarities = queries[start : start + BLOCK] @ targets.T
        is_own = np.zeros(similarities.shape, bool)
        for row, number in enumerate(range(start, start + len(similarities))):
            is_own[row, number if own is None else own[number]] = True
        nearest_own = np.where(is_own, similarities, -np.inf).max(axis=1, keepdims=True)
        found[start : start + BLOCK] = ((similarities >= nearest_own) & ~is_own).sum(axis=1)
    return found


def recall_at(count: int, ranks: np.ndarray) -> float:
    """The share of queries that have a target of their own among the nearest ``count``."""
    return float(np.mean(ranks < count))
