"""``clip search``: the pictures of an index that are nearest to a text, a picture, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clip import report
from clip.command.output import (
    Activation,
    Backend,
    Device,
    Force,
    Heads,
    Json,
    Like,
    Precision,
    console,
    heads_of,
    print_json,
    print_table,
)
from clip.figures import png
from clip_core import files

MOST = 1000


def run(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to search for, alone or together with a text.")] = None,
    minus: Annotated[
        list[str] | None, typer.Option(help="A text that results shall be far from; may be given several times.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="The number of results.")] = 20,
    where: Annotated[
        str | None, typer.Option(help="A condition on the columns, as SQL: 'width > 500 AND label = ''cat'''.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="The model that made the embeddings; by default what the index names."),
    ] = None,
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the results with their scores into this PNG file.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find what is nearest to a text, a picture or both in an index; scores are cosines."""
    from clip.contact_sheet import Cell, Row, check, contact_sheet
    from clip.search import Index

    if plot is not None:
        report.check(plot=plot, force=force)
        check(top)
        files.check_target(plot, [] if image is None else [image], force)
    opened = Index(
        index,
        model=model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads_of(heads),
    )
    hits = opened.search(text, image=image, minus=minus or (), count=top, where=where)
    shown = "text" if opened.store.texts else "path"
    if plot is not None:
        wanted = " + ".join([*([] if text is None else [text]), *([] if image is None else [image.name])])
        heading = " - ".join([wanted, *(minus or ())])
        cells = [Cell(hit.row[shown], f"{hit.score:.4f}") for hit in hits]
        with files.atomic_open(plot, replace=force) as file:
            file.write(png(contact_sheet([Row(heading, cells)])))
    if json:
        found: list[dict[str, Any]] = [{"score": hit.score, **hit.row} for hit in hits]
        print_json({"index": str(index), "model": opened.stamp.source, "results": found})
        return
    print_table(["score", shown], [[f"{hit.score:.4f}", hit.row[shown]] for hit in hits])
    if plot is not None:
        console.print(f"the contact sheet is in {plot}")
