"""What backends choose, compared."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.evaluation.agreement import agreement, choices

TARGETS = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)


def test_choices_are_the_nearest_targets_and_by_how_much():
    found = choices(np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32), TARGETS)
    assert found.nearest.tolist() == [0, 1, 2]
    assert found.margins.tolist() == pytest.approx([0.4, 0.2, 0.16])


def test_a_single_target_is_chosen_beyond_doubt():
    found = choices(np.eye(2, dtype=np.float32), TARGETS[:1])
    assert found.nearest.tolist() == [0, 0]
    assert np.isinf(found.margins).all()


def test_the_first_of_equal_targets_is_chosen_without_a_margin():
    generator = np.random.default_rng(0)
    targets = generator.standard_normal((31, 64)).astype(np.float32)
    found = choices(targets[:9], np.concatenate([targets, targets]))
    assert found.nearest.tolist() == list(range(9))
    assert found.margins.tolist() == [0] * 9


def test_samples_that_some_backend_sees_otherwise_are_named():
    queries = np.array([[1, 0], [0, 1], [0.8, 0.6], [1, 0]], np.float32)
    turned = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], np.float32)
    found = agreement(
        {"first": choices(queries, TARGETS), "same": choices(queries, TARGETS), "turned": choices(turned, TARGETS)}
    )
    assert found.equal == 2
    assert found.disagreement == 0.5
    assert found.different.tolist() == [0, 2]
    assert found.to_dict() == {
        "samples": 4,
        "equal_share": 0.5,
        "smallest_margin_of_different": pytest.approx(0.16),
        "largest_margin_of_different": pytest.approx(0.4),
    }


def test_equal_choices_have_no_margins_to_tell():
    found = agreement({"only": choices(TARGETS, TARGETS)})
    assert found.to_dict() == {
        "samples": 3,
        "equal_share": 1.0,
        "smallest_margin_of_different": None,
        "largest_margin_of_different": None,
    }
