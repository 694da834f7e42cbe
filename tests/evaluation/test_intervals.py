"""Confidence intervals, compared with scipy's bootstrap and with what the binomial distribution says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clip_core.evaluation import intervals
from clip_core.evaluation.intervals import Score, mean, score


@pytest.mark.parametrize("drawn_at_once", [1, 100, 1 << 20])
def test_intervals_are_those_of_scipy_whatever_is_drawn_at_once(drawn_at_once, monkeypatch):
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", drawn_at_once)
    values = np.random.default_rng(1).exponential(size=37)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=intervals.RESAMPLES, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    found = mean(values, seed=5)
    assert found == Score(pytest.approx(values.mean()), pytest.approx(expected.low), pytest.approx(expected.high))
    assert mean(values, seed=5) == found != mean(values, seed=6)


def test_the_interval_of_a_share_is_as_wide_as_the_binomial_distribution_says():
    right = np.arange(1000) < 900
    found = mean(right)
    low, high = stats.binom.interval(0.95, 1000, 0.9)
    assert found.value == 0.9
    assert (found.low, found.high) == pytest.approx((low / 1000, high / 1000), abs=0.002)


def test_a_resample_has_as_many_of_each_group_as_the_samples():
    groups, seen = np.array([2, 0, 0, 2, 2, 5]), []

    def statistic(rows):
        seen.append(rows)
        return rows.sum(axis=1)

    score(statistic, 6, strata=groups)
    drawn = np.concatenate(seen[:-1])
    assert drawn.shape == (intervals.RESAMPLES, 6)
    assert (np.sort(groups[drawn], axis=1) == np.sort(groups)).all()
    counts = np.bincount(drawn.ravel(), minlength=6)
    assert counts[5] == intervals.RESAMPLES
    assert counts.min() > 0.9 * intervals.RESAMPLES


def test_what_does_not_vary_has_an_interval_without_width():
    assert mean(np.ones(5)) == Score(1, 1, 1)
