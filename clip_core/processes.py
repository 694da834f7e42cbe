"""Work that other processes do ahead of time, given back in its order."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from clip_core.data.loader import follow_the_parent
from clip_core.errors import ClipError

Task = TypeVar("Task")
Result = TypeVar("Result")


@contextmanager
def in_order(work: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Iterator[Result]]:
    """The results of ``work`` for ``tasks`` one after the other, a few of them ahead of time where there are processes.

    Args:
        work: which pickle can send to another process; sent once, not with every task.
        workers: processes, 0 for none beside this one.

    Raises:
        ClipError: while iterating, a process has died.
    """
    if not workers:
        yield map(work, tasks)
        return
    # A fork would copy a framework's threads in the middle of their work.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (work,))
    try:
        yield _ahead(pool, tasks, 2 * workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any], Any]  # of a process of the pool


def _begin(work: Callable[[Any], Any]) -> None:
    """Make a new process ready."""
    global _work
    _work = work
    follow_the_parent()


def _do(task: Any) -> Any:
    return _work(task)


def _ahead(pool: ProcessPoolExecutor, tasks: Iterable[Task], count: int) -> Iterator[Any]:
    """The results in the order of the tasks, of which ``count`` are asked for before they are needed."""
    rest = iter(tasks)
    waiting: deque[Future[Any]] = deque(pool.submit(_do, task) for task in islice(rest, count))
    while waiting:
        try:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_do, task) for task in islice(rest, 1))
        except BrokenProcessPool as error:
            raise ClipError(
                "A process that decodes pictures has died; most often memory has run out: choose fewer --workers or a "
                "smaller --batch-size. Such a process imports the script that it belongs to, which therefore has to "
                'do this below `if __name__ == "__main__":`.'
            ) from error
        yield result
