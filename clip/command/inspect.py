"""``clip inspect``: what a weights file is, and everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import converters
from clip.api import original_of
from clip.command.output import (
    Activation,
    Heads,
    Json,
    Like,
    Prefix,
    console,
    heads_of,
    print_fields,
    print_json,
    shortened,
)
from clip_core.architecture import Architecture
from clip_core.naming import count


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A weights file in any layout, or a folder with one.")],
    prefix: Prefix = None,
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    json: Json = False,
) -> None:
    """Say what a weights file holds; exit with 1 when something is wrong with it."""
    found = converters.inspect(
        file,
        prefix=prefix,
        like=None if like is None else original_of(like),
        activation=activation,
        heads=heads_of(heads),
    )
    architecture = found.architecture
    parameters = None if architecture is None else count(architecture)
    if json:
        print_json(found.to_dict() | {"parameters": parameters})
    else:
        fields = found.to_dict() | {
            "architecture": "not known, for the first of the faults"
            if architecture is None
            else _describe(architecture),
            "dtypes": ", ".join(f"{number} of {dtype}" for dtype, number in found.dtypes.items()),
            "assumed": ", ".join(found.assumed),
            "same_shapes": ", ".join(found.same_shapes)
            and f"{', '.join(found.same_shapes)}: --like NAME takes its word",
            "parameters": parameters,
            "left_out": shortened(found.left_out),
            "zeros": shortened(found.zeros),
        }
        del fields["faults"]
        print_fields({name: _plain(value) for name, value in fields.items() if value not in (None, "")})
        console.print(f"faults: {len(found.faults) or 'none'}", style="bold")
        for fault in found.faults:
            console.print(f"  {fault}")
    if found.faults:
        raise typer.Exit(1)


def _describe(architecture: Architecture) -> str:
    image, text = architecture.image, architecture.text
    activations = dict.fromkeys(tower.activation for tower in architecture.transformers.values())
    return (
        f"{image.summary()}, pictures of {image.resolution} pixels; text {text.summary()}, "
        f"{text.context_length} tokens out of {text.vocabulary_size}; "
        f"{architecture.embed_dim} dimensions in common; {' and '.join(activations)}"
    )


def _plain(value: object) -> object:
    return ("yes" if value else "no") if isinstance(value, bool) else value
