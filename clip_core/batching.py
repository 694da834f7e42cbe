"""Which texts are encoded together: equal ones once, and those of like length side by side.

Backends compute a batch of texts up to the longest of it. Sorted by length, short texts do not wait for long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from clip_core.backend import Model
from clip_core.towers.parts import TextTower

TEXTS = 128  # that are encoded at once


def embed_texts(
    model: Model, tokens: np.ndarray, progress: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """`Model.embed_text` of many texts, in their order.

    Args:
        tokens: int64 [n, context], at least one row.
        progress: told after each batch how many of how many different texts are encoded.
    """
    unique, place = np.unique(tokens, axis=0, return_inverse=True)
    features: list[np.ndarray] = []
    order: list[np.ndarray] = []
    done = 0
    for batch in batches(unique, model.architecture.text):
        features.append(model.embed_text(unique[batch]))
        order.append(batch)
        done += len(batch)
        progress(done, len(unique))
    back = np.argsort(np.concatenate(order))
    return np.concatenate(features)[back][place.reshape(-1)]  # NumPy 2.0 gives ``place`` a second dimension


def batches(tokens: np.ndarray, tower: TextTower) -> Iterator[np.ndarray]:
    """The numbers int64 [k] of the rows of each batch, k at most `TEXTS`; every row once, the short ones first."""
    order = np.argsort(lengths(tokens, tower), kind="stable")
    for start in range(0, len(order), TEXTS):
        yield order[start : start + TEXTS]


def lengths(tokens: np.ndarray, tower: TextTower) -> np.ndarray:
    """How many tokens of each row [n, context] its feature needs, int64 [n]: up to its end, or up to its padding."""
    if tower.required_token is not None:
        return (tokens == tower.required_token).argmax(axis=1) + 1
    return (tokens != tower.padding_token).cumsum(axis=1).argmax(axis=1) + 1
