"""Calibration: whether a model that says 70 % is right in 70 % of the cases.

The expected calibration error sorts pictures
into bins by the probability of the class that they are put into, and is the mean, over pictures, of the difference
between their bin's accuracy and its mean probability (Naeini et al. 2015; Guo et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np

BINS = 15
MOST = 100.0  # times which a fitted factor is larger or smaller than the model's own
MAX_STEPS = 40
PRECISION = 1e-6  # of the fitted factor, relative

Blocks = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Gives, each time anew, similarities float [b, c] of pictures and classes, and the pictures' labels int [b]."""


@dataclass(frozen=True)
class Reliability:
    """Pictures by the probability of the class that they are put into."""

    edges: np.ndarray  # [bins + 1]; the upper one belongs to a bin
    counts: np.ndarray  # [bins]: pictures
    probability: np.ndarray  # [bins]: mean, NaN of an empty bin
    accuracy: np.ndarray  # [bins]: share of right ones, NaN of an empty bin

    @property
    def error(self) -> float:
        """The expected calibration error."""
        differences = np.abs(self.accuracy - self.probability)
        return float(np.sum(self.counts * np.where(self.counts, differences, 0)) / self.counts.sum())


def reliability(probabilities: np.ndarray, right: np.ndarray, edges: np.ndarray) -> Reliability:
    """Sort pictures into bins.

    Args:
        probabilities: float [n], of the class that each picture is put into.
        right: bool [n], whether that is its class.
        edges: ascending [bins + 1], from 0 to 1.
    """
    bins = np.clip(np.searchsorted(edges, probabilities) - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):
        probability = np.bincount(bins, probabilities, len(counts)) / counts
        accuracy = np.bincount(bins, right, len(counts)) / counts
    return Reliability(edges, counts, probability, accuracy)


def equal_width(bins: int = BINS) -> np.ndarray:
    """Edges of bins of equal width."""
    return np.linspace(0, 1, bins + 1)


def equal_mass(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Edges of bins of equally many pictures, as far as equal probabilities allow (Nixon et al. 2019)."""
    return np.concatenate([[0.0], np.quantile(probabilities, np.arange(1, bins) / bins), [1.0]])


def fit_scale(blocks: Blocks, scale: float) -> float:
    """The factor of the similarities for which the labels are the most likely.

    ``scale`` divided by it is the temperature of Guo et al. 2017. The negative log-likelihood is convex in the factor,
    so Newton's method finds it; a step that leaves the interval in which the minimum lies is replaced by a bisection.

    Args:
        scale: the model's own factor. The result is at most `MOST` times larger or smaller, which is where it ends when
            every picture is right, or the probabilities say nothing.
    """
    low, high = scale / MOST, scale * MOST
    factor = scale
    for _ in range(MAX_STEPS):
        slope, curvature = _derivatives(blocks, factor)
        if slope > 0:
            high = factor
        else:
            low = factor
        step = factor - slope / curvature if curvature > 0 else np.inf
        if not low < step < high:
            step = sqrt(low * high)
        if abs(step - factor) <= PRECISION * factor:
            return step
        factor = step
    return factor


def _derivatives(blocks: Blocks, factor: float) -> tuple[float, float]:
    """The first and second derivative of the negative log-likelihood, summed over pictures, by the factor."""
    slope = curvature = 0.0
    for similarities, labels in blocks():
        chances = np.exp(log_probabilities(similarities, factor))
        means = (chances * similarities).sum(axis=1)
        slope += float((means - similarities[np.arange(len(labels)), labels]).sum())
        curvature += float((chances * (similarities - means[:, None]) ** 2).sum())
    return slope, curvature


def log_probabilities(similarities: np.ndarray, factor: float) -> np.ndarray:
    """The logarithm of the softmax of scaled similarities [b, c] over classes, float64 [b, c]."""
    logits = similarities.astype(np.float64) * factor
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
