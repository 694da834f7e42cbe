"""Sets of classes that hold a picture's class as often as stated, and "none of these" as the empty set.

Split-conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018): bounds are taken from pictures with known
classes, and hold for any other picture that is drawn as these were. For an allowed error of 10 %, the set of such a
picture holds its class with a probability of at least 90 %, whatever the model is and however many pictures there are.
This is an average over pictures: it promises nothing for one class alone, nor for pictures of another kind.

A class is in the set when both hold, each of which may fail with half of the allowed error:

* its probability is not below the first bound (the least ambiguous sets of Sadinle, Lei and Wasserman 2019);
* the nearest class of all is not less similar to the picture than the second bound, so that a picture that is unlike
  all classes gets none of them. Probabilities alone cannot tell this, since they add up to 1 over any classes.

The empty set is the answer "none of these". As it is one of the errors, a picture that does show one of the classes
gets it with a probability of at most the allowed error. How many pictures of other things get it is not guaranteed;
`Sets.none_without_own` measures it on pictures whose own class is taken away from those offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np

from clip_core.errors import ClipError
from clip_core.evaluation.calibration import log_probabilities
from clip_core.evaluation.intervals import Score, mean
from clip_core.evaluation.retrieval import blocks


@dataclass(frozen=True)
class Sets:
    """Sets of classes for n pictures, and how good they are on those pictures that no bound was taken from."""

    error: float
    """The share of pictures whose set may lack their class."""
    least_probability: float
    """The first bound, ``-inf`` when too few pictures are known for such a small error."""
    least_similarity: float
    """The second bound, likewise."""
    sizes: np.ndarray
    """int64 [n]: classes in each picture's set; 0 is "none of these"."""
    covered: np.ndarray
    """bool [n]: whether the set has the picture's class."""
    coverage: Score
    """The share of pictures whose set has their class; ``1 - error`` or more is expected."""
    size: Score
    """The mean number of classes in a set."""
    none: Score
    """The share of pictures that get the answer "none of these", though they show one of the classes."""
    none_without_own: Score
    """The share of pictures that get it when their own class is not offered; higher is better."""


def prediction_sets(
    images: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    logit_scale: float,
    error: float,
    seed: int = 0,
) -> Sets:
    """The sets of pictures, with bounds taken from a part of them.

    Args:
        images: unit features [n, d].
        classes: unit features [c, d].
        labels: int [n].
        known: bool [n], the pictures that the bounds are taken from, chosen without regard to features and labels.
        logit_scale: the model's own. A factor that was fitted to the known pictures would void the guarantee.
        error: above 0 and below 1.
        seed: of the confidence intervals.

    Raises:
        ClipError: the error is out of its range.
    """
    check_error(error)
    own, nearest = np.empty(len(images)), np.empty(len(images))
    for place, similarities in blocks(images, classes):
        rows = np.arange(len(similarities))
        own[place] = np.exp(log_probabilities(similarities, logit_scale)[rows, labels[place]])
        nearest[place] = similarities.max(axis=1)
    least_probability, least_similarity = bound(own[known], error / 2), bound(nearest[known], error / 2)

    def offered(similarities: np.ndarray) -> np.ndarray:
        """bool [b, c]: which classes are in the sets."""
        near = similarities.max(axis=1, keepdims=True) >= least_similarity
        return near & (np.exp(log_probabilities(similarities, logit_scale)) >= least_probability)

    sizes, covered = np.empty(len(images), np.int64), np.empty(len(images), bool)
    without_own = np.empty(len(images), bool)
    for place, similarities in blocks(images, classes):
        rows = np.arange(len(similarities))
        sets = offered(similarities)
        sizes[place], covered[place] = sets.sum(axis=1), sets[rows, labels[place]]
        similarities[rows, labels[place]] = -np.inf
        foreign = offered(similarities)
        foreign[rows, labels[place]] = False
        without_own[place] = ~foreign.any(axis=1)
    others = ~known
    return Sets(
        error,
        least_probability,
        least_similarity,
        sizes,
        covered,
        coverage=mean(covered[others], seed),
        size=mean(sizes[others], seed),
        none=mean(sizes[others] == 0, seed),
        none_without_own=mean(without_own[others], seed),
    )


def check_error(error: float) -> None:
    """Refuse an error that no sets can have.

    Raises:
        ClipError: it is not above 0 and below 1.
    """
    if not 0 < error < 1:
        raise ClipError(f"The error of prediction sets is {error}; give a share between 0 and 1, such as 0.1.")


def bound(scores: np.ndarray, error: float) -> float:
    """The bound that the score of another picture falls below with a probability of at most ``error``.

    Args:
        scores: float [n] of known pictures; larger is better.

    Returns:
        The k-th smallest score, where k is ``error`` times n + 1, rounded down; ``-inf`` when k is 0.
    """
    place = floor(error * (len(scores) + 1))
    return float(np.partition(scores, place - 1)[place - 1]) if place else -np.inf
