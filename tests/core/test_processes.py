"""Work in other processes: its order, its errors, and that nothing waits for a process that is gone."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import ClipError, TextError
from clip_core.processes import in_order

DIED = "It has died of {code}."
LONG = 1 << 24  # bytes, more than any socket holds before somebody reads


def arrays(task: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Of several kinds of memory: whole, with gaps, and none."""
    time.sleep(0.05 if task % 3 == 0 else 0)
    return task, np.full(LONG, task, np.uint8), np.arange(6.0).reshape(2, 3)[:, ::2] + task, np.empty((0, 3), np.int64)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_their_tasks(workers):
    with closing(in_order(arrays, range(8), workers, DIED)) as results:
        for expected, (task, whole, gaps, nothing) in zip(range(8), results, strict=True):
            assert task == expected
            assert whole.shape == (LONG,)
            assert (whole == task).all()
            assert whole.flags.writeable
            assert gaps.tolist() == [[task, task + 2.0], [task + 3.0, task + 5.0]]
            assert nothing.shape == (0, 3)
    assert not multiprocessing.active_children()


def where(task: int) -> int:
    return os.getpid()


def test_processes_share_endless_work_and_end_when_it_is_closed():
    results = in_order(where, count(), 2, DIED)
    found = [next(results) for _ in range(6)]
    assert found == 3 * found[:2]
    assert len({*found, os.getpid()}) == 3
    assert {process.pid for process in multiprocessing.active_children()} == set(found)
    results.close()
    assert not multiprocessing.active_children()


def killed_at_3(task: int) -> np.ndarray:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros(LONG)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_in_its_work_is_told_of(workers):
    results = in_order(killed_at_3, range(20), workers, DIED)
    # The thread that sends the result before it dies with its process, so that one may be cut off.
    with pytest.raises(ClipError, match=r"^It has died of -9\.$"):
        list(results)
    assert not multiprocessing.active_children()


def test_a_process_that_dies_in_the_middle_of_its_answer_is_told_of():
    results = in_order(arrays, count(), 2, DIED)
    next(results)
    time.sleep(1)  # the other one has answered as much as fits into its socket, and waits for a reader
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ClipError, match=r"^It has died of -9\.$"):
        for _ in results:
            pass
    assert not multiprocessing.active_children()


class Unsendable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def failing(task: int) -> object:
    if task == 1:
        raise TextError("This text is bad.")
    if task == 2:
        raise Unsendable("This error", "cannot be made anew")
    if task == 3:
        np.empty(1 << 50)
    return lambda: task


@pytest.mark.parametrize(
    ("task", "kind", "text"),
    [
        (1, TextError, r"^This text is bad\.$"),
        (2, RuntimeError, r"^Unsendable: This error$"),
        (3, MemoryError, "Unable to allocate"),
        (4, (AttributeError, pickle.PicklingError), "local object"),
    ],
)
def test_an_error_of_the_work_or_of_its_result_is_raised_here(task, kind, text):
    with pytest.raises(kind, match=text) as caught:
        next(in_order(failing, [task], 1, DIED))
    assert "Traceback" in str(caught.value.__cause__)
    assert "failing" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


UNENDED = """
from itertools import count
from clip_core.processes import in_order
from tests.core.test_processes import arrays

if __name__ == "__main__":
    results = in_order(arrays, count(), 2, "")
    next(results)
    print("one")
"""


def test_a_program_ends_that_never_closes_its_processes(tmp_path):
    (tmp_path / "run.py").write_text(UNENDED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "run.py"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "one\n", "")


UNGUARDED = """
from clip_core.errors import ClipError
from clip_core.processes import in_order
from tests.core.test_processes import where

try:
    next(in_order(where, [0], 1, "It has died of {code}."))
except ClipError as error:
    print(error)
"""


def test_a_script_that_starts_itself_again_is_told_of(tmp_path):
    (tmp_path / "run.py").write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "run.py"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "It has died of 1.\n"
