"""``clip classify``: which label fits a picture best."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import floor, isnan
from pathlib import Path
from textwrap import fill, indent
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from clip.api import LoadedModel, open_model, weights_file
from clip.command.output import (
    FILE_WIDTH,
    Activation,
    Backend,
    Console,
    Device,
    Heads,
    Json,
    Labels,
    LabelsFile,
    Like,
    Precision,
    console,
    errors,
    heads_of,
    lines_of_csv,
    print_table,
)
from clip.command.pictures import labels_of, pictures_of, pixels_of
from clip.zero_shot import PHOTO_TEMPLATE, Classifier, template_for
from clip_core import files
from clip_core.data import shapes
from clip_core.errors import ClipError, ImageError, visible
from clip_core.image import open_image
from clip_core.installation import requirement
from clip_core.memory import enough_memory
from clip_core.models import SHAPES
from converters import files_of

MAX_PLOT_HEIGHT = 500.0  # inches; matplotlib draws no picture of more than 65,535 pixels
DOTS_PER_INCH = 120
MAX_DRAWN_PIXELS = 512  # of a picture's longer side
MAX_NAMED = 5  # labels in a warning


@dataclass(frozen=True)
class Result:
    """How a picture fits the labels: all in their order, or the best ones, the best first."""

    image: str
    backend: str
    model: str
    probabilities: dict[str, float]
    logits: dict[str, float]

    def ranked(self) -> list[tuple[str, float, float]]:
        """(label, probability, logit), the best first."""
        rows = [(label, self.probabilities[label], logit) for label, logit in self.logits.items()]
        return sorted(rows, key=lambda row: -row[2])


def run(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help="Picture files, folders of them at any depth, or patterns ('a/*.png')."),
    ],
    labels: Labels = None,
    labels_file: LabelsFile = None,
    template: Annotated[
        str | None,
        typer.Option(
            help=f"A text with {{}} for the label. By default {PHOTO_TEMPLATE!r}, for the embedded model '{{}}'."
        ),
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut labels that are too long for the model.")] = False,
    model: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A model's name, a weights file, or a folder with one.")
    ] = "shapes",
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that are held in memory and scored at once.")] = 32,
    top_k: Annotated[int | None, typer.Option(min=1, help="Give the best labels of each picture only.")] = None,
    fault_share: Annotated[
        float, typer.Option(min=0, max=1, help="Exit with 1 when more of the pictures than this cannot be used.")
    ] = 0.1,
    output: Annotated[
        Path | None, typer.Option(help="Write the results into this file; .csv or .json at its end decides how.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the pictures beside bars into this PNG file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for machines, a line for each label.")] = False,
    as_json: Json = False,
) -> None:
    """Print the probability of each label for each picture, as soon as it is computed.

    A model with a logit bias, such as SigLIP, judges each label by itself; of other models, the probabilities of a
    picture add up to 1.
    """
    names = labels_of(labels, labels_file)
    form = _form(as_csv, as_json, output)
    paths = [path for image in images for path in pictures_of(image)]
    if plot is not None:
        _check_plot(plot, len(paths), min(len(names), top_k or len(names)))
    loaded = open_model(
        model,
        backend=backend,
        device=device,
        precision=precision,
        like=like,
        activation=activation,
        heads=heads_of(heads),
    )
    targets = [target for target in (output, plot) if target is not None]
    if targets:  # else the file of an official model need not be looked for, and its digest checked, once more
        inputs: list[str | Path] = [
            *paths,
            *([] if labels_file is None else [labels_file]),
            *files_of(weights_file(model)[0]),
        ]
        for target in targets:
            files.check_target(target, inputs, force)
    if loaded.model.architecture == SHAPES:
        warn_of_unknown_words(names)
    classifier = Classifier(loaded, names, template_for(loaded) if template is None else template, truncate)
    if loaded.logit_bias is not None:
        errors.print(
            f"clip: {loaded.name} judges each label by itself, so the probabilities of a picture need not add up to 1."
        )
    # A bar that moves below results that scroll would be in their way.
    shown = errors.is_terminal and not (console.is_terminal and output is None)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    faulty: list[str] = []
    with Progress(*columns, console=errors, transient=True, disable=not shown) as progress:
        results: Iterable[list[Result]] = _results(classifier, paths, batch_size, top_k, faulty, progress)
        if plot is not None:
            results = list(results)
            _draw(plot, [result for batch in results for result in batch], force)
        if output is None:
            for text in FORMS[form](results, console):
                print(text, end="", flush=True)
        else:
            with files.atomic_open(output, replace=force) as file:
                for text in FORMS[form](results, Console(file=io.StringIO(), width=FILE_WIDTH)):
                    file.write(text.encode("utf-8", "backslashreplace"))
    if output is not None:
        console.print(f"scored {len(paths) - len(faulty)} of {len(paths)} pictures; the results are in {output}")
    if faulty:
        _judge(faulty, paths, fault_share)


def _results(
    classifier: Classifier, paths: list[str], batch_size: int, top_k: int | None, faulty: list[str], progress: Progress
) -> Iterator[list[Result]]:
    """The results, batch by batch. A picture that cannot be used is reported and added to ``faulty``.

    Raises:
        ClipError: that is so of all of them.
    """
    loaded, task = classifier.loaded, progress.add_task("", total=len(paths))
    for start in range(0, len(paths), batch_size):
        pixels: dict[int, np.ndarray] = {}
        with enough_memory(f"while {batch_size} pictures at once were scored", "lower --batch-size"):
            # One after the other, since a decoded photograph is many times larger than its pixels for the model.
            for place, path in enumerate(paths[start : start + batch_size], start):
                try:
                    pixels[place] = pixels_of(path, loaded.preprocess)
                except ImageError as error:
                    if len(paths) == 1:
                        raise
                    errors.print(f"clip: {error}")
                    faulty.append(path)
                progress.advance(task)
            scores = classifier.score(np.stack(list(pixels.values()))) if pixels else None
        if scores is not None:
            yield [
                _result(loaded, paths[place], classifier.labels, probabilities, logits, top_k)
                for place, probabilities, logits in zip(pixels, scores.probabilities, scores.logits)
            ]
    if len(faulty) == len(paths):
        raise ClipError(f"None of the {len(paths)} pictures can be used.")


def _result(
    loaded: LoadedModel, path: str, labels: list[str], probabilities: np.ndarray, logits: np.ndarray, top_k: int | None
) -> Result:
    places = range(len(labels)) if top_k is None else np.argsort(-logits, kind="stable")[:top_k]
    return Result(
        path,
        loaded.model.backend,
        loaded.name,
        {labels[place]: float(probabilities[place]) for place in places},
        {labels[place]: float(logits[place]) for place in places},
    )


def _judge(faulty: list[str], paths: list[str], fault_share: float) -> None:
    """Report the number of pictures that could not be used.

    Raises:
        ClipError: they are more than ``fault_share`` of all.
    """
    found = f"{len(faulty)} of {len(paths)} pictures could not be used"
    allowed = 0 if isnan(fault_share) else floor(fault_share * len(paths))  # NaN passes for a number between 0 and 1
    if len(faulty) > allowed:
        raise ClipError(
            f"{found}, and --fault-share {fault_share:g} allows at most {allowed}; mend or remove them, or allow more."
        )
    errors.print(f"clip: {found}.")


# Forms of the results: each makes texts out of batches of them, to be written one after the other.


def _as_tables(batches: Iterable[list[Result]], to: Console) -> Iterator[str]:
    for batch in batches:
        with to.capture() as captured:
            for result in batch:
                rows = [
                    [label, f"{100 * probability:.2f} %", f"{logit:.3f}"]
                    for label, probability, logit in result.ranked()
                ]
                title = f"{result.image} ({result.backend})"
                print_table(["label", "probability", "logit"], rows, title, to)
        yield captured.get()


def _as_csv(batches: Iterable[list[Result]], _: Console) -> Iterator[str]:
    """RFC 4180, with the best label of each picture first."""
    yield lines_of_csv([("image", "rank", "label", "probability", "logit")])
    for batch in batches:
        yield lines_of_csv(
            (visible(result.image), rank, visible(label), probability, logit)
            for result in batch
            for rank, (label, probability, logit) in enumerate(result.ranked(), 1)
        )


def _as_json(batches: Iterable[list[Result]], _: Console) -> Iterator[str]:
    """One array in ASCII, which every terminal and pipe can carry; it is closed even if the work ends early."""
    start = "[\n"
    try:
        for batch in batches:
            values = [json.dumps(asdict(result), indent=2, allow_nan=False) for result in batch]
            yield start + indent(",\n".join(values), "  ")
            start = ",\n"
    except Exception:
        if start != "[\n":
            yield "\n]\n"
        raise
    yield "\n]\n"


FORMS = {"table": _as_tables, "csv": _as_csv, "json": _as_json}


def _form(as_csv: bool, as_json: bool, output: Path | None) -> str:
    """The form that is asked for, by an option or by how the name of the output ends."""
    if as_csv and as_json:
        raise ClipError("--csv and --json were both given; choose one.")
    suffix = "" if output is None else output.suffix.lower().lstrip(".")
    return "csv" if as_csv else "json" if as_json else suffix if suffix in FORMS else "table"


def warn_of_unknown_words(labels: list[str]) -> None:
    words = {
        *shapes.COLOURS,
        *shapes.SHAPES,
        *shapes.TEXTURES,
        *(word for words in shapes.SYNONYMS.values() for word in words),
    }
    singular = {word.rstrip("s") for word in words}
    unknown = [
        label for label in labels if not {word.rstrip("s") for word in re.findall(r"\w+", label.lower())} & singular
    ]
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        errors.print(
            f"clip: the embedded model knows drawn shapes only, and {', '.join(map(repr, unknown[:MAX_NAMED]))}{more} "
            "is none of them; for photographs use --model ViT-B/32."
        )


def _check_plot(target: Path, pictures: int, labels: int) -> None:
    """Refuse a plot that cannot be drawn, before the work."""
    if target.suffix.lower() != ".png":
        raise ClipError(f"{target} cannot be drawn: only PNG files are; give a name that ends in .png.")
    if find_spec("matplotlib") is None:
        raise ClipError(f"Drawing needs matplotlib; install it with: pip install {requirement('plot')}.")
    if pictures * _plot_height(labels) > MAX_PLOT_HEIGHT:
        raise ClipError(f"{pictures} pictures with {labels} labels each are too many for one plot; draw fewer.")


def _plot_height(labels: int) -> float:
    """Inches for one picture."""
    return max(2.4, 0.32 * labels + 0.8)


def _draw(target: Path, results: list[Result], force: bool) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):  # a label may have dollar signs
        height = _plot_height(len(results[0].logits))
        figure = Figure(figsize=(8, height * len(results)), layout="constrained")
        rows = figure.subplots(len(results), 2, squeeze=False, width_ratios=(1, 2))
        for (left, right), result in zip(rows, results):
            image = open_image(result.image).convert("RGB")
            left.imshow(image.reduce(max(1, max(image.size) // MAX_DRAWN_PIXELS)))  # all stay in memory until the end
            left.set_axis_off()
            left.set_title(fill(visible(Path(result.image).name), 24), fontsize=8)
            values = list(result.probabilities.values())
            best = max(values)
            places = range(len(values))
            bars = right.barh(places, values, color=["#2a6fbb" if value == best else "#b9c7d8" for value in values])
            right.bar_label(bars, [f"{100 * value:.1f} %" for value in values], padding=3, fontsize=8)
            right.set_yticks(places, [fill(label, 28) for label in result.probabilities], fontsize=9)
            right.set_xlim(0, 1.12)
            right.set_xticks([])
            right.invert_yaxis()
            right.spines[["top", "right", "bottom"]].set_visible(False)
            right.set_title(f"{visible(result.model)}, {result.backend}", fontsize=8)
        with files.atomic_open(target, replace=force) as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
