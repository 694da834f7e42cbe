"""Retrieval: which caption belongs to a picture, and which picture to a caption."""

from __future__ import annotations

import numpy as np


def recall_at(count: int, queries: np.ndarray, targets: np.ndarray) -> float:
    """The share of queries [n, d] whose own target, the one in the same row of [n, d], is among the nearest ``count``.

    Both are unit features. A target as near as the own one counts as nearer, so that equal features earn nothing.
    """
    similarities = queries @ targets.T
    own = np.diag(similarities)[:, None]
    as_near = (similarities >= own).sum(axis=1)  # the own one included
    return float(np.mean(as_near <= count))
