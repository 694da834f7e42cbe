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


def test_a_page_goes_with_the_last_of_its_arrays(memory):
    """Large pages of the system are free when all of each is."""
    whole = np.frombuffer(memory, np.float32)
    given = {str(start): whole[start : start + 1000] for start in range(0, 24 * 1000, 1000)}
    weights = HandedOver(given)
    for start in (*range(1000, 24 * 1000, 2000), *range(0, 24 * 1000, 2000)):
        np.testing.assert_array_equal(take(weights, str(start)), np.arange(start + 1, start + 1001))
    assert (whole[: 22 * 1000 // 1024 * 1024] == 0).all()
    np.testing.assert_array_equal(whole[22 * 1000 : 23 * 1000], np.arange(22 * 1000 + 1, 23 * 1000 + 1))


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_numbers_are_aligned_where_the_bytes_before_them_are_free(memory, order):
    dtype = np.dtype(np.float32)
    given = {"first": view(memory, dtype, (2, 100), 5).T, "second": view(memory, dtype, (100,), 805)}
    expected = {name: array.copy() for name, array in given.items()}
    assert not any(array.flags.aligned for array in given.values())
    weights = HandedOver(given)
    for name in order:
        taken = take(weights, name)
        np.testing.assert_array_equal(taken, expected[name])
        assert taken.flags.aligned == ("first" in (name, order[0]))
        assert np.shares_memory(taken, np.frombuffer(memory, np.uint8))


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
