"""``clip models``: the architectures that are known by name, and which of them can be loaded by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from textwrap import fill
from typing import Annotated, Any

import typer

from clip.command.output import Json, console, print_json, print_table
from clip_core.models import MODELS, NamedArchitecture, NamedModel, everything
from clip_core.naming import count

WIDTH = 80  # columns of the narrowest usual terminal
COLUMNS = ("name", "pixels", "tokens", "parameters", "GFLOPs image + text")


def run(
    json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a table of the families for a document.")] = False,
) -> None:
    """List the models that can be loaded by name, and the architectures that recipes know by name."""
    rows = [_row(named) for named in everything()]
    if json:
        print_json(rows)
        return
    families = [list(members) for _, members in groupby(rows, key=lambda row: row["family"])]
    if markdown:
        print(families_as_markdown(families))
        return
    for of_family in families:
        first = of_family[0]
        for towers, members in groupby(of_family, key=_towers):
            print_table(COLUMNS, map(_cells, members), title=f"{first['family']}: {towers}")
        by_name = "loaded by name" if first["name"] in MODELS else "not loaded by name"
        for key, value in (
            ("tokenizer", first["tokenizer"]),
            ("files", first["files"]),
            ("weights", f"{first['weights']}, {by_name}"),
        ):
            for line in fill(f"{key}: {value}", WIDTH, subsequent_indent="  ").splitlines():
                console.print(line)
        console.print()


def _towers(row: dict[str, Any]) -> str:
    return f"{row['image_tower']} + {row['text_tower']}"


def _cells(row: dict[str, Any]) -> list[Any]:
    work = f"{_rounded(row['image_gflops'])} + {_rounded(row['text_gflops'])}"
    return [row["name"], row["resolution"], row["context"], f"{_rounded(row['parameters'] / 1e6)} M", work]


def families_as_markdown(families: Iterable[list[dict[str, Any]]]) -> str:
    """One row for each family: what its models are made of, how large they are, and what loads into them."""
    lines = ["| family | models | towers | parameters | GFLOPs of a picture | tokenizer | files that load |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for rows in families:
        names = ", ".join(f"`{row['name']}`" for row in rows[:3]) + (f" and {len(rows) - 3} more" if rows[3:] else "")
        images, texts = (
            " or ".join(dict.fromkeys(row[f"{place}_tower"] for row in rows)) for place in ("image", "text")
        )
        size = _range([row["parameters"] / 1e6 for row in rows], " M")
        work = _range([row["image_gflops"] for row in rows], "")
        cells = (rows[0]["family"], names, f"{images} + {texts}", size, work, rows[0]["tokenizer"], rows[0]["files"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: Sequence[float], unit: str) -> str:
    low, high = min(values), max(values)
    return f"{_rounded(low)}{unit}" if low == high else f"{_rounded(low)} to {_rounded(high)}{unit}"


def _rounded(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):g}"


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
