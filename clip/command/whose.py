"""``clip whose``: the variant of preprocessing and model that made embeddings of unknown making."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Backend, Device, Json, console, print_json, print_table
from clip.command.pictures import pictures_of, texts_of
from clip.command.progress import Bar
from clip_core.whose.variants import RESIZINGS
from clip_core.whose.verdict import FLOAT32_WITHIN, Candidate, Verdict

SHOWN = 8  # candidates that are printed


def run(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Embeddings: .npy, .npz, .parquet or .csv, or a folder of such files."),
    ],
    pictures: Annotated[
        list[str],
        typer.Option(metavar="DIR", help="What they were made of: pictures, folders of them, or patterns ('a/*.png')."),
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="What made them: a name, a weights file, or a folder with one.")
    ],
    names: Annotated[
        Path | None,
        typer.Option(help="A text file with the picture of each embedding, one a line; by default by name in order."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Pictures that are compared at most, spread over all.")] = 64,
    backend: Backend = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Name the preprocessing and the activation that made embeddings; exit with 1 when it is none of those known."""
    from clip.whose import whose

    paths = list(dict.fromkeys(path for argument in pictures for path in pictures_of(argument)))
    with Bar().shown() as bar:
        verdict = whose(
            file,
            paths,
            model,
            names=None if names is None else texts_of(names),
            limit=limit,
            backend=backend,
            device=device,
            progress=bar,
        )
    if json:
        print_json(verdict.to_dict())
    else:
        _print(verdict)
    if not verdict.found:
        raise typer.Exit(1)


def _print(verdict: Verdict) -> None:
    rows = [
        [
            "any" if _is_any(each) else " = ".join(each.resizings),
            *each.making._replace(activation=each.making.activation or "none"),
        ]
        for each in verdict.candidates[:SHOWN]
    ]
    distances = [f"{each.distance:.2e}" for each in verdict.candidates]
    print_table(
        ["resizing", "activation", "scaling", "channels", "distance"],
        [[*row, distance] for row, distance in zip(rows, distances)],
    )
    how = {
        "unit": "of length 1",
        "model": "not normalised",
        "other": "{:.3g} to {:.3g} times as long as the model's".format(*verdict.lengths),
    }[verdict.length]
    console.print(f"{verdict.pictures} pictures, whose embeddings are {how} and fit into {verdict.rounding}")
    if not verdict.found:
        hint = (
            "the embeddings are those of the pictures in another order, which --names FILE tells"
            if verdict.permuted
            else "other weights, another preprocessing, or another order of the pictures made them"
        )
        console.print(
            f"whose: none of these, whose nearest is {verdict.candidates[0].distance:.2g} away (bound "
            f"{verdict.bound:.2g}); {hint}"
        )
        return
    described = [_described(each) for each in verdict.found]
    if len(described) > 1:
        console.print(f"whose: cannot tell apart: {'; '.join(described)}")
    else:
        console.print(f"whose: {described[0]}")
    if not verdict.exact:
        console.print(
            f"the distance is more than float32 makes ({FLOAT32_WITHIN:.0e}): they were computed in bfloat16 or "
            "float16, or by a variant that is near to this one"
        )
    if verdict.ratio is not None:
        console.print(f"the nearest of the others is {verdict.ratio:.3g} times as far")


def _described(candidate: Candidate) -> str:
    names = " or ".join(f"{name!r}" for name in candidate.resizings)
    how = "in any way, which gives these pictures the same pixels" if _is_any(candidate) else f"as {names}"
    making = candidate.making
    activation = f", {making.activation}" if making.activation else ""
    return f"resized {how}, scaled as {making.scaling!r}, {making.channels}{activation}"


def _is_any(candidate: Candidate) -> bool:
    """Whether every resizing gives the same, as for pictures that have the model's size already."""
    return len(candidate.resizings) == len(RESIZINGS)
