"""Memory that runs out, in one sentence whatever ran out of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from clip_core.errors import ClipError


@contextmanager
def enough_memory(doing: str, remedy: str) -> Iterator[None]:
    """Turn what the frameworks raise when memory runs out into one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ClipError) or not _out_of_memory(error):
            raise
        raise ClipError(f"Memory ran out {doing}; {remedy}.") from error


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocator raised it: Python's, a GPU's, PyTorch's on a CPU, the system's, or NNabla's."""
    if isinstance(error, SystemError):  # what calls Python from C raises in place of what it met there
        return _out_of_memory(error.__cause__ or error.__context__)
    phrases = ("out of memory", "can't allocate memory", "cannot allocate memory", "memory error in alloc", "bad_alloc")
    speaks_of_it = isinstance(error, RuntimeError | OSError) and any(phrase in str(error).lower() for phrase in phrases)
    return speaks_of_it or isinstance(error, MemoryError)
