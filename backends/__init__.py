"""The frameworks, each behind the same names; a framework is imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType

from clip_core.errors import BackendMissing, ClipError

# In the order in which one is chosen when the user names none.
NAMES = ("torch", "paddle", "nnabla", "numpy")

# The oldest release of each framework that has all that its backend uses; setup.cfg asks pip for the same.
OLDEST = {"torch": "2.4", "paddle": "3.0", "nnabla": "1.39"}


def get(name: str) -> ModuleType:
    """The module of backend ``name``: it offers ``CLIP(architecture, device, precision)``, `to_tensor` and `to_array`.

    Raises:
        ClipError: there is no backend of that name.
        BackendMissing: its framework is not installed, is too old, or does not import.
    """
    if name not in NAMES:
        raise ClipError(f"There is no backend {name!r}; choose one of {', '.join(NAMES)}.")
    if name == "numpy":
        return importlib.import_module("clip_core.reference")
    version = ""
    try:
        version = str(getattr(importlib.import_module(name), "__version__", "without a version"))
        if _is_older(version, OLDEST[name]):
            raise ImportError("this release is too old")
        return importlib.import_module(f"backends.{name}")
    except (Exception, SystemExit) as error:  # an old or broken installation can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BackendMissing(
            f"The {name} backend needs {name} {OLDEST[name]} or newer; {' '.join([name, version]).strip()} does not "
            f"import here ({reason}); {remedy(name)}."
        ) from error


def remedy(name: str) -> str:
    """What to do about a framework that is missing, as the end of a sentence."""
    if name == "nnabla" and sys.version_info >= (3, 11):
        return "it has no wheel for Python 3.11 or newer, so use Python 3.10"
    return f"install it with: pip install --upgrade 'triclip[{name}]'"


def _is_older(version: str, oldest: str) -> bool:
    """Whether a release comes before another. A version without a number is no release, and neither is 0.0.0, as
    Paddle's builds from source call themselves."""
    found, floor = (tuple(int(part) for part in re.findall(r"\d+", text)[:2]) for text in (version, oldest))
    return any(found) and found < floor


def available() -> list[str]:
    """The backends whose framework is installed, in order of preference; nothing is imported to find out."""
    return [name for name in NAMES if name == "numpy" or importlib.util.find_spec(name) is not None]
