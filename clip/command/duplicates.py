"""``clip duplicates``: groups of pictures in an index that are nearly the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Force, Json, console, lines_of_csv, print_json, print_table
from clip.command.progress import Bar
from clip_core import files
from clip_core.errors import visible

COLUMNS = ("group", "id", "path", "cosine", "copy_of")


def run(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")],
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="The cosine from which on two pictures are nearly the same.")
    ] = 0.96,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the groups into this CSV file, a line for each picture."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find groups of pictures that are nearly the same, and among them copies of one file."""
    from clip_core.search.duplicates import groups
    from clip_core.search.store import Store

    if output is not None:
        files.check_target(output, force=force)
    store = Store(index)
    with Bar().shown() as bar:
        found = groups(store, threshold, lambda done, total: bar("blocks", done, total, 0))
    if output is not None:
        rows = [
            (number, visible(member.id), visible(member.path), f"{member.cosine:.4f}", visible(member.copy_of or ""))
            for number, members in enumerate(found, 1)
            for member in members
        ]
        with files.atomic_open(output, replace=force) as file:
            file.write(lines_of_csv([COLUMNS, *rows]).encode())
    if json:
        print_json({"threshold": threshold, "groups": [[member._asdict() for member in group] for group in found]})
        return
    for number, members in enumerate(found if output is None else [], 1):
        cells = [[f"{member.cosine:.4f}", member.path, member.copy_of or ""] for member in members]
        print_table(["cosine", "path", "copy of"], cells, f"group {number}")
    counted = "1 group" if len(found) == 1 else f"{len(found)} groups"
    written = "" if output is None else f"; they are in {output}"
    console.print(f"{sum(map(len, found))} of {len(store)} rows are in {counted}{written}")
