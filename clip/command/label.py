"""``clip label``: the label that fits each of many pictures best, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.command.embed import BatchSize, FaultShare, ImageColumn, Workers
from clip.command.output import (
    Activation,
    Backend,
    Device,
    Force,
    Heads,
    Json,
    Labels,
    LabelsFile,
    Like,
    Model,
    Precision,
    Truncate,
    console,
    heads_of,
    print_json,
    print_table,
)
from clip.command.pictures import labels_of
from clip.command.progress import Bar

MOST_SHOWN = 20  # labels in the summary


def run(
    pictures: Annotated[
        list[str],
        typer.Argument(metavar="PICTURE...", help="As for clip embed, or a folder that it wrote."),
    ],
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The table: .csv, .jsonl or .parquet.")
    ],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="openai, simple, low-resource, simple-clip, or a file with one a line; by default one that suits the "
            "model.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Labels of each picture, the best first.")] = 1,
    image_column: ImageColumn = None,
    model: Model = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    truncate: Truncate = False,
    fault_share: FaultShare = 0.01,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the labels that fit each of many pictures best into a table.

    A folder that clip embed wrote is labelled without computing anything again.
    """
    from clip.labelling import label
    from clip_core.embedding.sources import Columns

    bar = Bar()
    with bar.shown():
        found = label(
            pictures,
            labels_of(labels, labels_file),
            output,
            model,
            templates=templates,
            top_k=top_k,
            columns=Columns(image=image_column),
            backend=backend,
            device=device,
            precision=precision,
            like=like,
            activation=activation,
            heads=heads_of(heads),
            batch_size=batch_size,
            workers=workers,
            truncate=truncate,
            fault_share=fault_share,
            force=force,
            progress=bar,
        )
    if json:
        counted = {"file": str(output), "pictures": found.pictures, "faults": found.faults}
        print_json({**counted, "labels": dict(found.counts.most_common())})
        return
    print_table(["label", "pictures"], found.counts.most_common(MOST_SHOWN))
    console.print(f"labelled {sum(found.counts.values())} of {found.pictures} pictures; the table is {output}")
