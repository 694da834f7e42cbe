"""``clip evaluate``: the scores of a model on a test that this package carries."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from clip.api import open_model
from clip.command.output import (
    Activation,
    Backend,
    Device,
    Heads,
    Json,
    Like,
    Precision,
    errors,
    heads_of,
    print_fields,
    print_json,
)


class Test(str, Enum):
    shapes = "shapes"


def run(
    test: Annotated[Test, typer.Argument(help="shapes: drawn pictures, with combinations that training never shows.")],
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A model's name, a weights file, or a folder with one.")
    ] = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    json: Json = False,
) -> None:
    """Score a model on the drawn shapes, which the embedded model has learnt."""
    from clip_core.evaluation import shapes

    loaded = open_model(
        model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads_of(heads),
    )
    with errors.status(f"drawing and encoding with {loaded.model.backend}"):
        scores = shapes.evaluate(loaded.model, loaded.model.tokenizer)
    result = {"test": test.value, "model": model, "backend": loaded.model.backend} | scores
    if json:
        print_json(result)
    else:
        print_fields({name: f"{value:.2%}" if isinstance(value, float) else value for name, value in result.items()})
