"""``clip download``: fetch official weights once, resumable and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from clip.api import refuse_architecture, weights_file
from clip.command.output import Json, errors, print_json
from clip_core.errors import ClipError
from clip_core.models import MODELS


def run(
    name: Annotated[str, typer.Argument(help="A name that `clip models` lists.")],
    folder: Annotated[Path | None, typer.Option(help="Where to; by default the user's cache folder.")] = None,
    json: Json = False,
) -> None:
    """Fetch a model's official weights; an interrupted download goes on where it stopped."""
    if name not in MODELS:
        refuse_architecture(name)
        raise ClipError(f"There is no model {name!r}; the models are {', '.join(MODELS)}.")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task(name, total=None)
        path, model = weights_file(
            name, folder, progress=lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if json:
        print_json({"name": name, "path": str(path), "sha256": model.sha256 if model else None})
    else:
        print(path)
