"""``clip convert``: from any layout to any other, without a framework."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

import converters
from clip.api import original_of
from clip.command.output import Activation, Heads, Json, Like, Prefix, heads_of, print_fields, print_json, shortened
from clip_core.layouts import LAYOUTS

Layout = Enum("Layout", {name: name for name in LAYOUTS}, type=str)  # type: ignore[misc]


class Dtype(str, Enum):
    float16 = "float16"
    float32 = "float32"


def run(
    source: Annotated[Path, typer.Argument(help="A weights file in any layout, or a folder with one.")],
    target: Annotated[
        Path,
        typer.Argument(
            help="The file to write; its suffix (.pt .safetensors .h5 .pdparams) decides the format. With the layouts "
            "huggingface and open_clip also a folder, which these libraries load."
        ),
    ],
    layout: Annotated[
        Layout | None, typer.Option(help="The names to write; by default those usual for the format.")
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="By default each tensor keeps its own.")] = None,
    prefix: Prefix = None,
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Along one side of a picture, in place of the model's own; its positions are interpolated.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    json: Json = False,
) -> None:
    """Convert a weights file; the result is read back and compared before it appears."""
    report = converters.convert(
        source,
        target,
        layout=layout.value if layout else None,
        dtype=dtype.value if dtype else None,
        prefix=prefix,
        like=None if like is None else original_of(like),
        activation=activation,
        heads=heads_of(heads),
        resolution=resolution,
        force=force,
    ).to_dict()
    if json:
        print_json(report)
    else:
        fields = report | {
            "beside": ", ".join(report["beside"]),
            "left_out": shortened(report["left_out"]),
            "assumed": ", ".join(report["assumed"]),
            "seconds": f"{report['seconds']:.2f}",
        }
        print_fields({name: value for name, value in fields.items() if value not in (None, "")})
