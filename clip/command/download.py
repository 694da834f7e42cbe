"""``clip download``: fetch official weights once, resumable and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip.api import refuse_architecture, weights_file
from clip.command.output import Json, print_json
from clip.command.progress import downloading
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
    with downloading(name) as progress:
        path, model = weights_file(name, folder, progress)
    if json:
        print_json({"name": name, "path": str(path), "sha256": model.sha256 if model else None})
    else:
        print(path)
