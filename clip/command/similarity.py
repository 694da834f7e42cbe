"""``clip similarity``: the cosine of each picture with each text, as a table or a heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from clip import report
from clip.api import open_model, weights_file
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
from clip.command.pictures import pictures_of, pixels_of, texts_of
from clip.figures import png
from clip_core import files
from clip_core.errors import ClipError
from clip_core.image import open_image
from converters import files_of


def run(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Picture files, folders of them at any depth, or patterns ('a/*.png')."),
    ],
    texts: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    texts_file: Annotated[Path | None, typer.Option(help="A UTF-8 text file with one text a line.")] = None,
    truncate: Truncate = False,
    model: Model = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a heat map with the pictures on top into this file.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare pictures with texts, as they are: no template, and no softmax over the texts."""
    from clip.similarity import check_heat_map, heat_map, similarities

    paths = [path for image in images for path in pictures_of(image)]
    wanted = [*(texts or []), *([] if texts_file is None else texts_of(texts_file))]
    if not wanted:
        raise ClipError("There are no texts; give some with --texts or --texts-file.")
    if plot is not None:
        report.check(plot=plot, force=force)
        check_heat_map(len(paths), len(wanted))
        inputs: list[str | Path] = [
            *paths,
            *([] if texts_file is None else [texts_file]),
            *files_of(weights_file(model)[0]),
        ]
        files.check_target(plot, inputs, force)
    loaded = open_model(
        model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads_of(heads),
    )
    pixels = np.stack([pixels_of(path, loaded.preprocess) for path in paths])
    found = similarities(loaded, paths, pixels, wanted, truncate)
    if plot is not None:
        with files.atomic_open(plot, replace=force) as file:
            file.write(png(heat_map(found, [open_image(path) for path in paths])))
    if json:
        print_json(found.to_dict())
        return
    for path, cosines in zip(paths, found.cosines):
        rows = [[found.texts[place], f"{cosines[place]:.4f}"] for place in np.argsort(-cosines, kind="stable")]
        print_table(["text", "cosine"], rows, f"{path} ({found.backend})")
    if plot is not None:
        console.print(f"the heat map is in {plot}")
