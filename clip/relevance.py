"""Which parts of a picture make it similar to a text: the cosine without them, by windows that cover them.

Only features of pictures are computed, so that every backend and every image tower can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from clip.api import LoadedModel
from clip_core.errors import CheckpointError, ClipError, TextError, visible
from clip_core.evaluation.features import Progress, encode_texts, quiet
from clip_core.evaluation.zero_shot import image_features
from clip_core.pixels import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS = 8  # along one side of a map
WINDOW = 3  # cells along one side of what is covered at once
MOST_TEXTS = 30  # of a drawing; beyond them nobody reads it
PANEL, COLUMNS, WRAP, LINE = 3.0, 4, 34, 0.2  # inches of a panel, panels of a row, letters and inches of a title's line


@dataclass(frozen=True)
class Relevance:
    """How relevant each part of a picture is to each of m texts under one model.

    Args:
        pixels: float32 [3, r, r] of the picture, as the model sees it.
        cosines: float32 [m] of the whole picture.
        maps: float32 [m, CELLS, CELLS], how much that cosine falls, on the average, where a window covers this cell,
            above the fall of the cosine with an empty text; below 0 where the part speaks against the text.
    """

    model: str
    backend: str
    texts: list[str]
    pixels: np.ndarray
    cosines: np.ndarray
    maps: np.ndarray

    def highest(self, text: int) -> tuple[int, int]:
        """Row and column of the cell that is most relevant to the text of this number."""
        row, column = divmod(int(self.maps[text].argmax()), CELLS)
        return row, column

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        of_texts = zip(self.texts, self.cosines.tolist(), self.maps.tolist())
        return {
            "model": self.model,
            "backend": self.backend,
            "cells": CELLS,
            "window": WINDOW,
            "texts": [{"text": text, "cosine": cosine, "map": cells} for text, cosine, cells in of_texts],
        }


def relevance(
    loaded: LoadedModel, pixels: np.ndarray, texts: Sequence[str], truncate: bool = False, progress: Progress = quiet
) -> Relevance:
    """Cover one part of a picture after the other with the mean colour of the picture, and compare it with each text.

    The windows are squares of ``WINDOW`` by ``WINDOW`` cells at every place of the grid, those included that are partly
    outside, so that each cell is below as many windows: occlusion, as of Zeiler and Fergus (arXiv 1311.2901, section
    4.2). What a window takes from the cosine with any text whatever is subtracted, for which an empty text stands, as
    in CLIP Surgery (arXiv 2304.05653). The model computes (CELLS + WINDOW - 1) ** 2 + 1 pictures.

    Args:
        pixels: float32 [3, r, r] of the picture.
        truncate: cut texts that are too long for the model; otherwise they are refused.
        progress: told how many pictures are computed.

    Raises:
        TextError: there are no texts, or one cannot be used.
        CheckpointError: a feature is no finite number.
    """
    if not texts:
        raise TextError("There are no texts; give at least one.")
    *of_texts, of_none = encode_texts(loaded.model, loaded.model.tokenizer, [*texts, ""], truncate=truncate)
    directions = np.stack(of_texts) - of_none  # [m, d]
    edges = np.linspace(0, pixels.shape[-1], CELLS + 1).round().astype(int)
    starts = range(1 - WINDOW, CELLS)
    colour = pixels.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)[:, None, None]
    whole = image_features(loaded.model, pixels[None])[0]  # [d]
    sums = np.zeros((len(texts), CELLS, CELLS))
    for done, row in enumerate(starts, 1):
        covered = np.repeat(pixels[None], len(starts), axis=0)
        rows = slice(max(row, 0), row + WINDOW)
        for picture, column in zip(covered, starts):
            columns = slice(max(column, 0), column + WINDOW)
            picture[:, _span(edges, rows), _span(edges, columns)] = colour
        falls = (whole - image_features(loaded.model, covered)) @ directions.T  # [windows, m]
        for fall, column in zip(falls, starts):
            sums[:, rows, max(column, 0) : column + WINDOW] += fall[:, None, None]
        progress("pictures", done * len(starts), len(starts) ** 2, 0)
    maps = (sums / WINDOW**2).astype(np.float32)
    if not np.isfinite(maps).all():
        raise CheckpointError(
            f"{loaded.name} gives features that are not finite numbers; look at its weights with clip inspect."
        )
    return Relevance(loaded.name, loaded.model.backend, list(texts), pixels, np.stack(of_texts) @ whole, maps)


def _span(edges: np.ndarray, cells: slice) -> slice:
    """The pixels along one side that these cells have."""
    return slice(edges[cells.start], edges[min(cells.stop, CELLS)])


def check_drawing(texts: int) -> None:
    """Refuse what is too large to be drawn.

    Raises:
        ClipError: there are too many texts.
    """
    if texts > MOST_TEXTS:
        raise ClipError(f"{texts} texts are too many for one drawing, which has room for {MOST_TEXTS}; draw fewer.")


def drawing(found: Relevance, wanted: Pixels) -> Figure:
    """The picture as the model sees it, and a panel for each text with its map over it, all on one scale.

    Args:
        wanted: the preprocessing of the model, which the pixels had.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = found.pixels.transpose(1, 2, 0) * np.array(wanted.deviation) + np.array(wanted.mean)
    picture = np.clip(colours, 0, 1)
    side, limit = picture.shape[0], float(np.abs(found.maps).max()) or 1.0
    panels = 1 + len(found.texts)
    columns = min(panels, COLUMNS)
    rows = -(-panels // columns)
    titles = [f"{fill(visible(text), WRAP)}\ncosine {cosine:.3f}" for text, cosine in zip(found.texts, found.cosines)]
    height = PANEL + LINE * max(title.count("\n") + 2 for title in titles)
    with rc_context({"text.parse_math": False}):  # a text may have dollar signs
        figure = Figure(figsize=(PANEL * columns + 0.9, height * rows + 0.3), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for each in axes:
            each.set_axis_off()
        for each in axes[:panels]:
            each.imshow(picture, extent=(0, side, side, 0))
        axes[0].set_title("the picture", fontsize=9)
        for each, title, cells in zip(axes[1:], titles, found.maps):
            shown = each.imshow(
                cells,
                extent=(0, side, side, 0),
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                alpha=0.6,
                interpolation="bilinear",
            )
            each.set_title(title, fontsize=9)
        bar = figure.colorbar(shown, ax=axes[:panels].tolist(), shrink=0.8)
        bar.set_label("how much the part speaks for the text", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        figure.suptitle(f"{visible(found.model)}, {found.backend}", fontsize=8)
    return figure
