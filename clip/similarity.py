"""Pictures by texts: the cosine of each pair, as a table, as a heat map, and as bars of each picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clip.api import LoadedModel
from clip.figures import png, small
from clip_core.errors import CheckpointError, ClipError, visible
from clip_core.evaluation.features import encode_texts
from clip_core.evaluation.zero_shot import image_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS, MOST_ROWS = 60, 120  # of a heat map; beyond them nobody reads it
MOST_BARS = 1000
CELL, LETTER, WRAP = 1.0, 0.075, 40  # inches of a column and of a letter, letters of a line
BEST, OTHER = "#c1443c", "#b9c7d8"


@dataclass(frozen=True)
class Similarities:
    """The cosines of n pictures and m texts under one model."""

    model: str
    backend: str
    images: list[str]
    texts: list[str]
    cosines: np.ndarray  # float32 [n, m]
    logit_scale: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the text that is nearest to each picture."""
        return {
            "model": self.model,
            "backend": self.backend,
            "logit_scale": self.logit_scale,
            "images": self.images,
            "texts": self.texts,
            "cosines": self.cosines.tolist(),
            "nearest": [self.texts[place] for place in self.cosines.argmax(axis=1)],
        }


def similarities(
    loaded: LoadedModel, images: Sequence[str], pixels: np.ndarray, texts: Sequence[str], truncate: bool = False
) -> Similarities:
    """Compare each picture with each text.

    Args:
        images: what the pictures are called.
        pixels: float32 [n, 3, r, r].
        truncate: cut texts that are too long for the model; otherwise they are refused.

    Raises:
        TextError: a text cannot be used.
        CheckpointError: a feature is no finite number.
    """
    of_texts = encode_texts(loaded.model, loaded.model.tokenizer, texts, truncate=truncate)
    cosines = image_features(loaded.model, pixels) @ of_texts.T
    if not np.isfinite(cosines).all():
        raise CheckpointError(
            f"{loaded.name} gives features that are not finite numbers; look at its weights with clip inspect."
        )
    return Similarities(loaded.name, loaded.model.backend, list(images), list(texts), cosines, loaded.logit_scale)


def largest_difference(found: Sequence[Similarities]) -> float:
    """How far a cosine of any backend is from that of the first one."""
    return max(float(np.abs(each.cosines - found[0].cosines).max()) for each in found)


def check_heat_map(images: int, texts: int) -> None:
    """Refuse what is too large to be drawn.

    Raises:
        ClipError: there are too many pictures or texts.
    """
    if images > MOST_COLUMNS or texts > MOST_ROWS:
        raise ClipError(
            f"{images} pictures and {texts} texts are too many for one drawing, which has room for {MOST_COLUMNS} and "
            f"{MOST_ROWS}; draw fewer."
        )


def check_bars(images: int, texts: int) -> None:
    """Refuse what has too many bars.

    Raises:
        ClipError: there are too many.
    """
    if images * texts > MOST_BARS:
        raise ClipError(
            f"{images} pictures and {texts} texts are {images * texts} bars, too many for one drawing, which has room "
            f"for {MOST_BARS}; draw fewer."
        )


def drawing(found: Similarities, pictures: Sequence[Image.Image]) -> bytes:
    """A PNG file of the bars, and the heat map below them."""
    parts = [Image.open(io.BytesIO(png(figure))) for figure in (bars(found, pictures), heat_map(found, pictures))]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part.convert("RGB"), (0, top))
        top += part.height
    content = io.BytesIO()
    whole.save(content, format="PNG")
    return content.getvalue()


def heat_map(found: Similarities, pictures: Sequence[Image.Image]) -> Figure:
    """Texts along the rows and pictures along the columns, with the pictures themselves on top."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows, columns = len(found.texts), len(found.images)
    names = [fill(visible(text), WRAP) for text in found.texts]
    lines = max(name.count("\n") + 1 for name in names)
    row, left = 0.2 + 0.15 * lines, 0.25 + LETTER * max(len(line) for name in names for line in name.split("\n"))
    width, height = left + CELL * columns + 0.15, CELL + row * rows + 0.45
    with rc_context({"text.parse_math": False}):  # a text may have dollar signs
        figure = Figure(figsize=(width, height))
        box = (left / width, 0.35 / height, CELL * columns / width, (CELL + row * rows) / height)
        axes = figure.add_axes(box)
        low, high = float(found.cosines.min()), float(found.cosines.max())
        axes.imshow(found.cosines.T, cmap="viridis", vmin=low, vmax=high)
        for column, place in np.ndindex(columns, rows):
            value = float(found.cosines[column, place])
            dark = high > low and (value - low) / (high - low) < 0.6
            colour = "white" if dark else "black"
            axes.text(column, place, f"{value:.2f}", color=colour, ha="center", va="center", fontsize=9)
        for column, picture in enumerate(map(small, pictures)):
            half_width, half_height = (0.46 * side / max(picture.size) for side in picture.size)
            bottom = -0.54 - (0.46 - half_height) * CELL / row
            axes.imshow(
                picture,
                extent=(column - half_width, column + half_width, bottom, bottom - 2 * half_height * CELL / row),
            )
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5 - CELL / row), aspect="auto", xticks=[])
        axes.set_yticks(range(rows), names, fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"cosines, {visible(found.model)}, {found.backend}", fontsize=8)
    return figure


def bars(found: Similarities, pictures: Sequence[Image.Image]) -> Figure:
    """Each picture beside its cosine with every text, the highest in another colour."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        height = max(2.2, 0.3 * len(found.texts) + 0.6)
        figure = Figure(figsize=(9, height * len(pictures)), layout="constrained")
        rows = figure.subplots(len(pictures), 2, squeeze=False, width_ratios=(1, 3))
        for (left, right), picture, name, cosines in zip(rows, pictures, found.images, found.cosines):
            left.imshow(small(picture))
            left.set_axis_off()
            left.set_title(fill(visible(Path(name).name), 24), fontsize=8)
            places = range(len(cosines))
            drawn = right.barh(places, cosines, color=[BEST if x == cosines.max() else OTHER for x in cosines])
            right.bar_label(drawn, [f"{cosine:.3f}" for cosine in cosines], padding=3, fontsize=8)
            right.set_yticks(places, [fill(visible(text), WRAP) for text in found.texts], fontsize=8)
            right.set_xlim(min(0, 1.2 * found.cosines.min()), 1.2 * max(0.01, found.cosines.max()))
            right.set_xticks([])
            right.invert_yaxis()
            right.spines[["top", "right", "bottom"]].set_visible(False)
        figure.suptitle(f"cosines, {visible(found.model)}, {found.backend}", fontsize=9)
    return figure
