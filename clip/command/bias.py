"""``clip evaluate bias``: which text is nearest to each picture of a folder, to see what misleads a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from PIL import Image

from clip import report
from clip.api import open_model, weights_file
from clip.command.output import (
    Activation,
    Backends,
    Device,
    Force,
    Heads,
    Json,
    Like,
    Model,
    Precision,
    Truncate,
    backends_of,
    console,
    heads_of,
    print_json,
    print_table,
)
from clip.command.pictures import pictures_of, pixels_of, texts_of
from clip_core import files
from clip_core.data.shapes import TRAINED, Scene, Thing, describe, draw, random_for
from clip_core.errors import ClipError
from clip_core.evaluation.typographic import write
from clip_core.image import open_image
from converters import files_of

if TYPE_CHECKING:
    from clip.similarity import Similarities

TEXTS = "texts.txt"
DRAWN = TRAINED[:: len(TRAINED) // 4][:4]  # kinds of things


def run(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of pictures; by default, shapes with wrong words are drawn."),
    ] = None,
    texts: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    texts_file: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file with one text a line; by default texts.txt in the folder.")
    ] = None,
    truncate: Truncate = False,
    model: Model = "shapes",
    backend: Backends = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw bars for each picture, and a heat map of all.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Tell which text is nearest to each picture: a label in the picture may be, rather than what is shown."""
    from clip.similarity import check_bars, check_heat_map, drawing, largest_difference, similarities

    inputs: list[str | Path] = []
    if data is None:
        names, wanted, picture_of = _drawn()
        wanted = [*(texts or []), *_lines(texts_file)] or wanted
    else:
        names, picture_of = pictures_of(str(data), {TEXTS}), open_image
        if texts is None and texts_file is None:
            texts_file = data / TEXTS
            if not texts_file.is_file():
                raise ClipError(f"{data} has no {TEXTS}; put a text into each of its lines, or give --texts-file.")
        wanted = [*(texts or []), *_lines(texts_file)]
        inputs += names
    if not wanted:
        raise ClipError("There are no texts; give some with --texts or --texts-file.")
    if plot is not None:
        report.check(plot=plot, force=force)
        check_bars(len(names), len(wanted))
        check_heat_map(len(names), len(wanted))
        inputs += [*files_of(weights_file(model)[0]), *([] if texts_file is None else [texts_file])]
        files.check_target(plot, inputs, force)
    found = []
    for name in backends_of(backend) or (None,):
        loaded = open_model(
            model,
            backend=name,
            device=device,
            precision=precision,
            like=like,
            activation=activation,
            heads=heads_of(heads),
        )
        pixels = np.stack([pixels_of(picture, loaded.preprocess, picture_of) for picture in names])
        found.append(similarities(loaded, names, pixels, wanted, truncate))
    if plot is not None:
        with files.atomic_open(plot, replace=force) as file:
            file.write(drawing(found[0], [picture_of(name) for name in names]))
    difference = largest_difference(found)
    if json:
        by_backend = {each.backend: each.to_dict() for each in found}
        print_json({"backends": by_backend, "largest_difference": difference})
        return
    _print(found)
    if len(found) > 1:
        console.print(f"the largest difference of a cosine from that of {found[0].backend} is {difference:.1e}")
    if plot is not None:
        console.print(f"bars and heat map are in {plot}")


def _lines(file: Path | None) -> list[str]:
    return [] if file is None else texts_of(file)


def _drawn() -> tuple[list[str], list[str], Callable[[str], Image.Image]]:
    """Names of pictures, texts, and the picture of a name: things, and the same things with the name of the next."""
    things = [Thing(*kind, "large", "solid") for kind in DRAWN]
    words = [" ".join(reversed(kind)) for kind in DRAWN]
    pictures = {}
    for number, thing in enumerate(things):
        picture, label = draw(Scene(thing), random_for("bias", 0, number)), words[(number + 1) % len(words)]
        pictures[words[number]] = picture
        pictures[f"{words[number]}, and the words {label!r}"] = write(picture, label, np.random.default_rng(number))
    return list(pictures), [describe(Scene(thing)) for thing in things], pictures.__getitem__


def _print(found: Sequence[Similarities]) -> None:
    """The text that is nearest to each picture, and its cosine, of each backend."""
    rows = []
    for number, name in enumerate(found[0].images):
        places = [of_backend.cosines[number].argmax() for of_backend in found]
        cells = [f"{each.texts[place]} ({each.cosines[number, place]:.4f})" for each, place in zip(found, places)]
        rows.append([name, *cells])
    print_table(["picture", *(each.backend for each in found)], rows)
