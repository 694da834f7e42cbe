"""The frameworks, each behind the same names; a framework is imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from clip_core.errors import BackendMissing, ClipError

# In the order in which one is chosen when the user names none.
NAMES = ("torch", "paddle", "nnabla", "numpy")


def get(name: str) -> ModuleType:
    """The module of backend ``name``: it offers ``CLIP(architecture, device, precision)``, `to_tensor` and `to_array`.

    Raises:
        ClipError: there is no backend of that name.
        BackendMissing: its framework is not installed or does not import.
    """
    if name not in NAMES:
        raise ClipError(f"There is no backend {name!r}; choose one of {', '.join(NAMES)}.")
    if name == "numpy":
        return importlib.import_module("clip_core.reference")
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken installation can raise anything
        raise BackendMissing(
            f"The {name} backend needs {name}, which does not import here ({type(error).__name__}: {error}); "
            f"install it with: pip install 'triclip[{name}]'."
        ) from error
    return importlib.import_module(f"backends.{name}")


def available() -> list[str]:
    """The backends whose framework is installed, in order of preference; nothing is imported to find out."""
    return [name for name in NAMES if name == "numpy" or importlib.util.find_spec(name) is not None]
