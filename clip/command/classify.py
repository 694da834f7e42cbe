"""``clip classify``: which label fits a picture best."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from clip.api import open_model
from clip.command.output import Backend, Json, errors, print_json, print_table
from clip.zero_shot import score
from clip_core import files
from clip_core.data import shapes
from clip_core.errors import ClipError
from clip_core.image import open_image

MAX_LABELS_FILE_BYTES = 16 << 20
PHOTO_TEMPLATE = "a photo of a {}."  # OpenAI's models do best with a sentence
PLAIN_TEMPLATE = "{}"


def run(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.")],
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
    loaded = open_model(model, backend=backend)
    if model == "shapes":
        _warn_of_unknown_words(names)
    if template is None:
        template = PLAIN_TEMPLATE if model == "shapes" else PHOTO_TEMPLATE
    pictures = [open_image(path) for path in images]
    scores = score(loaded, pictures, names, template)
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
        _draw(plot, pictures, results)
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
        try:
            found += files.read_regular(labels_file, MAX_LABELS_FILE_BYTES).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ClipError(f"{labels_file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return [label.strip() for label in found if label.strip()]


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
            "for photographs use --model ViT-B/32.",
            markup=False,
        )


def _draw(target: Path, pictures: list[Image.Image], results: list[dict[str, Any]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ClipError("Drawing needs matplotlib; install it with: pip install 'triclip[plot]'.") from error
    if target.suffix.lower() != ".png":
        raise ClipError(f"{target} cannot be drawn: only PNG files are; give a name that ends in .png.")
    labels = list(results[0]["probabilities"])
    height = max(2.4, 0.32 * len(labels) + 0.8)
    figure = Figure(figsize=(8, height * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), picture, result in zip(rows, pictures, results):
        left.imshow(picture.convert("RGB"))
        left.set_axis_off()
        left.set_title(Path(result["image"]).name, fontsize=8, wrap=True)
        values = list(result["probabilities"].values())
        best = max(values)
        bars = right.barh(labels, values, color=["#2a6fbb" if value == best else "#b9c7d8" for value in values])
        right.bar_label(bars, [f"{100 * value:.1f} %" for value in values], padding=3, fontsize=8)
        right.set_xlim(0, 1.12)
        right.set_xticks([])
        right.invert_yaxis()
        right.spines[["top", "right", "bottom"]].set_visible(False)
        right.set_title(f"{result['model']}, {result['backend']}", fontsize=8)
    with files.atomic_open(target) as file:
        figure.savefig(file, format="png", dpi=120)
