"""Confidence intervals by the bootstrap: how much a score would vary with other samples of the same kind.

The interval holds the middle 95 % of the scores of 1,000 resamples, each as large as the data and drawn from it with
repetitions (Efron 1979, the percentile method). It tells nothing of what all samples have in common, such as an error
in the data or the choice of prompts; and when all samples are right, its width is 0, however few they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95
DRAWN_AT_ONCE = 1 << 20  # numbers of samples, which bounds the memory

Statistic = Callable[[np.ndarray], np.ndarray]
"""From the numbers of samples int64 [r, n], where each row is a resample, to the scores of the rows, float [r]."""


@dataclass(frozen=True)
class Score:
    """A score, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def score(statistic: Statistic, samples: int, seed: int = 0, strata: np.ndarray | None = None) -> Score:
    """A score of all samples with its interval.

    Args:
        samples: how many there are.
        seed: of the resamples. Scores with the same number of samples and the same seed share them.
        strata: int [samples], the group of each sample; a resample has as many of each group as there are.
    """
    generator = np.random.default_rng(seed)
    highs = samples if strata is None else np.bincount(strata)[np.sort(strata)]
    scores = []
    rows = max(1, DRAWN_AT_ONCE // samples)
    for start in range(0, RESAMPLES, rows):
        size = (min(rows, RESAMPLES - start), samples)
        drawn = generator.integers(0, highs, size)
        if strata is not None:
            order = np.argsort(strata, kind="stable")
            drawn = order[drawn + np.searchsorted(strata[order], strata[order])]
        scores.append(statistic(drawn))
    low, high = np.quantile(np.concatenate(scores), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(float(statistic(np.arange(samples)[None])[0]), float(low), float(high))


def mean(values: np.ndarray, seed: int = 0) -> Score:
    """The mean of values [n], one of each sample, with its interval."""
    return score(lambda rows: values[rows].mean(axis=1), len(values), seed)
