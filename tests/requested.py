"""Which backends the tests run on.

``CLIP_TEST_BACKENDS`` names them, separated by commas; unset means all that this Python can install. A named backend
that does not import fails its tests.
"""

from __future__ import annotations

import os
import sys

import pytest

import backends
from clip_core.backend import Backend

PYTHON = ".".join(map(str, sys.version_info[:2]))
WITHOUT_WHEEL = {"nnabla"} if sys.version_info >= (3, 11) else set()  # as setup.cfg says


def _requested() -> tuple[str, ...]:
    installable = ",".join(name for name in backends.NAMES if name not in WITHOUT_WHEEL)
    names = tuple(os.environ.get("CLIP_TEST_BACKENDS", installable).split(","))
    unknown = [name for name in names if name not in backends.NAMES]
    if unknown:
        raise pytest.UsageError(f"CLIP_TEST_BACKENDS names {unknown}; choose from {', '.join(backends.NAMES)}.")
    return names


BACKENDS = _requested()
FRAMEWORKS = tuple(name for name in BACKENDS if name != "numpy")


def load_backend(name: str) -> Backend:
    """The backend; NNabla does not report on itself."""
    found = backends.get(name)
    if name == "nnabla":
        import nnabla

        nnabla.logger.setLevel("WARNING")
    return found
