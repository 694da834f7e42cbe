"""Gather the pages of the site: the documents as they are, with links that fit, and a reference made from the code.

    python docs/site/assemble.py build/docs

writes pages and settings there, which `zensical build --strict` turns into the site. `make site` does both.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import clip
from clip.command import app
from clip_core.backend import Model

ROOT = Path(__file__).parents[2]
PICTURES = (".png", ".svg")
OF_THE_PROJECT = ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")


def main(target: Path) -> None:
    pages = target / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    pages.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("zensical.toml"), target)
    for path in sorted(path for path in (ROOT / "docs").glob("**/*") if path.suffix in PICTURES):
        copy = pages / path.relative_to(ROOT / "docs")
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    found = {"index": ROOT / "README.md", **{name.lower(): ROOT / f"{name}.md" for name in OF_THE_PROJECT}}
    found |= {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
    for name, path in found.items():
        (pages / f"{name}.md").write_text(with_links_of_the_site(path))
    (pages / "commands.md").write_text("\n".join(commands()))
    (pages / "python.md").write_text("\n".join(python()))


def with_links_of_the_site(path: Path) -> str:
    """A document whose links to others are those of the site; what is no page of it stays as text."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        place = (path.parent / target).resolve().relative_to(ROOT)
        if place.parts[0] == "docs" and place.suffix in (".md", *PICTURES):
            return f"[{text}]({place.relative_to('docs')}{anchor or ''})"
        if place.name == "README.md" and len(place.parts) == 1:
            return f"[{text}](index.md{anchor or ''})"
        if place.stem in OF_THE_PROJECT:
            return f"[{text}]({place.stem.lower()}.md{anchor or ''})"
        assert (ROOT / place).exists(), f"{path.name} links to {target}"
        return text

    text = re.sub(r"^<!--.*-->\n", "", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[\w-]+)?\)", link, text)


def commands() -> Iterator[str]:
    """Every command with its arguments and options, as its help has them."""
    yield "# Commands\n"
    yield "`clip COMMAND --help` says the same.\n"
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from _command(command, f"clip {name}", "##")


def _command(command: Any, name: str, heading: str) -> Iterator[str]:
    yield f"{heading} {name}\n\n{_paragraphs(command.help)}\n"
    if hasattr(command, "commands"):
        for word, below in command.commands.items():
            yield from _command(below, f"{name} {word}", f"{heading}#")
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    named = [each.metavar or each.name.upper() for each in arguments]
    yield f"```text\n{' '.join([name, *named, '[OPTIONS]'])}\n```\n"
    yield "| argument, option | |\n| --- | --- |"
    for word, argument in zip(named, arguments):
        yield f"| `{word}` | {_cell(argument.help or '')} |"
    for option in options:
        words = ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
        yield f"| {words} | {_cell(_help(option))} |"
    yield ""


def _paragraphs(text: str | None) -> str:
    return (text or "").split("\f")[0].strip()


def _help(option: Any) -> str:
    default = option.default
    said = default not in (None, False, (), []) and not callable(default)
    return (option.help or "") + (f" By default `{getattr(default, 'value', default)}`." if said else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def python() -> Iterator[str]:
    """What `clip` offers, and what a model has in every framework; mkdocstrings fills in the docstrings."""
    offered = [getattr(clip, name) for name in sorted(set(clip.__all__) - {"__version__"}, key=str.lower)]
    errors = [found for found in offered if isinstance(found, type) and issubclass(found, Exception)]
    yield "# Python\n\n## Functions and classes of `clip`\n"
    yield from (_documented(found) for found in offered if found not in errors)
    yield f"## A model\n\n{_documented(Model)}\n## Errors and warnings of `clip`\n"
    yield from (_documented(found) for found in errors)


def _documented(found: Any) -> str:
    return f"::: {found.__module__}.{found.__qualname__}\n    options:\n      heading_level: 3\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
