"""What sentences tell users to do can be done: the commands, options, extras, keys and functions they name exist."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import typer

import clip
from clip.command import app
from clip_core.data.families import FAMILIES
from clip_core.data.settings import Section
from clip_core.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCES_OF_SENTENCES = sorted(
    path
    for package in ("backends", "clip", "clip_core", "converters", "exporters")
    for path in (ROOT / package).rglob("*.py")
)


def texts(tree: ast.Module) -> Iterator[str]:
    """The texts of a file, with {} for what is put into them, but for docstrings."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | alone:
            yield node.value


SENTENCES = sorted(
    {text for path in SOURCES_OF_SENTENCES for text in texts(ast.parse(path.read_text())) if " " in text.strip()}
)


def named(pattern: str) -> dict[str, str]:
    """What fits the pattern's group in some sentence -> one such sentence."""
    return {found: text for text in SENTENCES for found in re.findall(pattern, text)}


def keys_of(section: type[Section]) -> set[str]:
    return set(section.model_fields)


def recipe_keys() -> set[str]:
    """``section.key`` for every key of a recipe."""
    found = set()
    for name, field in Recipe.model_fields.items():
        kinds = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if kind is not None]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= {f"{name}.{key}" for key in keys_of(kind)}
    return found | {f"data.source.{key}" for family in FAMILIES.values() for key in keys_of(family)}


def test_commands():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = named(r"\bclip ((?!has\b)[a-z]+)\b")
    assert {"convert", "inspect", "models"} <= found.keys()
    assert {name: text for name, text in found.items() if name not in commands} == {}


def test_options():
    commands = [typer.main.get_command(app)]
    for each in commands:  # groups add their own at the end
        commands += getattr(each, "commands", {}).values()
    options = {option for each in commands for parameter in each.params for option in parameter.opts}
    of_others = {"--no-deps", "--force-reinstall", "--head", "--grid-cols"}  # of pip, of ray, and of a style sheet
    found = named(r"(?<![\w-])(--[a-z][a-z-]*)")
    assert {"--labels-file", "--truncate", "--backend", "--like"} <= found.keys()
    assert {name: text for name, text in found.items() if name not in options | of_others} == {}


def test_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    found = {
        extra
        for path in SOURCES_OF_SENTENCES
        for extra in re.findall(r"\brequirement\([\"']([\w-]+)[\"']\)", path.read_text())
    }
    assert {"plot", "data"} <= found
    assert found - set(setup["options.extras_require"]) == set()
    assert named(r"(triclip\[[^]{]+\])") == {}  # which `requirement` alone knows how to name


def test_keys_of_recipes():
    sections = "|".join(Recipe.model_fields)
    found = named(rf"(?<![\w./])((?:{sections})\.(?!(?:pkl|png)\b)[a-z_]+)\b(?![/(])")
    assert {"data.batch_size", "training.micro_batch_size", "model.architecture"} <= found.keys()
    assert {name: text for name, text in found.items() if name not in recipe_keys()} == {}


def test_functions():
    found = named(r"\bclip\.([a-z_]+)")
    assert "load" in found
    assert {name: text for name, text in found.items() if not hasattr(clip, name)} == {}


def test_what_is_looked_at():
    code = '"""Not --this."""\nraise Fault(f"{name}: give --one" + "and --two.", key="three")\n'
    assert list(texts(ast.parse(code))) == ["{}: give --one", "and --two.", "three"]
