"""The site of the documents: every page has its place, and every link of a page leads somewhere."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

import clip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    runpy.run_path(str(ROOT / "docs" / "site" / "assemble.py"))["main"](folder)
    return folder


def test_every_page_has_its_place(site):
    settings = tomllib.loads((site / "zensical.toml").read_text())
    placed = re.findall(r"'([\w-]+\.md)'", str(settings["project"]["nav"]))
    assert sorted(placed) == sorted(path.name for path in (site / "pages").glob("*.md"))


def test_links_lead_to_pages_and_their_headings(site):
    links = 0
    for page in (site / "pages").glob("*.md"):
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([\w-]+))?\)", page.read_text()):
            found = site / "pages" / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", found.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings]
            links += 1
    assert links > 30


def test_the_reference_has_what_there_is(site):
    commands = (site / "pages" / "commands.md").read_text()
    for name in ("clip classify", "clip evaluate probe", "clip train"):
        assert re.search(rf"^#+ {name}$", commands, re.MULTILINE)
    assert "| `--labels` |" in commands
    reference = (site / "pages" / "python.md").read_text()
    assert reference.count(":::") == len(clip.__all__)  # without the version, and with the model
    assert "::: clip.api.load\n" in reference
