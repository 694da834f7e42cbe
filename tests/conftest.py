"""Each requested backend as a fixture, and what is left out without it.

A test marked ``needs("nnabla")``, and a test file with a backend's name in its
own, such as ``test_nnabla.py``, is about that backend and is left out when the backend is not named.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Small models run fastest on one thread, and the sums of a run do not depend on the machine. Set before NumPy loads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# A shell's background jobs ignore interrupts, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

import backends  # noqa: E402
from clip_core.backend import Backend  # noqa: E402
from tests.requested import BACKENDS, FRAMEWORKS, PYTHON, WITHOUT_WHEEL, load_backend  # noqa: E402


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each requested backend in turn: its ``CLIP``, ``to_tensor`` and ``to_array``."""
    return load_backend(request.param)


@pytest.fixture(scope="session", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Backend:
    """Each requested backend that has gradients."""
    return load_backend(request.param)


def pytest_report_header() -> str:
    reasons = dict.fromkeys(WITHOUT_WHEEL, f", which has no wheel for Python {PYTHON}")
    left_out = [f"; without {name}{reasons.get(name, '')}" for name in backends.NAMES if name not in BACKENDS]
    return f"backends: {', '.join(BACKENDS)}{''.join(left_out)}"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    about = [name for name in backends.NAMES if name in collection_path.stem.split("_")]
    return True if collection_path.suffix == ".py" and about and not set(about) & set(BACKENDS) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a framework, its tests are not there, rather than skipped."""

    def asked_for(item: pytest.Item) -> bool:
        needed = {name for mark in item.iter_markers("needs") for name in mark.args}
        return needed <= set(BACKENDS) and (bool(FRAMEWORKS) or "framework" not in getattr(item, "fixturenames", ()))

    items[:] = [item for item in items if asked_for(item)]
