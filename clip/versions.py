"""The versions of all that numbers depend on, for whoever compares them later."""

from __future__ import annotations

import importlib

import clip


def versions(*backends: str) -> dict[str, str]:
    """Name -> version of TriCLIP, NumPy, Pillow and the frameworks of these backends, which are installed."""
    frameworks = [name for name in backends if name != "numpy"]
    return {"triclip": clip.__version__} | {
        name: str(importlib.import_module(name).__version__) for name in (*frameworks, "numpy", "PIL")
    }
