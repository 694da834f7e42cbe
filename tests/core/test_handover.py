"""Weights that a model takes over one by one."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.buffers import Memory, read_whole, release, view
from clip_core.handover import HandedOver, take

LENGTH = 3 * 4096  # numbers, which take more than two pages wherever they begin


@pytest.fixture
def memory(tmp_path) -> Memory:
    path = tmp_path / "numbers"
    np.arange(1, 2 * LENGTH + 1, dtype=np.float32).tofile(path)
    with open(path, "rb") as file:
        found = read_whole(file, path.stat().st_size)
    assert isinstance(found, Memory)
    return found


def halves(memory: Memory) -> dict[str, np.ndarray]:
    dtype = np.dtype(np.float32)
    return {"first": view(memory, dtype, (LENGTH,)), "second": view(memory, dtype, (LENGTH,), LENGTH * 4)}


def test_what_was_taken_is_let_go_of_when_the_next_one_is_taken(memory):
    given = halves(memory)
    weights = HandedOver(given)
    assert given == {}
    first = take(weights, "first")
    np.testing.assert_array_equal(first, np.arange(1, LENGTH + 1))
    second = take(weights, "second")
    np.testing.assert_array_equal(second, np.arange(LENGTH + 1, 2 * LENGTH + 1))
    assert (first[1024:-1024] == 0).all()
    assert not weights


def test_tied_weights_keep_their_values(memory):
    tied = halves(memory) | {"both": view(memory, np.dtype(np.float32), (2, LENGTH)).T}
    weights = HandedOver(tied)
    take(weights, "first"), take(weights, "second")
    np.testing.assert_array_equal(take(weights, "both").T.ravel(), np.arange(1, 2 * LENGTH + 1))


def test_strided_views_keep_to_their_bytes(memory):
    given = {name: np.lib.stride_tricks.as_strided(x, (3, 4096))[::-1].T for name, x in halves(memory).items()}
    weights = HandedOver(given)
    first = take(weights, "first")
    assert first[0, -1] == 1
    np.testing.assert_array_equal(np.sort(take(weights, "second").ravel()), np.arange(LENGTH + 1, 2 * LENGTH + 1))
    assert (first[:, 1] == 0).all()


def test_weights_of_others_stay():
    weights = {"first": np.ones(LENGTH), "second": np.ones(LENGTH)}
    assert take(weights, "first") is weights["first"]
    take(weights, "second")
    assert (weights["first"] == 1).all()


def test_what_was_read_is_no_mapped_file(memory):
    release(memory)
    assert halves(memory)["second"][0] == LENGTH + 1


def test_a_file_that_is_cut_meanwhile_ends_there(tmp_path):
    path = tmp_path / "cut"
    path.write_bytes(b"abc")
    with open(path, "rb") as file:
        assert read_whole(file, 5) == b"abc"
