"""Inputs of many requests share forward passes, and each request gets its own features back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from clip.serving.batcher import Batcher

HOURS = 3600.0


class Model:
    """Doubles its inputs; each pass waits until it is let through."""

    def __init__(self) -> None:
        self.passes: list[list[float]] = []
        self.through = threading.Semaphore(0)
        self.fault: Exception | None = None

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self.passes.append(inputs[:, 0].tolist())
        self.through.acquire()
        if self.fault is not None and -1 in inputs:
            raise self.fault
        return 2 * inputs

    def let_through(self, passes: int) -> None:
        self.through.release(passes)


@contextmanager
def running(model: Model, most: int = 4, wait: float = 0.0) -> Iterator[Batcher]:
    batcher = Batcher(("text", "picture"), lambda: {"text": model, "picture": model}, most, wait, lambda *_: None)
    batcher.start()
    try:
        yield batcher
    finally:
        model.let_through(100)
        batcher.close()
        batcher.join()


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


async def begun(model: Model, passes: int) -> None:
    while len(model.passes) < passes:
        await asyncio.sleep(0.001)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))  # type: ignore[arg-type]


def test_what_waits_for_a_pass_shares_the_next_one():
    model = Model()

    async def work() -> None:
        first = asyncio.ensure_future(batcher.compute("text", numbers(1)))
        await begun(model, 1)
        others = [asyncio.ensure_future(batcher.compute("text", numbers(*values))) for values in ((2, 3), (4,), (5, 6))]
        await asyncio.sleep(0)
        model.let_through(3)
        found = await asyncio.gather(first, *others)
        assert [each[:, 0].tolist() for each in found] == [[2], [4, 6], [8], [10, 12]]

    with running(model) as batcher:
        run(work)
    assert model.passes == [[1], [2, 3, 4, 5], [6]]


def test_kinds_are_never_in_one_pass_and_the_oldest_goes_first():
    model = Model()

    async def work() -> None:
        asked = [asyncio.ensure_future(batcher.compute("text", numbers(1)))]
        await begun(model, 1)
        for kind, value in (("picture", 2), ("text", 3), ("picture", 4)):
            asked.append(asyncio.ensure_future(batcher.compute(kind, numbers(value))))
            await asyncio.sleep(0)
        model.let_through(3)
        await asyncio.gather(*asked)

    with running(model) as batcher:
        run(work)
    assert model.passes == [[1], [2, 4], [3]]


def test_a_fault_belongs_to_the_requests_of_its_pass():
    model = Model()
    model.fault = ValueError("a fault")

    async def work() -> None:
        bad = asyncio.ensure_future(batcher.compute("text", numbers(1, 2, 3, -1, 5)))
        await asyncio.sleep(0)
        good = asyncio.ensure_future(batcher.compute("text", numbers(6)))
        model.let_through(2)
        with pytest.raises(ValueError, match="a fault"):
            await bad
        assert (await good).tolist() == [[12]]

    with running(model) as batcher:
        run(work)
        assert batcher.waiting == 0
    assert model.passes == [[1, 2, 3, -1], [6]]  # the fifth input of the bad one was not computed


def test_what_nobody_waits_for_any_more_is_forgotten():
    model = Model()

    async def work() -> None:
        first = asyncio.ensure_future(batcher.compute("text", numbers(1)))
        await begun(model, 1)
        gone = asyncio.ensure_future(batcher.compute("text", numbers(2, 3)))
        last = asyncio.ensure_future(batcher.compute("text", numbers(4)))
        await asyncio.sleep(0)
        assert batcher.waiting == 3
        gone.cancel()
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        model.let_through(2)
        await asyncio.gather(first, last)

    with running(model) as batcher:
        run(work)
    assert model.passes == [[1], [4]]


def test_who_is_alone_does_not_wait_and_who_was_not_waits_for_the_other():
    model = Model()
    model.let_through(100)

    async def work() -> None:
        for value in (1, 2):
            await batcher.compute("text", numbers(value))
        await asyncio.gather(batcher.compute("text", numbers(3)), batcher.compute("text", numbers(4)))
        one = asyncio.ensure_future(batcher.compute("text", numbers(5)))
        await asyncio.sleep(0.1)
        assert not one.done()
        await batcher.compute("text", numbers(6))
        await one

    with running(model, wait=HOURS) as batcher:
        run(work)
    assert model.passes[:2] == [[1], [2]]
    assert model.passes[-1] == [5, 6]


def test_the_wait_ends():
    model = Model()
    model.let_through(100)

    async def work() -> None:
        await asyncio.gather(*(batcher.compute("text", numbers(value)) for value in (1, 2)))
        assert (await batcher.compute("text", numbers(3))).tolist() == [[6]]

    with running(model, wait=0.05) as batcher:
        run(work)
