"""``clip attention``: which parts of a picture make it similar to a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip import report
from clip.api import open_model, weights_file
from clip.command.classify import warn_of_unknown_words
from clip.command.output import (
    Activation,
    Backend,
    Device,
    Force,
    Heads,
    Json,
    Like,
    Model,
    Precision,
    Truncate,
    console,
    heads_of,
    print_json,
    print_table,
)
from clip.command.pictures import pixels_of
from clip.command.progress import Bar
from clip.figures import png
from clip_core import files
from clip_core.errors import ClipError
from clip_core.models import SHAPES
from converters import files_of


def run(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture file.")],
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw a map of each text over the picture into this PNG file.")
    ] = None,
    truncate: Truncate = False,
    model: Model = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Say which parts of a picture make it similar to a text, by covering one after the other.

    A part is relevant if the cosine with the text falls further without it than that with an empty text. The map has 8
    by 8 cells of what the model sees of the picture.
    """
    from clip.relevance import check_drawing, drawing, relevance

    if not text:
        raise ClipError("There are no texts; give some with --text.")
    if output is not None:
        report.check(plot=output, force=force)
        check_drawing(len(text))
        files.check_target(output, [image, *files_of(weights_file(model)[0])], force)
    loaded = open_model(
        model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads_of(heads),
    )
    if loaded.model.architecture == SHAPES:
        warn_of_unknown_words(text)
    with Bar().shown() as bar:
        found = relevance(loaded, pixels_of(image, loaded.preprocess), text, truncate, bar)
    if output is not None:
        with files.atomic_open(output, replace=force) as file:
            file.write(png(drawing(found, loaded.preprocess.wanted)))
    if json:
        print_json({"image": image, **found.to_dict()})
        return
    rows = []
    for number, (each, cosine) in enumerate(zip(text, found.cosines)):
        row, column = found.highest(number)
        rows.append([each, f"{cosine:.4f}", f"{found.maps[number].max():.4f}", f"row {row + 1}, column {column + 1}"])
    print_table(["text", "cosine", "highest relevance", "of cell"], rows, f"{image} ({found.backend})")
    if output is not None:
        console.print(f"the map is in {output}")
