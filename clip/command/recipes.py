"""``clip recipes``: the training recipes that come along."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Json, console, print_json, print_table


def run(
    recipe: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="Print this one; with --json, every key and its value.")
    ] = None,
    json: Json = False,
) -> None:
    """List the recipes that clip train -c knows by name, or print one."""
    from clip_core.training.recipe import Recipe, installed_recipes, recipe_file

    if recipe is not None:
        path = recipe_file(recipe)
        parsed = Recipe.read(path)
        if json:
            print_json(parsed.model_dump(mode="json"))
        else:
            console.print(*path.read_text(encoding="utf-8").splitlines(), sep="\n")
        return
    rows = [{"name": name, "what": _first_line(path)} for name, path in installed_recipes().items()]
    if json:
        print_json(rows)
    else:
        print_table(("name", "what it trains"), (row.values() for row in rows))


def _first_line(path: Path) -> str:
    """The sentence that a recipe starts with."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
