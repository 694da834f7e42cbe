"""Calibration on numbers worked out by hand, and compared with scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.calibration import calibration_curve

from clip_core.evaluation.calibration import (
    MOST,
    equal_mass,
    equal_width,
    fit_scale,
    log_probabilities,
    reliability,
)
from clip_core.similarity import probabilities


def test_the_error_is_the_mean_difference_of_the_bins():
    chances = np.array([0.9, 0.8, 0.4, 0.3, 0.5])
    right = np.array([True, False, True, False, False])
    found = reliability(chances, right, equal_width(2))  # 0.5 belongs to the lower bin
    assert found.counts.tolist() == [3, 2]
    assert found.probability == pytest.approx([0.4, 0.85])
    assert found.accuracy == pytest.approx([1 / 3, 1 / 2])
    assert found.error == pytest.approx((3 * (0.4 - 1 / 3) + 2 * 0.35) / 5)


def test_an_empty_bin_counts_for_nothing():
    found = reliability(np.array([0.9, 0.9]), np.array([True, False]), equal_width(2))
    assert found.counts.tolist() == [0, 2]
    assert np.isnan(found.probability[0])
    assert found.error == pytest.approx(0.4)


def test_the_curve_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    chances = generator.beta(2, 1, 500)
    right = generator.random(500) < chances**2
    for edges, strategy in ((equal_width(), "uniform"), (equal_mass(chances), "quantile")):
        accuracy, probability = calibration_curve(right, chances, n_bins=15, strategy=strategy)
        found = reliability(chances, right, edges)
        used = found.counts > 0
        assert found.accuracy[used] == pytest.approx(accuracy)
        assert found.probability[used] == pytest.approx(probability)


def test_adaptive_bins_have_equally_many_pictures():
    chances = np.random.default_rng(0).random(150) ** 4
    assert reliability(chances, chances > 0.5, equal_mass(chances)).counts.tolist() == [10] * 15


def test_equal_probabilities_are_in_one_bin():
    chances = np.full(20, 0.25)
    found = reliability(chances, np.arange(20) < 8, equal_mass(chances))
    assert found.counts.max() == 20
    assert found.error == pytest.approx(0.15)


def noisy(pictures: int = 400, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of which a factor of 6 makes true probabilities, and labels drawn from these."""
    generator = np.random.default_rng(2)
    similarities = generator.normal(0, 0.4, (pictures, classes))
    chances = probabilities(6 * similarities)
    return similarities, np.array([generator.choice(classes, p=row) for row in chances])


@pytest.mark.parametrize("start", [0.5, 6.0, 100.0])
def test_the_fitted_factor_is_the_most_likely_one(start):
    similarities, labels = noisy()
    rows = np.arange(len(labels))

    def loss(logarithm: float) -> float:
        logits = np.exp(logarithm) * similarities
        return float((logsumexp(logits, axis=1) - logits[rows, labels]).mean())

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 5), method="bounded", options={"xatol": 1e-9}).x)
    parts = [slice(0, 100), slice(100, 400)]
    found = fit_scale(lambda: ((similarities[part], labels[part]) for part in parts), start)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found == pytest.approx(6, rel=0.15)


def test_where_every_picture_is_right_the_factor_grows_to_its_limit():
    similarities = np.eye(3)
    assert fit_scale(lambda: [(similarities, np.arange(3))], 10.0) > 20
    assert fit_scale(lambda: [(similarities, np.arange(3))], 10.0) <= 10 * MOST


def test_where_similarities_mislead_the_factor_shrinks_to_its_limit():
    similarities = np.eye(3)
    assert fit_scale(lambda: [(similarities, np.array([1, 2, 0]))], 10.0) == pytest.approx(10 / MOST, rel=1e-3)


def test_probabilities_of_large_logits_are_finite():
    similarities = np.array([[1.0, -1.0], [0.5, 0.5]], np.float32)
    assert np.exp(log_probabilities(similarities, 1e4)) == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))
    assert log_probabilities(similarities, 1e4)[0, 1] == -2e4
