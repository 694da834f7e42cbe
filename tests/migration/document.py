"""The tables of docs/migrating.md, of which every row is run: what stands on its right has the effect of its left.

Keys, values, options and commands are taken from the document. Only what is too large for a test is replaced: the
model, the number of processes, and intervals and batches of thousands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from clip_core.training.recipe import Recipe
from tests.migration.trainings import Trainings, merged

ROOT = Path(__file__).parents[2]


class Row(NamedTuple):
    theirs: str
    here: str

    @property
    def codes(self) -> list[str]:
        return re.findall(r"`([^`]+)`", self.here)

    @property
    def fragments(self) -> list[dict[str, Any]]:
        """The codes that are keys of a recipe, as its sections."""
        found = []
        for code in self.codes:
            if re.match(rf"({'|'.join(Recipe.model_fields)})(\.\w+)?: ", code):
                ((place, value),) = yaml.safe_load(code).items()
                section, _, key = place.partition(".")
                found.append({section: {key: value} if key else value})
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """All of them together."""
        assert self.fragments, "the row names no key of a recipe"
        return merged(*self.fragments)

    @property
    def command(self) -> str:
        return next(code for code in self.codes if re.search(r"\bclip\)? ", code))


Check = Callable[[Row, Trainings], None]


def read_document() -> dict[str, list[Row]]:
    """Project -> the rows of its table."""
    tables: dict[str, list[Row]] = {}
    for line in (ROOT / "docs" / "migrating.md").read_text().splitlines():
        if line.startswith("## "):
            rows = tables[line[3:]] = []
        elif line.startswith("|") and not line.startswith(("| theirs |", "| --- |")):
            theirs, here = line.strip("| ").split(" | ")
            rows.append(Row(theirs.replace("`", ""), here))
    return tables


def each_row(project: str, checks: dict[str, Check]) -> pytest.MarkDecorator:
    """Run a test for every row of the project's table, with the row's own of these ``checks``, in the table's order."""
    rows = read_document()[project]
    assert [row.theirs for row in rows] == list(checks), f"the table of {project} and its checks differ"
    return pytest.mark.parametrize(
        ("row", "check"),
        [
            pytest.param(
                row,
                checks[row.theirs],
                id=row.theirs,
                marks=[pytest.mark.needs(name) for name in re.findall(r"(?:--backend |\bbackends\.)(\w+)", row.here)],
            )
            for row in rows
        ],
    )
