"""The backends, all with the same interface; a framework is imported when its backend is first used."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from clip_core.backend import Backend
from clip_core.errors import BackendMissing, ClipError, EndedBySignal
from clip_core.installation import requirement

# In the order in which one is chosen when the user names none.
NAMES = ("torch", "paddle", "nnabla", "numpy")

TRAINING = ("torch", "paddle", "nnabla")

# What runs exported models; taken only where it is named.
RUNTIMES = ("onnx", "openvino")

PACKAGES = ("backends", "clip", "clip_core", "converters", "exporters")  # that TriCLIP consists of

# Whose files a suffix is for.
OF_SUFFIX = {
    ".h5": "nnabla",
    ".hdf5": "nnabla",
    ".protobuf": "nnabla",
    ".nnp": "nnabla",
    ".pdparams": "paddle",
    ".pd": "paddle",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".safetensors": "torch",
}

# The oldest release of each framework that has all that its backend uses; setup.cfg asks pip for the same.
OLDEST = {"torch": "2.4", "paddle": "3.0", "nnabla": "1.39", "onnx": "1.16", "openvino": "2024.4"}


def get(name: str) -> Backend:
    """The backend of that name; its framework is imported now.

    Raises:
        ClipError: there is no backend of that name.
        BackendMissing: its framework is not installed, is too old, or does not import.
    """
    if name not in (*NAMES, *RUNTIMES):
        raise ClipError(f"There is no backend {name!r}; choose one of {', '.join((*NAMES, *RUNTIMES))}.")
    if name not in OLDEST:
        return _backend(name)
    version = ""
    try:
        with _ending_as_before():
            version = str(getattr(importlib.import_module(name), "__version__", "without a version"))
        if _is_older(version, OLDEST[name]):
            raise ImportError("this release is too old")
        return _backend(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise _missing(name, version, error) from error
        raise ClipError(f"This TriCLIP is not whole, it lacks its module {error.name}; install it again.") from error
    except EndedBySignal:
        raise
    except (Exception, SystemExit) as error:  # an old or broken installation can raise anything
        raise _missing(name, version, error) from error


@contextmanager
def _ending_as_before() -> Iterator[None]:
    """Keep what the signal to end does to this process, which Paddle changes when it is imported.

    The handler is that of the system, below Python's, which only the main thread could set.
    """
    if os.name != "posix":
        yield
        return
    sigaction = ctypes.CDLL(None).sigaction
    before = ctypes.create_string_buffer(1024)  # more than any system's structure has
    sigaction(signal.SIGTERM, None, before)
    try:
        yield
    finally:
        sigaction(signal.SIGTERM, before, None)


def _missing(name: str, version: str, error: BaseException) -> BackendMissing:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return BackendMissing(
        f"The {name} backend needs {name} {OLDEST[name]} or newer; {' '.join([name, version]).strip()} does not "
        f"import here ({reason}); {remedy(name)}."
    )


def _backend(name: str) -> Backend:
    found: Backend = importlib.import_module(f"backends.{name}").BACKEND
    return found


def default() -> str:
    """The backend for a model that is asked for by name: ``$CLIP_BACKEND``, else the first that is installed.

    Raises:
        ClipError: ``$CLIP_BACKEND`` is no backend.
    """
    chosen = os.environ.get("CLIP_BACKEND") or available()[0]
    if chosen not in NAMES:
        raise ClipError(f"$CLIP_BACKEND is {chosen!r}; set it to one of {', '.join(NAMES)}.")
    return chosen


def remedy(name: str) -> str:
    """What to do about a framework that is missing, as the end of a sentence."""
    if name == "nnabla" and sys.version_info >= (3, 11):
        return "it has no wheel for Python 3.11 or newer, so use Python 3.10"
    return f"install it with: pip install {requirement(name)}"


def _is_older(version: str, oldest: str) -> bool:
    """Whether a release comes before another. A version without a number is no release, and neither is 0.0.0, as
    Paddle's builds from source call themselves."""
    found, floor = (tuple(int(part) for part in re.findall(r"\d+", text)[:2]) for text in (version, oldest))
    return any(found) and found < floor


def available() -> list[str]:
    """The backends whose framework is installed, in order of preference; nothing is imported to find out."""
    return [name for name in NAMES if name not in OLDEST or importlib.util.find_spec(name) is not None]
