"""``clip models``: the architectures that are known by name, and which of them can be loaded by it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from clip.command.output import Json, console, print_json, print_table
from clip_core.models import NamedArchitecture, NamedModel, everything
from clip_core.naming import count

COLUMNS = ("name", "image_tower", "text_tower", "resolution", "context", "parameters", "image_gflops", "text_gflops")


def run(json: Json = False) -> None:
    """List the models that can be loaded by name, and the architectures that recipes know by name."""
    rows = [_row(named) for named in everything()]
    if json:
        print_json(rows)
        return
    for family, members in groupby(rows, key=lambda row: row["family"]):
        of_family = list(members)
        first = of_family[0]
        print_table(COLUMNS, ([row[name] for name in COLUMNS] for row in of_family), title=family)
        console.print(f"tokenizer: {first['tokenizer']}; files: {first['files']}; weights: {first['weights']}")
        console.print()


def _row(named: NamedModel | NamedArchitecture) -> dict[str, Any]:
    architecture = named.architecture
    image, text, embed_dim = architecture.image, architecture.text, architecture.embed_dim
    row = {
        "name": named.name,
        "family": named.family.name,
        "image_tower": image.title,
        "text_tower": text.title,
        "resolution": image.resolution,
        "context": text.context_length,
        "embed_dim": embed_dim,
        "parameters": count(architecture),
        "image_gflops": round(2e-9 * image.multiplications(embed_dim), 2),
        "text_gflops": round(2e-9 * text.multiplications(embed_dim), 2),
        "tokenizer": named.family.tokenizer,
        "files": named.family.files,
    }
    if isinstance(named, NamedModel):
        weights = "embedded in this package" if named.url is None else "fetched from OpenAI"
        return row | {"weights": weights, "url": named.url, "sha256": named.sha256}
    return row | {"weights": "from a file or a training", "url": None, "sha256": None}
