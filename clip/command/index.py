"""``clip index``: make embeddings an index, change it, and say what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import filesize

from clip.command.output import Force, Json, console, print_fields, print_json
from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError

app = typer.Typer(no_args_is_help=True, help="Make embeddings an index, change it, and say what it holds.")

Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")]
Embeddings = Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="A folder that clip embed wrote.")]


@app.command()
def build(
    embeddings: Embeddings,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the index.")],
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Search faster on millions of rows, and miss some of what is near.")
    ] = False,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Of --approximate: what it has to find of the 10 nearest of a sample.")
    ] = 0.95,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make an index of embeddings, whole or not at all."""
    from clip_core.search import store

    built = store.build(output, Parts(embeddings), force=force, approximate=approximate, least_recall=min_recall)
    if json:
        print_json({"path": str(output), "rows": len(built), "recall": built.recall})
        return
    console.print(f"{output} has {len(built)} rows")
    if built.recall is not None:
        console.print(f"recall@{store.NEIGHBOURS} on a sample: {built.recall:.3f}")


@app.command()
def add(index: Folder, embeddings: Embeddings, json: Json = False) -> None:
    """Add embeddings; a row whose id is there is replaced if its file has changed, and else left as it is."""
    from clip_core.search.store import Store

    change = Store(index).add(Parts(embeddings))
    if json:
        print_json(change._asdict())
    else:
        print_fields(change._asdict())


@app.command()
def remove(
    index: Folder,
    ids: Annotated[list[str] | None, typer.Option("--id", help="An id; may be given several times.")] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option("--path", help="A pattern of paths ('photos/2019/*'), of texts one of texts; several times."),
    ] = None,
    where: Annotated[str | None, typer.Option(help="A condition on the columns ('width < 100').")] = None,
    json: Json = False,
) -> None:
    """Remove the rows that have one of the ids, fit one of the patterns, or meet the condition."""
    from clip_core.search.store import Store

    if not ids and not paths and where is None:
        raise ClipError("Nothing says which rows to remove; give --id, --path or --where.")
    removed = Store(index).remove(ids or (), paths or (), where)
    if json:
        print_json({"removed": removed})
    else:
        print_fields({"removed": removed})


@app.command()
def info(index: Folder, json: Json = False) -> None:
    """Say what an index holds, and what made it."""
    from clip_core.search import store

    found = store.Store(index).info()
    if json:
        print_json(found)
        return
    recall = "" if found["recall"] is None else f", recall@{store.NEIGHBOURS} {found['recall']:.3f} when it was built"
    print_fields(
        {
            found["kind"]: found["rows"],
            "model": f"{found['model']}, in {found['backend']}, {found['precision']}",
            "vectors": f"{found['dimension']} numbers of {found['dtype']}",
            "search": found["search"] + recall,
            "size": filesize.decimal(found["bytes"]),
            "columns": ", ".join(found["columns"]),
            "preprocessing": _listed(found["preprocessing"]),
            "versions": _listed(found["versions"]),
            "digest of the weights": found["weights"],
            "digest of the tokenizer": found["tokenizer"],
            "version of the table": found["table_version"],
        }
    )


def _listed(named: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())
