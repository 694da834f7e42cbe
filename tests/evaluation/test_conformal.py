"""Prediction sets: their guarantee, kept over many draws, and what they say of pictures that show no class."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.errors import ClipError
from clip_core.evaluation.conformal import bound, prediction_sets
from clip_core.similarity import normalize


def test_the_bound_is_the_kth_smallest_score():
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0])
    assert [bound(scores, error) for error in (0.1, 0.19, 0.2, 0.5)] == [1, 1, 2, 5]
    assert bound(scores, 0.09) == -np.inf  # 9 scores can promise 90 %, not more


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_another_score_is_below_the_bound_as_seldom_as_stated(error):
    generator = np.random.default_rng(0)
    scores = generator.exponential(size=(4000, 100))
    below = [row[-1] < bound(row[:-1], error) for row in scores]
    assert np.mean(below) == pytest.approx(error, abs=0.015)  # k / (n + 1) is the error itself for 99 scores


def world(pictures: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of pictures near to their class, features of classes, and labels."""
    generator = np.random.default_rng(seed)
    classes = normalize(generator.standard_normal((8, 12)))
    labels = generator.integers(0, 8, pictures)
    return normalize(classes[labels] + 0.35 * generator.standard_normal((pictures, 12))), classes, labels


def test_sets_hold_the_class_as_often_as_stated():
    images, classes, labels = world(3000, seed=1)
    known = np.arange(3000) < 1500
    for error in (0.02, 0.1, 0.3):
        found = prediction_sets(images, classes, labels, known, 10.0, error)
        assert found.coverage.value == found.covered[~known].mean() >= 1 - error - 0.02
        assert found.none.value == (found.sizes[~known] == 0).mean() <= error + 0.02
        assert found.size.value == found.sizes[~known].mean()
        assert found.coverage.low < found.coverage.value < found.coverage.high


def test_sets_are_the_classes_that_reach_both_bounds():
    images, classes, labels = world(60, seed=2)
    found = prediction_sets(images, classes, labels, np.arange(60) < 40, 10.0, 0.2)
    cosines = images @ classes.T
    chances = np.exp(10 * cosines) / np.exp(10 * cosines).sum(axis=1, keepdims=True)
    sets = (chances >= found.least_probability) & (cosines.max(axis=1, keepdims=True) >= found.least_similarity)
    assert found.sizes.tolist() == sets.sum(axis=1).tolist()
    assert found.covered.tolist() == sets[np.arange(60), labels].tolist()
    assert found.least_probability == pytest.approx(np.sort(chances[np.arange(40), labels[:40]])[3])
    assert found.least_similarity == pytest.approx(np.sort(cosines[:40].max(axis=1))[3])
    assert 0 in found.sizes


def test_pictures_without_their_class_are_told_apart():
    images, classes, labels = world(400, seed=3)
    known = np.arange(400) < 200
    found = prediction_sets(images, classes, labels, known, 10.0, 0.1)
    expected = []
    for image, label in zip(images[200:], labels[200:]):
        cosines = np.delete(classes, label, axis=0) @ image
        chances = np.exp(10 * cosines) / np.exp(10 * cosines).sum()
        expected.append(cosines.max() < found.least_similarity or chances.max() < found.least_probability)
    assert found.none_without_own.value == np.mean(expected) > 0.5 > found.none.value


def test_too_few_known_pictures_promise_nothing_and_offer_all_classes():
    images, classes, labels = world(10, seed=4)
    found = prediction_sets(images, classes, labels, np.arange(10) < 5, 10.0, 0.1)
    assert found.least_probability == found.least_similarity == -np.inf
    assert found.sizes.tolist() == [8] * 10
    assert found.coverage.value == 1
    assert found.none_without_own.value == 0


@pytest.mark.parametrize("error", [0, 1, -0.1, float("nan")])
def test_an_error_out_of_its_range_is_refused(error):
    images, classes, labels = world(4, seed=5)
    with pytest.raises(ClipError, match=r"^The error of prediction sets is .*; give a share between 0 and 1"):
        prediction_sets(images, classes, labels, np.arange(4) < 2, 10.0, error)
