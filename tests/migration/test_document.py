"""Every table of docs/migrating.md has its tests, and a row that is not run fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.migration.document import read_document


def test_every_project_has_a_file_of_tests():
    files = sorted(Path(__file__).parent.glob("test_rows_*.py"))
    tested = [name for file in files for name in re.findall(r'^@each_row\("(.+)", CHECKS\)$', file.read_text(), re.M)]
    tables = read_document()
    assert sorted(tested) == sorted(tables)
    assert min(map(len, tables.values())) > 20


def test_a_row_that_is_not_run_fails(trainings):
    with pytest.raises(AssertionError, match="nothing was run"), trainings.asked_for():
        pass
    with trainings.asked_for():
        trainings.recipe({"data": {"batch_size": 8}})
