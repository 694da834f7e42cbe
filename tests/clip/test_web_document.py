"""docs/web.md: its commands are those of the program, and its numbers are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from clip.command import app
from clip.web import answers, guard, page, server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "web.md").read_text()
FLAT = " ".join(TEXT.replace(",", "").split())


def test_commands_are_understood():
    """What they do is tested by test_web_command.py."""
    commands = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    web = typer.main.get_command(app).commands["web"]
    found = []
    for program, name, *arguments in map(shlex.split, commands):
        assert (program, name) == ("clip", "web")
        with web.make_context("web", arguments) as context:
            found.append((list(context.params["model"]), context.params["index"], context.params["port"]))
    assert found == [
        ([], None, 8889),
        (["shapes", "ViT-B/32"], None, 8889),
        ([], Path("index.lance"), 8889),
    ]


@pytest.mark.parametrize(
    "part",
    [
        f"| an upload | {server.UPLOAD_BYTES >> 20} MiB |",
        f"| all uploads that are kept | {guard.MOST_KEPT >> 30} GiB |",
        f"| pixels of a picture before it is decoded | {answers.MOST_PIXELS} |",
        f"of a question and characters of each | {answers.MOST_TEXTS} and {answers.LONGEST_TEXT} |",
        f"| pictures of a heat map | {answers.MOST_PICTURES} |",
        f"| results of a search | {answers.MOST_FOUND} |",
        f"| seconds for a picture at an address | {answers.FETCHING.seconds:g} |",
        f"| models that are kept in memory | {answers.MOST_LOADED} each",
        f"| questions that wait | {page.MOST_WAITING};",
        f"| connections | {guard.LIMITS.connections} |",
        f"deleted {page.KEPT_SECONDS // 60} minutes after",
        f"client_max_body_size {guard.LIMITS.body >> 20}m;",
    ],
)
def test_numbers(part):
    assert part in FLAT
