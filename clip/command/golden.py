"""``clip golden``: what a checkpoint gives, in a file, and the check that a later version still gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Activation, Backend, Heads, Json, console, heads_of, print_json

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keep what a checkpoint gives for canary inputs, and check that it still does.",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's name, a weights file in any layout, or a folder with one.")
]


@app.command()
def write(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="By default MODEL.golden.json, here.")
    ] = None,
    activation: Activation = None,
    heads: Heads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
) -> None:
    """Write tokens, digests of pixels, and the embeddings of both by the float64 reference."""
    from clip import golden

    target = golden.write(model, output, activation=activation, heads=heads_of(heads), force=force)
    console.print(f"the golden file of {model} is {target}")


@app.command()
def check(
    model: Model,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The golden file; by default MODEL.golden.json, here.")
    ] = None,
    backend: Backend = None,
    activation: Activation = None,
    heads: Heads = None,
    json: Json = False,
) -> None:
    """Compute all of a golden file again, and exit with 1 when a stage differs by more than the numeric contract."""
    from clip import golden
    from clip.command.parity import print_report

    found = golden.check(model, file, backend=backend, activation=activation, heads=heads_of(heads))
    if json:
        print_json(found.to_dict())
    else:
        print_report(found.report, verdict=False)
        if not found.files:
            console.print("files: others than those that the golden file was made of")
        for name, (then, now) in found.versions.items():
            console.print(f"{name}: {now}, and the golden file was made with {then}")
        console.print(f"golden: {'PASS' if found.report.passed else 'FAIL'}")
    if not found.report.passed:
        raise typer.Exit(1)
