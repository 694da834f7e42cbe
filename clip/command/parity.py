"""``clip parity``: verify that a file gives the same numbers in every framework."""

from __future__ import annotations

from typing import Annotated

import typer

from clip.command.output import Activation, Heads, Json, console, heads_of, print_json, print_table
from clip.parity import Report, compare


def run(
    model: Annotated[
        str, typer.Argument(metavar="FILE", help="A weights file in any layout, a folder with one, or a model's name.")
    ],
    backends: Annotated[
        str | None, typer.Option(help="Comma-separated; by default all whose framework is installed.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare every block, and name the first that differs.")
    ] = False,
    activation: Activation = None,
    heads: Heads = None,
    reference_path: Annotated[
        bool,
        typer.Option(
            "--reference-path",
            help="Compute by the framework's own functions, as where other code looks at each step, in place of the "
            "fast way of inference.",
        ),
    ] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Seeded random weights, for any architecture that `clip models` lists.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare every backend with the float64 reference, stage by stage; exit with 1 when one is beyond its bound."""
    names = None if backends is None else [name.strip() for name in backends.split(",") if name.strip()]
    report = compare(model, names, layers, activation, heads_of(heads), random, reference_path)
    if json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def print_report(report: Report, verdict: bool = True) -> None:
    """The differences of every backend above their bounds, then the stages that exceed a bound."""
    stages = ("image_embedding", "text_embedding", "logits")
    rows = [
        [
            comparison.backend,
            *("equal" if same else "DIFFER" for same in (comparison.tokens_equal, comparison.pixels_equal)),
        ]
        + [f"{getattr(comparison, stage):.1e}" for stage in stages]
        for comparison in report.comparisons
    ]
    rows.append(["bound", "equal", "equal", *(f"{report.bounds[stage]:.1e}" for stage in stages)])
    print_table(["backend", "tokens", "pixels", *(stage.replace("_", " ") for stage in stages)], rows)
    for comparison in report.comparisons:
        if comparison.layers:
            worst = max(comparison.layers, key=lambda name: comparison.layers[name])
            console.print(
                f"{comparison.backend}: {len(comparison.layers)} blocks, the worst is {worst}, "
                f"{comparison.layers[worst]:.1e} of its largest value (bound {report.bounds['layer']:.0e})"
            )
        if faults := comparison.faults(report.bounds):
            console.print(f"{comparison.backend}: beyond its bound first at {faults[0]}")
    if verdict:
        if report.assumed:  # backends that compute with one assumption agree even where it is wrong
            outcome = f"{'AGREE' if report.passed else 'FAIL'}, assumed: {', '.join(report.assumed)}"
        else:
            outcome = "PASS" if report.passed else "FAIL"
        console.print(f"parity: {outcome}")
