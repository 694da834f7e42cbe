"""``clip cluster``: divide the pictures of an index into clusters, and name them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from clip import report
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
    Precision,
    console,
    heads_of,
    lines_of_csv,
    print_json,
    print_table,
)
from clip.command.pictures import labels_of
from clip.figures import png
from clip_core import files
from clip_core.errors import visible

REPRESENTATIVES = 8  # pictures of a cluster that are named and drawn, those nearest to its centre
MOST = 1000


class Cluster(NamedTuple):
    """What is told of a cluster."""

    cluster: int  # counted from 1, the largest first
    size: int
    name: str
    mean_cosine: float  # of its rows with its centre
    representatives: list[str]


def run(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")],
    count: Annotated[int, typer.Option("--clusters", "-k", min=2, max=MOST, help="The number of clusters.")] = 20,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    template: Annotated[
        str | None, typer.Option(help="A text with one {} for the label; by default the one that suits the model.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the first centres.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the cluster of each picture into this CSV file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the pictures in the middle of each cluster into this PNG file.")
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
    force: Force = False,
    json: Json = False,
) -> None:
    """Divide an index into clusters by k-means, and name each by the label that is nearest to it."""
    from clip.contact_sheet import Cell, Row, check, contact_sheet
    from clip.search import Index
    from clip_core.search.clusters import clusters

    if plot is not None:
        report.check(plot=plot, force=force)
        check(count * REPRESENTATIVES)
    for target in (output, plot):
        if target is not None:
            files.check_target(target, [] if labels_file is None else [labels_file], force)
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
    given = labels_of(labels, labels_file)
    of_labels = None if labels is None and labels_file is None else opened.label_vectors(given, template)
    found = clusters(opened.store, count, seed)
    names = [""] * len(found.centres)
    if of_labels is not None:
        names = [given[place] for place in (found.centres @ of_labels.T).argmax(axis=1)]
    rows = opened.store.rows()
    shown = "text" if opened.store.texts else "path"
    summary: list[Cluster] = []
    for number, name in enumerate(names):
        members = np.flatnonzero(found.labels == number)
        nearest = members[np.argsort(-found.cosines[members], kind="stable")][:REPRESENTATIVES]
        cosine = float(found.cosines[members].mean())
        summary.append(Cluster(number + 1, len(members), name, cosine, [rows[place][shown] for place in nearest]))
    if output is not None:
        lines = [
            (number + 1, visible(names[number]), visible(row["id"]), visible(row[shown]), f"{cosine:.4f}")
            for row, number, cosine in zip(rows, found.labels.tolist(), found.cosines.tolist())
        ]
        with files.atomic_open(output, replace=force) as file:
            file.write(lines_of_csv([("cluster", "name", "id", shown, "cosine"), *lines]).encode())
    if plot is not None:
        sheet = [
            Row(
                f"cluster {each.cluster}: {each.size} rows{each.name and ', '}{each.name}",
                [Cell(path, "") for path in each.representatives],
            )
            for each in summary
        ]
        with files.atomic_open(plot, replace=force) as file:
            file.write(png(contact_sheet(sheet, REPRESENTATIVES)))
    if json:
        print_json({"index": str(index), "clusters": [each._asdict() for each in summary]})
        return
    named = [] if of_labels is None else ["name"]
    cells = [
        [each.cluster, each.size, *(each.name for _ in named), f"{each.mean_cosine:.3f}", each.representatives[0]]
        for each in summary
    ]
    print_table(["cluster", "size", *named, "mean cosine", "nearest to the centre"], cells)
    if output is not None:
        console.print(f"the cluster of each row is in {output}")
    if plot is not None:
        console.print(f"the contact sheet is in {plot}")
