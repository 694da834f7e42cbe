"""docs/results.md: its commands are ones that there are, its models have names, and its scores are scores."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from clip.command import app
from clip_core.models import MODELS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "results.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in DOCUMENT.splitlines()
    if line.startswith("|") and not line.startswith("| ---")
]
HEADS = [row for row in ROWS if row[-1] == "here"]
SCORES = [row for row in ROWS if row[-1] != "here"]
COMMANDS = sorted({re.search(r"`(clip .*)`", row[-2])[1] for row in SCORES})


def parsed(command: str, model: str) -> dict[str, Any]:
    """The parameters of the command, whose options all exist and have values of their types."""
    words = [model if word == "NAME" else word for word in shlex.split(command)[1:]]
    found = typer.main.get_command(app)
    while hasattr(found, "commands"):
        found = found.commands[words.pop(0)]
    return found.make_context(command, words).params


def named() -> list[str]:
    return [cell.strip("`") for head in HEADS for cell in head if cell.startswith("`")]


def test_the_columns_are_models():
    assert len(named()) == 27
    assert set(named()) == set(MODELS) - {"shapes"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    assert parsed(command, "ViT-B/32")["model"] in (*MODELS, "clip_model.pth")


def test_what_is_no_command_does_not_parse():
    for words, fault in (("--dta DIR", "No such option"), ("", "Missing parameter"), ("--data DIR x", "unexpected")):
        with pytest.raises(Exception, match=fault):  # typer's own, of another module in each of its versions
            parsed(f"clip evaluate imagenet {words}", "RN50")
    with pytest.raises(KeyError):
        parsed("clip evaluate nothing --data DIR", "RN50")


def test_scores_are_percentages_and_none_is_made_up_here():
    """Published numbers are as many as there are models, and those of a run here are the embedded model's alone."""
    for row in SCORES:
        head = next(head for head in HEADS if len(head) == len(row) and head[0] in ("score", "project"))
        assert len(row) == len(head)
        if len(row) == 13:
            assert all(0 < float(cell) < 100 for cell in row[2:11]), row
            assert row[1] in ("paper", "open_clip")
        if row[-1] != "not run here":
            assert row[3] == "`clip evaluate shapes`"
            assert f"| {row[-1]} % |" in (ROOT / "docs" / "frameworks.md").read_text()
    assert len(SCORES) == 39


def test_the_larger_of_two_models_scores_higher_on_imagenet():
    """A column or row that was mixed up would break the order in which the paper has them."""
    (paper,) = (row[2:11] for row in SCORES if row[:2] == ["ImageNet", "paper"] and "probe" not in row[-2])
    values = dict(zip(named(), map(float, paper)))
    for order in (["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"], ["ViT-B/32", "ViT-B/16", "ViT-L/14"]):
        assert [values[name] for name in order] == sorted(values[name] for name in order)
    of_open_clip = {row[0]: row[2:11] for row in SCORES if row[1] == "open_clip"}
    for row in SCORES:
        if row[1] == "paper" and "probe" not in row[-2] and row[0] != "MNIST":  # which was measured otherwise
            other = of_open_clip[row[0]]
            assert all(abs(float(mine) - float(theirs)) < 10 for mine, theirs in zip(row[2:11], other)), row
