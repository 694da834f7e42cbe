"""The notebooks of examples/notebooks/, each written from the script of its name.

`python -m tests.notebooks` writes them.
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("*.py"))


def notebook_of(script: Path) -> str:
    """The text of a notebook without outputs, the same on every machine."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = str(number)
    return nbformat.writes(notebook, version=4) + "\n"


if __name__ == "__main__":
    for script in scripts():
        script.with_suffix(".ipynb").write_text(notebook_of(script), encoding="utf-8")
