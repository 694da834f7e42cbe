"""What goes wrong in a run: a step that does something else, a disk that is full."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


class Wrapped:
    """A trainer that does something else in one of its steps."""

    def __init__(self, inner, step: int, happens) -> None:
        self.inner, self.at, self.happens = inner, step, happens
        self.model, self.processes, self.distribution = inner.model, inner.processes, inner.distribution
        self.state, self.average, self.restore = inner.state, inner.average, inner.restore

    def step(self, pixels, tokens, learning_rate):
        self.at -= 1
        result = self.inner.step(pixels, tokens, learning_rate)
        return (self.happens() or result) if self.at == 0 else result


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files cannot grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
