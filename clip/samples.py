"""The drawn pictures that come with the package; each file is named by its caption."""

from __future__ import annotations

from pathlib import Path

from clip.api import RESOURCES


def pictures() -> dict[str, Path]:
    """Caption -> file, in alphabetical order."""
    return {path.stem.replace("-", " "): path for path in sorted((RESOURCES / "pictures").glob("*.png"))}
