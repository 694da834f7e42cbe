"""Contact sheets: small pictures in rows and columns, each with a line below it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, NamedTuple

from clip.figures import small
from clip_core.errors import ClipError, visible
from clip_core.image import open_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
MOST_CELLS = 400
MOST_CHARACTERS = 28  # of a line below a picture
CELL, LINES, HEADING = 1.7, 0.42, 0.32  # inches: of a picture, of the lines below it, and of a heading


class Cell(NamedTuple):
    """A picture; one that cannot be read leaves its place empty."""

    path: str
    line: str  # below its name


class Row(NamedTuple):
    """Pictures that belong together."""

    heading: str
    cells: Sequence[Cell]


def check(cells: int) -> None:
    """Refuse what is too large to be drawn.

    Raises:
        ClipError: there are too many pictures.
    """
    if cells > MOST_CELLS:
        raise ClipError(f"{cells} pictures are too many for one drawing, which has room for {MOST_CELLS}; draw fewer.")


def contact_sheet(rows: Sequence[Row], columns: int = COLUMNS) -> Figure:
    """Each row with its heading, its pictures in as many lines as they need."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = [-(-len(row.cells) // columns) for row in rows]
    width, height = columns * CELL, sum(HEADING + of_row * (CELL + LINES) for of_row in lines)
    with rc_context({"text.parse_math": False}):  # a name may have dollar signs
        figure = Figure(figsize=(width, height))
        top = 0.0  # inches from the upper edge
        for row, of_row in zip(rows, lines):
            heading = visible(row.heading)
            figure.text(0.05 / width, 1 - (top + 0.22) / height, heading, fontsize=10, fontweight="bold")
            top += HEADING
            for place, cell in enumerate(row.cells):
                line, column = divmod(place, columns)
                upper = top + line * (CELL + LINES)
                bottom = 1 - (upper + CELL) / height
                axes = figure.add_axes(((column + 0.03) * CELL / width, bottom, 0.94 * CELL / width, CELL / height))
                axes.set(xticks=[], yticks=[])
                name = shorten(visible(Path(cell.path).name), MOST_CHARACTERS, placeholder="…")
                axes.set_xlabel(f"{name}\n{visible(cell.line)}", fontsize=7, labelpad=2)
                picture = None
                with suppress(ClipError):
                    picture = small(open_image(cell.path))
                if picture is None:
                    axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=7, color="#888888")
                    axes.spines[:].set_color("#cccccc")
                else:
                    axes.imshow(picture)
                    axes.spines[:].set_visible(False)
            top += of_row * (CELL + LINES)
    return figure
