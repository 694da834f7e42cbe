"""``clip data``: from texts and lists of addresses to data that a recipe reads."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Json, print_fields, print_json
from clip.command.progress import Bar
from clip_core import files
from clip_core.data.collection import downloads, lists
from clip_core.data.collection import index as indexing
from clip_core.data.collection.downloads import DESCRIPTION, FAULTS, TABLE, TABLE_COLUMNS, Plan
from clip_core.data.collection.fetching import Limits
from clip_core.data.collection.lists import Columns
from clip_core.data.collection.words import MINIMUM, count_words
from clip_core.errors import ClipError

app = typer.Typer(no_args_is_help=True, help="Collect pictures with captions, and write the tables that recipes read.")

Lists = Annotated[
    list[Path], typer.Argument(metavar="LIST...", help="Lists of pictures: .csv, .tsv, .json, .jsonl or .parquet.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
ImageColumn = Annotated[
    str | None, typer.Option(help="The column of the addresses or paths; by default one with a usual name.")
]
CaptionColumn = Annotated[
    str | None, typer.Option(help="The column of the captions; by default one with a usual name.")
]
SmallestSide = Annotated[
    int, typer.Option("--min-side", min=1, help="Leave out pictures with fewer pixels on their shorter side.")
]


class Form(str, Enum):
    """A folder of pictures with a table, or shards as img2dataset writes them."""

    FOLDER = "folder"
    WEBDATASET = "webdataset"


@app.command()
def words(
    dump: Annotated[Path, typer.Argument(help="pages-articles.xml.bz2, or pages-articles-multistream.xml.bz2.")],
    output: Output,
    minimum: Annotated[int, typer.Option(min=1, help="Leave out words that stand less often.")] = MINIMUM,
    force: Force = False,
    json: Json = False,
) -> None:
    """Count the words of a Wikipedia dump; an interrupted count of a multistream dump goes on where it was."""
    files.check_target(output, [dump], force)
    bar = Bar()
    with bar.shown():
        work = output.with_name(f"{output.name}.counting")
        counted = count_words(dump, work, minimum, lambda done, size: bar("MiB", done >> 20, size >> 20, 0))
    with files.atomic_open(output, replace=force) as file:
        file.write(b"word\ttimes\n")
        file.writelines(f"{word.word}\t{word.times}\n".encode() for word in counted.words)
    _report(output, {"articles": counted.articles, "words": len(counted.words)}, json)


@app.command()
def join(
    paths: Lists,
    output: Output,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Join lists of pictures into one CSV, without rows that lack something and without repetitions."""
    files.check_target(output, paths, force)
    joined = lists.join(paths, output, Columns(image_column, caption_column), force)
    _report(output, joined._asdict(), json)


@app.command()
def corpus(
    paths: Lists, output: Output, caption_column: CaptionColumn = None, force: Force = False, json: Json = False
) -> None:
    """Write the captions of lists, one on each line, for `clip tokenizer train`."""
    files.check_target(output, paths, force)
    _report(output, {"captions": lists.write_corpus(paths, output, caption_column, force)}, json)


@app.command()
def download(
    path: Annotated[Path, typer.Argument(metavar="LIST", help="A .csv, .tsv, .json, .jsonl or .parquet of addresses.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; a new folder, or one to go on with.")],
    format: Annotated[Form, typer.Option(help="Pictures with a table, or shards.")] = Form.FOLDER,
    part: Annotated[int, typer.Option(min=1, max=100_000, help="Rows in a subfolder or shard.")] = Plan.part,
    min_side: SmallestSide = Plan.smallest_side,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    threads: Annotated[int, typer.Option(min=1, max=1000, help="Pictures that are fetched at once.")] = 20,
    per_host: Annotated[
        float, typer.Option(min=0.01, help="Requests in a second to one host.")
    ] = Limits.requests_per_second,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts to fetch a picture.")] = Limits.attempts,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an attempt may take.")] = Limits.seconds,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes that a picture may have.")] = Limits.size,
    private: Annotated[
        bool, typer.Option("--private", help="Fetch from this machine and from private networks, too.")
    ] = False,
    json: Json = False,
) -> None:
    """Fetch the pictures of a list; an interrupted download goes on where it was."""
    plan = Plan(format.value, part, min_side, Columns(image_column, caption_column))
    limits = Limits(timeout, max_bytes, attempts, per_host, private)
    bar = Bar()
    with bar.shown():
        made = downloads.download(
            path,
            folder,
            plan,
            limits,
            threads,
            lambda now: bar("pictures", now.done, now.rows, now.done - now.pictures),
        )
    last = -(-made.rows // part) - 1
    source = (
        {"kind": "table", "file": str(folder / TABLE), "separator": ","}
        if format is Form.FOLDER
        else {"kind": "webdataset", "shards": str(folder / f"{{00000..{last:05}}}.tar")}
    )
    if json:
        print_json({**made._asdict(), "fault_list": str(folder / FAULTS), "source": source})
    else:
        print_fields({**made._asdict(), "fault_list": folder / FAULTS, "data.source": source})


@app.command()
def index(
    table: Annotated[
        Path, typer.Argument(metavar="DIR|LIST", help="A folder of clip data download, or a list of paths.")
    ],
    output: Output,
    min_side: SmallestSide,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where relative paths start; by default the list's own folder.")
    ] = None,
    image_column: Annotated[str, typer.Option(help="The column of paths in the table that is written.")] = "filepath",
    caption_column: Annotated[str, typer.Option(help="The column of captions in it.")] = "title",
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the table of the pictures that can be used and are large enough."""
    columns = lists.USUAL
    if table.is_dir():
        table, columns = _table_in(table), TABLE_COLUMNS
    files.check_target(output, [table], force)
    images = images or table.parent
    bar = Bar()
    with bar.shown():
        made = indexing.index(
            table,
            images,
            output,
            min_side,
            columns=columns,
            names=(image_column, caption_column),
            replace=force,
            progress=lambda done, rows: bar("pictures", done, rows, 0),
        )
    source = {"kind": "table", "file": str(output), "images": str(images), "separator": ","}
    source |= {"image_column": image_column, "caption_column": caption_column}
    if json:
        print_json({**made._asdict(), "source": source})
    else:
        print_fields({**made._asdict(), "data.source": source})


def _table_in(folder: Path) -> Path:
    """The table of a folder that `download` has filled."""
    if not (folder / TABLE).is_file():
        kind = "unfinished or has shards" if (folder / DESCRIPTION).is_file() else "none of clip data download"
        raise ClipError(f"{folder} has no {TABLE}: it is {kind}; finish its download, or give a list.")
    return folder / TABLE


def _report(output: Path, counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_json({"path": str(output), **counts})
    else:
        print_fields({"path": output, **counts})
