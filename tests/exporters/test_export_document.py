"""docs/export.md is true: its commands and its snippet run, and its tables are those of the code."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip.export import PARTS, TARGETS
from clip.proof import BUDGETS
from exporters.onnx.graph import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "export.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) for line in block.splitlines()]
SNIPPET, SNIPPET_OF_NNABLA, SNIPPET_OF_PADDLE = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


def run(*arguments: str, folder: Path) -> str:
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(folder)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(head: str) -> list[list[str]]:
    """The rows of the table whose first column has this head."""
    table = re.search(rf"^\| {head} \|.*\n\|[ -|]*\n((\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_the_first_command_and_the_snippet(tmp_path):
    run("-m", "clip", *shlex.split(COMMANDS[0])[1:], folder=tmp_path)
    assert run("-c", SNIPPET, folder=tmp_path).split("\n")[:3] == ["(2, 3)", "(128, 128)", "64"]


@pytest.mark.slow
@pytest.mark.needs("nnabla")
def test_the_snippet_of_nnabla(tmp_path):
    (command,) = (command for command in COMMANDS if "--to nnp" in command)
    run("-m", "clip", *shlex.split(command)[1:], folder=tmp_path)
    assert run("-c", SNIPPET_OF_NNABLA, folder=tmp_path).splitlines() == ["(2, 128)", "(2, 3)"]


@pytest.mark.slow
@pytest.mark.needs("paddle")
def test_the_snippet_of_paddle(tmp_path):
    (command,) = (command for command in COMMANDS if "--to paddle" in command)
    run("-m", "clip", *shlex.split(command)[1:], folder=tmp_path)
    assert run("-c", SNIPPET_OF_PADDLE, folder=tmp_path).splitlines()[-2:] == ["(2, 2)", "64"]


@pytest.mark.slow
@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS[1:] if not re.search("--to (nnp|paddle)", command)]
)
def test_every_other_command(command, tmp_path):
    (tmp_path / "clip_core").symlink_to(ROOT / "clip_core")
    program, *arguments = shlex.split(command)
    assert program == "clip"
    run("-m", "clip", *arguments, folder=tmp_path)


def test_the_table_of_targets():
    assert len(COMMANDS) > len(TARGETS)
    found = {name.strip("`"): (files, precisions) for name, files, precisions, *_ in rows("target")}
    assert found.keys() == TARGETS.keys()
    for name, (files, precisions) in found.items():
        assert re.findall(r"`(\w+\.\w+)`", files) == [part + TARGETS[name].endings[0] for part in PARTS]
        assert tuple(re.findall(r"`(\w+)`", precisions)) == TARGETS[name].precisions
        assert any(f"--to {name} " in command for command in COMMANDS) or name == "onnx"


def test_the_table_of_budgets_and_the_opsets():
    assert rows("precision") == [
        [
            name,
            "" if budget.embedding is None else f"{budget.embedding:.0e}".replace("e-0", "e-"),
            "" if budget.cosine is None else str(budget.cosine),
            "" if budget.agreement is None else f"{budget.agreement:.0%}".replace("%", " %"),
        ]
        for name, budget in BUDGETS.items()
    ]
    assert f"`--opset` is {OLDEST_OPSET} to {NEWEST_OPSET}; {DEFAULT_OPSET}, which" in DOCUMENT
