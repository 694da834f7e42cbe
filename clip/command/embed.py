"""``clip embed``: pictures or texts into a folder of embeddings."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import (
    Activation,
    Backend,
    Device,
    Heads,
    Json,
    Like,
    Model,
    Precision,
    Truncate,
    heads_of,
    print_fields,
    print_json,
)
from clip.command.progress import Bar

Pictures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PICTURE...]",
        help="Pictures, folders, patterns, .tar, .zip and .parquet files, lists (.csv, .tsv, .json, .jsonl, .txt) and "
        "http addresses.",
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="The column of the pictures or their paths; by default one with a usual name.")
]
CaptionColumn = Annotated[
    str | None, typer.Option(help="The column of the captions or texts; by default one with a usual name.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="The column of the classes; by default one with a usual name, if there is one.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that are encoded at once.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that decode pictures; by default as many as are worth while.")
]
FaultShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the input that may be unusable; beyond it, the run ends.")
]


class Type(str, Enum):
    """Of the numbers that are kept."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Form(str, Enum):
    """Of the parts."""

    PARQUET = "parquet"
    NPY = "npy"


class Engine(str, Enum):
    """What embeds."""

    LOCAL = "local"
    RAY = "ray"


def run(
    pictures: Pictures = None,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder of the parts.")],
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Embed texts: lines, or a column of .csv, .tsv, .json, .jsonl or .parquet."),
    ] = None,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    label_column: LabelColumn = None,
    model: Model = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    normalize: Annotated[bool, typer.Option(help="Make each embedding's length 1.")] = True,
    dtype: Annotated[Type, typer.Option(help="Of the numbers that are kept.")] = Type.FLOAT16,
    format: Annotated[Form, typer.Option(help="Parquet, or arrays of NumPy with a JSON file beside each.")] = (
        Form.PARQUET
    ),
    truncate: Truncate = False,
    fault_share: FaultShare = 0.01,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has left.")] = False,
    engine: Annotated[Engine, typer.Option(help="This machine, or a cluster of Ray.")] = Engine.LOCAL,
    address: Annotated[
        str,
        typer.Option(help="Of the cluster: auto for that of this machine, HOST:PORT, or local to start one here."),
    ] = "auto",
    json: Json = False,
) -> None:
    """Embed pictures or texts into Parquet parts; an interrupted run goes on where it was.

    Each part says what made it: weights, tokenizer, preprocessing and versions. What cannot be used is left out and
    named in faults.jsonl.
    """
    from clip.embedding import embed_into
    from clip_core.embedding.sources import Columns

    bar = Bar()
    with bar.shown():
        made = embed_into(
            output,
            pictures or (),
            model,
            texts=texts,
            columns=Columns(image_column, caption_column, label_column),
            backend=backend,
            device=device,
            precision=precision,
            like=like,
            activation=activation,
            heads=heads_of(heads),
            batch_size=batch_size,
            workers=workers,
            normalize=normalize,
            dtype=dtype.value,
            format=format.value,
            truncate=truncate,
            fault_share=fault_share,
            resume=resume,
            cluster=address if engine is Engine.RAY else None,
            progress=bar,
        )
    summary = {
        "folder": str(made.folder),
        "texts" if made.texts else "pictures": made.total,
        "embedded": len(made),
        "faults": len(made.faults),
        "dimension": made.dimension,
        "dtype": made.stamp.dtype,
        "model": made.stamp.source,
        "backend": made.stamp.backend,
    }
    if json:
        print_json(summary)
    else:
        print_fields(summary)
