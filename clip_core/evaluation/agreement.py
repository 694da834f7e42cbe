"""Whether backends choose alike: which target each of them finds nearest to a query, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from clip_core.evaluation.retrieval import blocks


class Choices(NamedTuple):
    """What one backend finds nearest to each of n queries."""

    nearest: np.ndarray  # int64 [n], the number of the target
    margins: np.ndarray  # float32 [n], its cosine above that of the next target; infinite where there is no other


def choices(queries: np.ndarray, targets: np.ndarray) -> Choices:
    """The choices among the unit features ``targets`` [m, d] for the unit features ``queries`` [n, d].

    Of equal targets the first is chosen, with a margin of 0.
    """
    nearest, margins = np.empty(len(queries), np.int64), np.full(len(queries), np.inf, np.float32)
    for rows, similarities in blocks(queries, targets):
        nearest[rows] = similarities.argmax(axis=1)
        if len(targets) > 1:
            first_two = -np.partition(-similarities, 1, axis=1)[:, :2]
            margins[rows] = first_two[:, 0] - first_two[:, 1]
    return Choices(nearest, margins)


class Agreement(NamedTuple):
    """How far backends choose alike."""

    samples: int
    equal: int  # samples for which all backends choose the same
    smallest_margin: float | None  # of the first backend, among the samples that are not equal
    largest_margin: float | None  # a large one is no tie that rounding decides, but a fault
    different: np.ndarray  # int64, the numbers of the samples that are not equal
    margins: np.ndarray  # float32 [samples], of the first backend

    @property
    def disagreement(self) -> float:
        """The share of samples that are not equal."""
        return 1 - self.equal / self.samples

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "samples": self.samples,
            "equal_share": self.equal / self.samples,
            "smallest_margin_of_different": self.smallest_margin,
            "largest_margin_of_different": self.largest_margin,
        }


def agreement(by_backend: Mapping[str, Choices]) -> Agreement:
    """The agreement of backends on the same samples, at least one; margins are those of the first backend."""
    first, *others = by_backend.values()
    same = np.ones(len(first.nearest), bool)
    for other in others:
        same &= other.nearest == first.nearest
    margins = first.margins[~same]
    return Agreement(
        len(same),
        int(same.sum()),
        float(margins.min()) if len(margins) else None,
        float(margins.max()) if len(margins) else None,
        np.flatnonzero(~same),
        first.margins,
    )
