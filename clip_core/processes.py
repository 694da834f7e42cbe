"""Work that other processes do ahead of time, given back in its order.

Each process answers over a socket of its own. Queues and pools of processes share locks and pipes instead: where one is
killed in the middle of an answer, all others wait forever.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from multiprocessing.util import Finalize
from typing import Any, TypeVar

import numpy as np

from clip_core.errors import ClipError

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 2  # tasks that each process has: one that it does, and one whose result it holds ready or that comes next
PATIENCE = 10  # seconds that a process has to end by itself


def in_order(
    work: Callable[[Task], Result], tasks: Iterable[Task], workers: int, died: str
) -> Generator[Result, None, None]:
    """The results of ``work`` for ``tasks`` one after the other, a few of them ahead of time where there are processes.

    These start with the first result, and end when this iterator is closed.

    Args:
        work: which pickle can send to another process; sent once, not with every task. It leaves its results as they
            are, which are sent while it does the next task.
        tasks: of a few bytes each, since their results may be long.
        workers: processes, 0 for none beside this one.
        died: the sentence of the error when one has died, with a place for its ``{code}``.

    Raises:
        ClipError: while iterating, a process has died. What ``work`` raises is raised here.
    """
    if not workers:
        yield from map(work, tasks)
        return
    rest = iter(tasks)
    crew: list[_Worker] = []
    asked: deque[_Worker] = deque()

    def ask(worker: _Worker) -> None:
        for task in islice(rest, 1):
            worker.ask(task)
            asked.append(worker)

    try:
        for _ in range(workers):
            crew.append(_Worker(work))
        for worker in crew * AHEAD:
            ask(worker)
        while asked:
            worker = asked.popleft()
            result = worker.answer()
            ask(worker)
            yield result
    except _Died as error:
        raise ClipError(died.format(code=error.code)) from None
    finally:
        for worker in crew:
            worker.leave()
        for worker in crew:
            worker.end()


class _Died(Exception):
    def __init__(self, code: int | None) -> None:
        self.code = code


class _Worker:
    """A process that does tasks in the order in which it is asked."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        # A fork would copy a framework's threads in the middle of their work.
        context = multiprocessing.get_context("spawn")
        self._socket, theirs = socket.socketpair()
        # Before this process ends it waits for its children, which wait for tasks until then.
        self.leave = Finalize(self, self._socket.close, exitpriority=1)
        self._process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with theirs:  # the other process alone has that end, so that it is closed when the process dies
            self._process.start()

    def ask(self, task: Any) -> None:
        try:
            for part in _packed(task):
                self._socket.sendall(part)
        except OSError:
            raise _Died(self.end()) from None

    def answer(self) -> Any:
        try:
            result, error, trace = _receive(self._socket)
        except (EOFError, OSError):
            raise _Died(self.end()) from None
        if error is not None:
            raise error from RuntimeError(trace)
        return result

    def end(self) -> int | None:
        """Wait for the process, which sees that nobody asks any more, and give its exit code."""
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _serve(asker: socket.socket, work: Callable[[Any], Any]) -> None:
    """Do all tasks, until nobody asks any more; results are sent while the next ones are made."""
    follow_the_parent()
    results: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
    threading.Thread(target=_send_all, args=(asker, results), daemon=True).start()
    while True:
        try:
            task = _receive(asker)
        except (EOFError, OSError):
            return
        try:
            packed = _packed((work(task), None, ""))
        except Exception as error:  # also where the result cannot be packed
            packed = _packed((None, _sendable(error), traceback.format_exc()))
        results.put(packed)


def _send_all(asker: socket.socket, results: queue.SimpleQueue[list[Any]]) -> None:
    try:
        while True:
            for part in results.get():
                asker.sendall(part)
    except OSError:  # nobody asks any more
        return


def _sendable(error: Exception) -> Exception:
    """The error itself, or its text where its class cannot be made anew elsewhere."""
    try:
        return pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _packed(value: Any) -> list[Any]:
    """The pieces of memory that are sent of a value; that of its arrays as it is."""
    buffers: list[pickle.PickleBuffer] = []
    parts: list[Any] = [pickle.dumps(value, protocol=5, buffer_callback=buffers.append)]
    parts += (buffer.raw() for buffer in buffers)
    sizes = [memoryview(part).nbytes for part in parts]
    return [np.array(len(parts)), np.array(sizes), *parts]


def _receive(sender: socket.socket) -> Any:
    """The next value that was sent.

    Raises:
        EOFError: the other end is closed.
    """

    def filled(array: np.ndarray) -> np.ndarray:
        rest = array.view(np.uint8).data
        while rest:
            count = sender.recv_into(rest, 0, socket.MSG_WAITALL)
            if not count:
                raise EOFError
            rest = rest[count:]
        return array

    (count,) = filled(np.empty(1, np.int64))
    pickled, *buffers = [filled(np.empty(size, np.uint8)) for size in filled(np.empty(count, np.int64))]
    return pickle.loads(pickled.data, buffers=buffers)  # noqa: S301 - of this program's own process


def follow_the_parent() -> None:
    """End this worker process when the one that started it ends, however it ends, and not before."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or a scheduler sends them to all processes
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_it() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
