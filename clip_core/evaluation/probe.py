"""Linear probes: a logistic regression on the features of pictures (paper, section 3.2 and appendix A).

scikit-learn fits it, with L-BFGS. Its C is searched from 1e-6 to 1e6, on pictures that are held out of the training
pictures: first in steps of a factor of 100, then in ever smaller ones around the best, down to 8 per factor of 10.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clip_core.errors import ClipError
from clip_core.installation import requirement

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

ITERATIONS = 1000
HELD_OUT = 0.2  # of the training pictures of each class
FEW_HELD_OUT = 4  # pictures of each class at most, beside a few shots
STEPS = 8  # of C, per factor of 10
DECADES = 6  # of C, on either side of 1
FITS = 16  # of a search and after it, at most


def check_library() -> None:
    """Import scikit-learn.

    Raises:
        ClipError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ClipError(
            f"A linear probe needs scikit-learn ({error}); install it with: pip install {requirement('probe')}."
        ) from error


def chosen(labels: np.ndarray, classes: Sequence[str], shots: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures a probe is fitted to while C is searched, and which ones judge it: int64 numbers of each.

    Args:
        labels: int64 [n], the class of each training picture.
        classes: their names.
        shots: pictures of each class to fit to, and up to `FEW_HELD_OUT` others to judge; None: all pictures, of which
            the share `HELD_OUT` judges.
        seed: of the choice.

    Raises:
        ClipError: a class has too few pictures.
    """
    generator = np.random.default_rng(seed)
    fit, judge = [], []
    for number, name in enumerate(classes):
        own = generator.permutation(np.flatnonzero(labels == number))
        held_out = max(1, round(HELD_OUT * len(own))) if shots is None else min(shots, FEW_HELD_OUT)
        count = len(own) - held_out if shots is None else shots
        if count < 1 or len(own) < count + held_out:
            needed = 2 if shots is None else count + held_out
            raise ClipError(
                f"The class {name!r} has {len(own)} training pictures, and a probe needs {needed}; give more pictures"
                + ("." if shots is None else ", or fewer --shots.")
            )
        fit.append(own[:count])
        judge.append(own[count : count + held_out])
    return np.concatenate(fit), np.concatenate(judge)


def search(accuracy: Callable[[float], float]) -> float:
    """The C of the highest ``accuracy``, the smallest of several; some 15 values are tried.

    The search takes the accuracy to rise and fall once.
    """
    found: dict[int, float] = {}  # number of the step from C = 1 -> accuracy
    width = 2 * STEPS
    places = list(range(-DECADES * STEPS, DECADES * STEPS + 1, width))
    while True:
        for place in places:
            if place not in found and abs(place) <= DECADES * STEPS:
                found[place] = accuracy(10 ** (place / STEPS))
        best = min(found, key=lambda place: (-found[place], place))
        if width == 1:
            return float(10 ** (best / STEPS))
        width //= 2
        places = [best - width, best + width]


def fit(features: np.ndarray, labels: np.ndarray, regularization: float) -> LogisticRegression:
    """The regression of features float [n, d] with labels int64 [n], with C = ``regularization``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at a large C it stops after `ITERATIONS`, as in the paper
        warnings.filterwarnings("ignore", "The number of unique classes")  # of a few shots, they are many
        return LogisticRegression(C=regularization, max_iter=ITERATIONS).fit(features, labels)


def probe(
    features: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    shots: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """A linear probe of training features.

    Args:
        features: float32 [n, d], not normalised.
        labels: int64 [n].
        classes: their names.
        shots: as for `chosen`.
        seed: of the choice of pictures.
        progress: told how many of how many regressions are fitted.

    Returns:
        Weights float32 [classes, d + 1] whose last column is the bias: with a 1 behind each feature, their products are
        the logits. And what was chosen, as plain data for JSON.

    Raises:
        ClipError: as `chosen`.
    """
    of_fit, of_judge = chosen(labels, classes, shots, seed)
    done = itertools.count()

    def accuracy(value: float) -> float:
        progress(next(done), FITS)
        fitted = fit(features[of_fit], labels[of_fit], value)
        return float((fitted.predict(features[of_judge]) == labels[of_judge]).mean())

    best = search(accuracy)
    # Few shots are what they are said to be; otherwise the pictures that have judged are worth fitting to as well.
    last = of_fit if shots is not None else np.arange(len(labels))
    progress(min(next(done), FITS - 1), FITS)
    fitted = fit(features[last], labels[last], best)
    progress(FITS, FITS)
    weights, bias = fitted.coef_, fitted.intercept_
    if len(classes) == 2:  # of which scikit-learn has the difference of the logits alone
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    chosen_here = {"C": best, "fitted_pictures": len(last), "held_out_pictures": len(of_judge)}
    return np.concatenate([weights, bias[:, None]], axis=1).astype(np.float32), chosen_here
