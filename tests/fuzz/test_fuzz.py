"""Every reader of a user's file takes damaged files: it reads them, or refuses them in one sentence, in bounds."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.formats import FORMATS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("seed", "inputs"), [(0, 200), pytest.param(1, 2000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(seed, inputs, name):
    assert fuzz(name, inputs, seed) == []


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("raises", "KeyError: 'x'"),
        ("hangs", "Hang: it took too long"),
        ("takes_memory", "refused only when the memory ran out"),
        ("crashes", "ended its process with -6"),
        ("starts_a_program", "ended its process with 99"),
        ("writes_elsewhere", "ended its process with 97"),
    ],
)
def test_faults_are_found(fault, what):
    (failure,) = fuzz(fault, 1, table="tests.fuzz.planted", seconds=0.5)
    assert what in failure


def test_a_refusal_is_no_fault():
    assert fuzz("refuses", 20, table="tests.fuzz.planted") == []
