"""docs/drop-in.md names the tests that hold its rows, and every file of drop-in tests holds some."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "drop-in.md"


def rows() -> list[list[str]]:
    """The cells of each row of each table, but for the headings."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in ("what the code does", "---")]


def test_every_row_names_tests_that_exist():
    found = rows()
    assert len(found) > 25
    named = set()
    for what, works, held in found:
        codes = re.findall(r"`([\w.]*)(?:::(\w+))?`", held)
        assert codes or works.startswith("no"), what
        name = None
        for file, test in codes:
            name = file or name
            (path,) = TESTS.rglob(name)
            assert f"def {test}" in path.read_text(encoding="utf-8"), what
            named.add(name)
    assert named >= {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
