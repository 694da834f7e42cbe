"""``clip classify``: which label fits a picture best."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import numpy as np
import typer

from clip.api import Preprocess, open_model
from clip.command.output import Backend, Json, errors, print_json, print_table
from clip.zero_shot import score
from clip_core import files
from clip_core.architecture import SHAPES
from clip_core.data import shapes
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.image import open_image

MAX_LABELS_FILE_BYTES = 16 << 20
MAX_PLOT_HEIGHT = 500.0  # inches; matplotlib draws no picture of more than 65,535 pixels
DOTS_PER_INCH = 120
PHOTO_TEMPLATE = "a photo of a {}."  # OpenAI's models do best with a sentence
PLAIN_TEMPLATE = "{}"


def run(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files.")],
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels, separated by commas; may be given several times.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A UTF-8 text file with one label a line.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help=f"A text with {{}} for the label. By default {PHOTO_TEMPLATE!r}, for the embedded model '{{}}'."
        ),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME|FILE", help="A model's name or a weights file.")] = "shapes",
    backend: Backend = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the pictures beside bars into this PNG file.")] = None,
    json: Json = False,
) -> None:
    """Print how probable each label is for each picture."""
    names = _labels(labels, labels_file)
    if plot is not None:
        _check_plot(plot, len(images), len(names))
    loaded = open_model(model, backend=backend)
    knows_shapes_only = loaded.model.architecture == SHAPES
    if knows_shapes_only:
        _warn_of_unknown_words(names)
    if template is None:
        template = PLAIN_TEMPLATE if knows_shapes_only else PHOTO_TEMPLATE
    # One after the other, since a decoded photograph is many times larger than its pixels for the model.
    pixels = np.stack([_pixels(path, loaded.preprocess) for path in images])
    scores = score(loaded, pixels, names, template)
    results: list[dict[str, Any]] = [
        {
            "image": str(path),
            "backend": loaded.model.backend,
            "model": model,
            "probabilities": dict(zip(names, probabilities.tolist())),
            "logits": dict(zip(names, logits.tolist())),
        }
        for path, probabilities, logits in zip(images, scores.probabilities, scores.logits)
    ]
    if plot is not None:
        _draw(plot, images, results)
    if json:
        print_json(results)
        return
    for result in results:
        ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
        rows = [
            [label, f"{100 * probability:.2f} %", f"{result['logits'][label]:.3f}"] for label, probability in ranked
        ]
        print_table(["label", "probability", "logit"], rows, title=f"{result['image']} ({result['backend']})")


def _labels(labels: list[str] | None, labels_file: Path | None) -> list[str]:
    found = [label.strip() for option in labels or [] for label in option.split(",")]
    if labels_file is not None:
        data = files.read_regular(labels_file, MAX_LABELS_FILE_BYTES)
        try:
            text = data.decode("utf-8-sig")  # some editors start a file with a byte order mark
        except UnicodeDecodeError as error:
            raise TextError(f"{labels_file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
        if "\0" in text:
            raise TextError(f"{labels_file} is not a text: it holds zero bytes; save it as UTF-8.")
        found += text.splitlines()
    return [label.strip() for label in found if label.strip()]


def _pixels(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Pixels float32 [3, r, r] of a picture file."""
    image = open_image(path)
    try:
        return preprocess.pixels(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _warn_of_unknown_words(labels: list[str]) -> None:
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
        errors.print(
            f"clip: the embedded model knows drawn shapes only, and {', '.join(map(repr, unknown))} is none of them; "
            "for photographs use --model ViT-B/32."
        )


def _check_plot(target: Path, pictures: int, labels: int) -> None:
    """Refuse a plot that cannot be drawn, before the work."""
    if target.suffix.lower() != ".png":
        raise ClipError(f"{target} cannot be drawn: only PNG files are; give a name that ends in .png.")
    if find_spec("matplotlib") is None:
        raise ClipError("Drawing needs matplotlib; install it with: pip install 'triclip[plot]'.")
    if pictures * _plot_height(labels) > MAX_PLOT_HEIGHT:
        raise ClipError(f"{pictures} pictures with {labels} labels each are too many for one plot; draw fewer.")


def _plot_height(labels: int) -> float:
    """Inches for one picture."""
    return max(2.4, 0.32 * labels + 0.8)


def _draw(target: Path, images: list[Path], results: list[dict[str, Any]]) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    labels = list(results[0]["probabilities"])
    with rc_context({"text.parse_math": False}):  # a label may have dollar signs
        figure = Figure(figsize=(8, _plot_height(len(labels)) * len(results)), layout="constrained")
        rows = figure.subplots(len(results), 2, squeeze=False, width_ratios=(1, 2))
        for (left, right), path, result in zip(rows, images, results):
            left.imshow(open_image(path).convert("RGB"))
            left.set_axis_off()
            left.set_title(fill(_drawable(path.name), 24), fontsize=8)
            values = list(result["probabilities"].values())
            best = max(values)
            places = range(len(labels))
            bars = right.barh(places, values, color=["#2a6fbb" if value == best else "#b9c7d8" for value in values])
            right.bar_label(bars, [f"{100 * value:.1f} %" for value in values], padding=3, fontsize=8)
            right.set_yticks(places, [fill(label, 28) for label in labels], fontsize=9)
            right.set_xlim(0, 1.12)
            right.set_xticks([])
            right.invert_yaxis()
            right.spines[["top", "right", "bottom"]].set_visible(False)
            right.set_title(f"{_drawable(result['model'])}, {result['backend']}", fontsize=8)
        with files.atomic_open(target) as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH)


def _drawable(name: str) -> str:
    """A file's name with what is no text in it spelt out, since fonts cannot be asked for it."""
    return name.encode("utf-8", "backslashreplace").decode()
