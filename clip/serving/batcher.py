"""Forward passes over the inputs of many requests, in the one thread that uses the model."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

import numpy as np

Pass = Callable[[np.ndarray], np.ndarray]
"""Inputs [n, ...] -> features [n, d]."""


class Batcher:
    """Collects inputs of one kind until a forward pass is full, or the oldest of them has waited long enough.

    It does not wait for what is not to be expected: when as many requests are here as there were at the end of the last
    pass, the next one starts. A client that is alone never waits, and some that go on asking are computed together.

    Args:
        kinds: of inputs, which are never in one pass.
        load: gives the pass of each kind; called first, in the thread that calls them later, since frameworks keep
            settings by thread. None ends the thread.
        most: inputs of a pass.
        wait: seconds that an input waits for others at most.
        observe: told the kind, the inputs and the seconds of each pass.
    """

    def __init__(
        self,
        kinds: tuple[str, ...],
        load: Callable[[], Mapping[str, Pass] | None],
        most: int,
        wait: float,
        observe: Callable[[str, int, float], None],
    ) -> None:
        self._load, self._most, self._wait, self._observe = load, most, wait, observe
        self._queues: dict[str, deque[_Input]] = {kind: deque() for kind in kinds}
        self._changed = threading.Condition()
        self._open: set[_Request] = set()  # that are not answered
        self._expected = 0  # how many these were when the last pass ended, those of the pass included
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="forward passes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread after the pass that it computes."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self) -> None:
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many inputs wait."""
        return sum(map(len, self._queues.values()))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def compute(self, kind: str, inputs: np.ndarray) -> np.ndarray:
        """Features [n, d] of inputs [n, ...]; when this is cancelled, those that still wait are forgotten.

        Raises:
            Exception: what the pass of one of the inputs has raised.
        """
        request = _Request(inputs, asyncio.get_running_loop())
        now = monotonic()
        with self._changed:
            self._open.add(request)
            self._queues[kind].extend(_Input(request, row, now) for row in range(len(inputs)))
            self._changed.notify()
        try:
            return await request.answer
        finally:
            with self._changed:
                self._open.discard(request)
                if request.remaining:
                    self._forget(request)

    def _forget(self, request: _Request) -> None:
        for kind, queue in self._queues.items():
            self._queues[kind] = deque(each for each in queue if each.request is not request)

    def _work(self) -> None:
        passes = self._load()
        while passes is not None and (chosen := self._next()):
            kind, inputs = chosen
            started = monotonic()
            try:
                found: np.ndarray | Exception = passes[kind](np.stack([each.value for each in inputs]))
            except Exception as error:  # which belongs to the requests, and not to this thread
                found = error
            self._observe(kind, len(inputs), monotonic() - started)
            self._deliver(inputs, found)

    def _next(self) -> tuple[str, list[_Input]] | None:
        """The inputs of the next pass, once it is time for it; None when there is to be none."""
        with self._changed:
            while not self._closed:
                kind = min(self._queues, key=lambda kind: self._arrival(kind))
                queue = self._queues[kind]
                if not queue:
                    self._changed.wait()
                    continue
                left = queue[0].arrived + self._wait - monotonic()
                if left <= 0 or len(queue) >= self._most or len(self._open) >= self._expected:
                    return kind, [queue.popleft() for _ in range(min(self._most, len(queue)))]
                self._changed.wait(left)
        return None

    def _arrival(self, kind: str) -> float:
        """When the oldest input of a kind arrived; of none, later than any."""
        queue = self._queues[kind]
        return queue[0].arrived if queue else float("inf")

    def _deliver(self, inputs: list[_Input], found: np.ndarray | Exception) -> None:
        """Give the requests what was found for their inputs, and answer those that are complete."""
        with self._changed:
            self._expected = len(self._open)
            for place, (request, row, _) in enumerate(inputs):
                if isinstance(found, Exception):
                    request.fault, request.remaining = found, 0
                    self._forget(request)
                else:
                    request.features[row] = found[place]
                    request.remaining -= 1
            answered = {each.request for each in inputs if not each.request.remaining}
            self._open -= answered
        for request in answered:
            with suppress(RuntimeError):  # the loop has ended, and with it all that waits
                request.loop.call_soon_threadsafe(request.finish)


class _Request:
    """Inputs that are answered together."""

    def __init__(self, inputs: np.ndarray, loop: asyncio.AbstractEventLoop) -> None:
        self.inputs, self.loop = inputs, loop
        self.answer: asyncio.Future[np.ndarray] = loop.create_future()
        self.features: dict[int, np.ndarray] = {}  # row -> [d]
        self.remaining = len(inputs)
        self.fault: Exception | None = None

    def finish(self) -> None:
        if self.answer.done():  # it was cancelled
            return
        if self.fault is not None:
            self.answer.set_exception(self.fault)
        else:
            self.answer.set_result(np.stack([self.features[row] for row in range(len(self.inputs))]))


class _Input(NamedTuple):
    """A row of a request in the queue."""

    request: _Request
    row: int
    arrived: float

    @property
    def value(self) -> np.ndarray:
        return self.request.inputs[self.row]
