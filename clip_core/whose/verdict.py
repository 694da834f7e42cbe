"""Embeddings beside those of every variant: which are nearest, how clearly, and what the numbers themselves tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from clip_core.similarity import normalize
from clip_core.whose.variants import Making

NONE_BEYOND = 0.02  # distance; embeddings that were computed in bfloat16 and in float32 are up to so far apart
CLEAR = 1.5  # times the smallest distance (or the floor), from which on a variant is another one
FLOOR = 1e-6  # distance that the rounding of float32 makes, so that nothing below it tells variants apart
FLOAT32_WITHIN = 1e-4  # distance; beyond it, numbers were computed in less than float32

ROUNDING = {"float64": 0.0, "float32": 6e-8, "float16": 5e-4, "bfloat16": 4e-3}
"""Of a number, relative to it, by the dtype that it is stored in."""


class Candidate(NamedTuple):
    """Variants that give the same pixels for all pictures, and how far their embeddings are from those given."""

    resizings: tuple[str, ...]
    making: Making
    distance: float  # root of the mean over the pictures of the squared distance of unit embeddings
    nearest: int  # of how many pictures the embedding is nearer than that of any other candidate

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers = {"distance": self.distance, "nearest": self.nearest}
        return {"resizing": list(self.resizings)} | self.making._asdict() | numbers


@dataclass(frozen=True)
class Verdict:
    """What can be said of embeddings of unknown making."""

    pictures: int  # that were compared
    candidates: list[Candidate]  # the nearest first
    rounding: str  # the narrowest dtype that holds every number
    length: str  # unit, model or other
    lengths: tuple[float, float]  # the shortest and the longest, as multiples of the model's own
    permuted: bool = False  # whether the embeddings are those of the pictures in another order

    @property
    def bound(self) -> float:
        """The distance beyond which the nearest candidate is none."""
        return NONE_BEYOND + ROUNDING[self.rounding]

    @property
    def found(self) -> list[Candidate]:
        """The nearest candidate and those that cannot be told from it; empty where it is none of them."""
        best = self.candidates[0].distance
        if best > self.bound:
            return []
        return [each for each in self.candidates if each.distance <= CLEAR * max(best, FLOOR)]

    @property
    def ratio(self) -> float | None:
        """How many times as far the nearest of the others is; None where there are no others."""
        others = self.candidates[len(self.found) or 1 :]
        return others[0].distance / max(self.candidates[0].distance, FLOOR) if others else None

    @property
    def exact(self) -> bool:
        """Whether the embeddings are as near as those that were computed in float32."""
        return self.candidates[0].distance <= FLOAT32_WITHIN + ROUNDING[self.rounding]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "pictures": self.pictures,
            "found": [each.to_dict() for each in self.found],
            "ratio": self.ratio,
            "bound": self.bound,
            "rounding": self.rounding,
            "length": self.length,
            "lengths": list(self.lengths),
            "float32": self.exact,
            "permuted": self.permuted,
            "candidates": [each.to_dict() for each in self.candidates],
        }


class Embeddings:
    """Embeddings float [n, d] of unknown making, each of which has a direction."""

    def __init__(self, given: np.ndarray) -> None:
        self.given = given
        self.rounding = _rounding_of(given)
        lengths = np.linalg.norm(given.astype(np.float64), axis=1)
        self.lengths = lengths  # float64 [n]
        self.of_length_1 = bool(np.abs(lengths - 1).max() <= 1e-5 + 4 * ROUNDING[self.rounding])

    def taken(self, rows: np.ndarray) -> Embeddings:
        """Those of some pictures."""
        return Embeddings(self.given[rows])

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distances float64 [n, k] between unit embeddings, these ones and ``features`` [n, k, d].

        The features are first rounded as the embeddings are, so that the rounding makes no distance.
        """
        unit = normalize(self.given.astype(np.float64))[:, None]
        stored = normalize(features) if self.of_length_1 else features
        return np.linalg.norm(normalize(_ROUNDED[self.rounding](stored).astype(np.float64)) - unit, axis=-1)

    def is_permuted(self, features: np.ndarray) -> bool:
        """Whether these are near to ``features`` [n, d] one to one, and most of them not in their order."""
        cosines = normalize(self.given.astype(np.float64)) @ normalize(features.astype(np.float64)).T
        nearest = cosines.argmax(axis=1)
        itself = np.arange(len(nearest))
        return bool(np.array_equal(np.sort(nearest), itself) and (nearest != itself).sum() > len(itself) / 2)


def judged(given: Embeddings, features: Mapping[Making, np.ndarray], groups: Sequence[tuple[str, ...]]) -> Verdict:
    """Compare embeddings with those of every candidate.

    Args:
        features: float32 [n, g, d] by each making, of the pictures and groups of resizings.
        groups: g, names of the resizings that give the same squares for all pictures.
    """
    table = np.concatenate([given.distances(each) for each in features.values()], axis=1)  # [n, makings * g]
    means = np.sqrt(np.square(table).mean(axis=0))
    counts = np.bincount(table.argmin(axis=1), minlength=table.shape[1])
    candidates = [
        Candidate(group, making, float(distance), int(count))
        for (making, group), distance, count in zip(product(features, groups), means, counts)
    ]
    best = np.concatenate(list(features.values()), axis=1)[:, means.argmin()]
    ratios = given.lengths / np.linalg.norm(best.astype(np.float64), axis=1)
    as_long = np.abs(ratios - 1).max() <= NONE_BEYOND
    return Verdict(
        len(given.given),
        sorted(candidates, key=lambda candidate: candidate.distance),
        given.rounding,
        "unit" if given.of_length_1 else "model" if as_long else "other",
        (float(ratios.min()), float(ratios.max())),
    )


def _rounding_of(embeddings: np.ndarray) -> str:
    """The narrowest of bfloat16, float16, float32 and float64 that holds each of the numbers exactly."""
    with np.errstate(over="ignore"):
        single = embeddings.astype(np.float32)
    if not np.array_equal(single, embeddings):
        return "float64"
    return next(name for name, rounded in _ROUNDED.items() if np.array_equal(rounded(single), single))


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to 8 bits of precision, to the even one of two that are equally near."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _as_float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


_ROUNDED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bfloat16": _as_bfloat16,
    "float16": _as_float16,
    "float32": lambda values: values,
    "float64": lambda values: values,
}
