"""How commands print: JSON for machines, tables for people."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console as RichConsole
from rich.table import Table

import backends
from clip_core.errors import ClipError, visible
from clip_core.towers.parts import ACTIVATIONS

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Backend = Annotated[
    str | None, typer.Option(help="torch, paddle, nnabla or numpy; by default the first that is installed.")
]
Backends = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "--backends",
        help="torch, paddle, nnabla or numpy, several with commas, or all that are installed; several are compared.",
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME|FILE", help="A model's name, a weights file, or a folder with one.")]
Labels = Annotated[list[str] | None, typer.Option(help="Labels, separated by commas; may be given several times.")]
LabelsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A UTF-8 text file with one label a line, which may have commas.")
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the model.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")]
Prefix = Annotated[
    str | None, typer.Option(help="Of a file with several CLIPs, take the one whose names start like this: teacher.")
]
Like = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="The file that it was fine-tuned from, which tells what weights do not, and the vocabulary; or a name "
        "that clip models lists.",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(help=f"{', '.join(ACTIVATIONS)}: of both towers, where neither the file nor a configuration says it."),
]
Heads = Annotated[
    str | None,
    typer.Option(metavar="IMAGE,TEXT", help="Heads of each tower, where nothing says them and they are not 64 wide."),
]
Device = Annotated[
    str | None,
    typer.Option(help="The framework's own name of a device, such as cuda; by default the first that works."),
]
Precision = Annotated[str, typer.Option(help="fp32; PyTorch and Paddle also take bf16 and fp16.")]

FILE_WIDTH = 200  # a file or pipe has no width of its own
WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else FILE_WIDTH


class Console(RichConsole):
    """Shows names as they are: brackets and colons in them are neither markup nor emoji, and each text is one line."""

    def __init__(self, **options: Any):
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(value) if isinstance(value, str) else value for value in objects), **options)


console = Console(width=WIDTH)
errors = Console(stderr=True)


def backends_of(text: str | None) -> list[str] | None:
    """The backends that ``--backends`` names; None: the default one.

    Raises:
        ClipError: it names none.
    """
    if text is None:
        return None
    if text == "all":
        return backends.available()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ClipError(
            f"--backends is {text!r:.40}; give one of {', '.join(backends.NAMES)}, several with commas, or all."
        )
    return list(dict.fromkeys(names))


def heads_of(text: str | None) -> tuple[int, int] | None:
    """The two numbers of ``--heads``.

    Raises:
        ClipError: it is not two whole numbers.
    """
    if text is None:
        return None
    numbers = text.split(",")
    if len(numbers) != 2 or not all(number.strip().isdecimal() and len(number) < 10 for number in numbers):
        raise ClipError(f"--heads is {text!r:.40}; give two numbers, of the image and of the text tower: --heads 12,8.")
    return int(numbers[0]), int(numbers[1])


def print_json(value: Any) -> None:
    """One JSON value on standard output, in ASCII, which every terminal and pipe can carry."""
    print(json.dumps(value, indent=2, allow_nan=False))


def lines_of_csv(rows: Iterable[Iterable[object]]) -> str:
    """Rows as RFC 4180 has them."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def shortened(names: Sequence[str]) -> str:
    """The number of ``names`` and the first of them; of none, nothing."""
    return f"{len(names)}: {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}" if names else ""


def print_fields(fields: dict[str, Any]) -> None:
    """Names beside values; only in a terminal, which may have to fold them, are they a table."""
    if not console.is_terminal:
        width = max(map(len, fields))
        for name, value in fields.items():
            console.print(f"{name.replace('_', ' '):<{width}}  {value}".rstrip())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), visible(str(value)))
    console.print(table)


def print_table(
    columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None, to: Console = console
) -> None:
    """Rows under column heads; numbers to the right."""
    cells = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, title=title and visible(title), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(cells) and isinstance(cells[0][index], int | float)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(visible(str(value)) for value in row))
    to.print(table)
