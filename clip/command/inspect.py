"""``clip inspect``: what a weights file is, and everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import converters
from clip.command.output import Json, console, print_fields, print_json


def run(file: Annotated[Path, typer.Argument(help="A weights file in any layout.")], json: Json = False) -> None:
    """Say what a weights file holds; exit with 1 when something is wrong with it."""
    found = converters.inspect(file)
    if json:
        print_json(found.to_dict())
    else:
        fields = found.to_dict()
        faults = fields.pop("faults")
        print_fields(fields)
        console.print(f"[bold]faults[/bold]: {len(faults) or 'none'}")
        for fault in faults:
            console.print(f"  {fault}", markup=False)
    if found.faults:
        raise typer.Exit(1)
