"""The pictures of a list of addresses, fetched into a folder or into WebDataset shards.

A folder gets the pictures and a table of them::

    images.csv                    filepath,title,url,width,height
    images/00000/000000042.jpg    of row 42 of the list; each subfolder has the rows of one part
    faults.jsonl                  {"row": 43, "url": ..., "caption": ..., "fault": ...} of each row without a picture

Shards are as img2dataset writes them::

    00000.tar                     000000042.jpg, .txt (the caption) and .json (url, width, height, row) of each picture
    00000_stats.json              {"count": 1000, "successes": 871}
    faults.jsonl                  as above

The list of faults is a list of pictures itself, so what it has can be tried again, into another folder.

What a server sends is decoded once, so every picture can be read, and kept as it was sent. The work goes on part by
part. What is known of a finished part is in ``parts/``, until all parts are; then the table and the list of faults
appear, and ``parts/`` goes. A download that was interrupted goes on: finished parts are not looked at again, and of
unfinished ones, pictures that are there are kept. ``download.json`` says what is being downloaded.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Semaphore
from typing import Any, Literal, NamedTuple

from clip_core import files
from clip_core.data.collection.fetching import Fetcher, Limits
from clip_core.data.collection.lists import USUAL, Columns, Row, read_list, write_csv
from clip_core.data.listing import read_json
from clip_core.errors import ClipError, DownloadError, ImageError
from clip_core.image import open_image

Format = Literal["folder", "webdataset"]

DESCRIPTION = "download.json"
TABLE = "images.csv"
TABLE_COLUMNS = Columns("filepath", "title")
FAULTS = "faults.jsonl"

_PARTS = "parts"
_AT_ONCE = 2  # parts, so that one slow server does not keep all threads waiting
_DECODED_AT_ONCE = 4  # pictures, which take up to 256 MiB each while they are decoded
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"} | {
    "TIFF": ".tif",
    "PPM": ".ppm",
}


@dataclass(frozen=True)
class Plan:
    """What a download makes; a folder holds one."""

    format: Format = "folder"
    part: int = 1000  # rows of the list in a subfolder or shard
    smallest_side: int = 1  # pixels of the shorter side
    columns: Columns = USUAL


class Summary(NamedTuple):
    rows: int
    pictures: int
    faults: int


class Progress(NamedTuple):
    done: int  # rows
    rows: int
    pictures: int


def download(
    source: Path,
    folder: Path,
    plan: Plan,
    limits: Limits,
    threads: int = 20,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Fetch all pictures of the list ``source`` into ``folder``, or go on with that.

    Raises:
        ClipError: the list cannot be read, no picture could be fetched, or the folder holds something else or cannot be
            written.
    """
    with files.exclusive(folder, "download"):
        made = _described(source, folder, plan)
        if made is None:
            total = sum(1 for _ in read_list(source, plan.columns))  # finds what is wrong with the list before the work
            if not total:
                raise ClipError(f"{source} has no rows; give a list of pictures.")
            made = _Work(source, folder, plan, Fetcher(limits), total, progress).run(threads)
            description = _description(source, plan) | {"finished": made._asdict()}
            files.write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
        shutil.rmtree(folder / _PARTS, ignore_errors=True)
    return made


def _described(source: Path, folder: Path, plan: Plan) -> Summary | None:
    """Write down what is being downloaded, or compare; gives what was made where that is finished.

    Raises:
        ClipError: the folder holds something else.
    """
    path, wanted = folder / DESCRIPTION, _description(source, plan)
    if not path.exists():
        if any(name != files.LOCK for name in os.listdir(folder)):
            raise ClipError(f"{folder} has files of something else; give a new folder.")
        files.write_text(path, json.dumps(wanted, indent=2) + "\n")
        return None
    found = read_json(str(path))
    finished = found.pop("finished", None) if isinstance(found, dict) else None
    if found != wanted:
        raise ClipError(
            f"{folder} holds a download of another list or with other options, as {path} says; give another folder."
        )
    try:
        return finished and Summary(**finished)
    except TypeError as error:
        raise ClipError(f"{path} is not as it was written; delete it to look at all parts again.") from error


def _description(source: Path, plan: Plan) -> dict[str, Any]:
    return {"list": files.sha256(source), **asdict(plan), "columns": list(plan.columns)}


class _Work:
    """One download, from its first part that is not finished."""

    def __init__(
        self,
        source: Path,
        folder: Path,
        plan: Plan,
        fetcher: Fetcher,
        total: int,
        progress: Callable[[Progress], None],
    ):
        self._source, self._folder, self._plan, self._fetcher = source, folder, plan, fetcher
        self._total, self._progress = total, progress
        self._done = self._pictures = 0
        self._decoding = Semaphore(_DECODED_AT_ONCE)

    def run(self, threads: int) -> Summary:
        (self._folder / _PARTS).mkdir(exist_ok=True)
        waiting: deque[tuple[int, list[Future[dict[str, Any]]]]] = deque()
        pool = ThreadPoolExecutor(threads)
        try:
            for number, rows in enumerate(self._parts()):
                if self._record(number).exists():
                    self._count(self._records(number))
                    continue
                pictures = self._pictures_of(number)
                pictures.mkdir(parents=True, exist_ok=True)
                there = {path.stem: path for path in pictures.iterdir() if not path.name.startswith(".")}
                first = number * self._plan.part
                waiting.append(
                    (
                        number,
                        [
                            pool.submit(self._fetch, place, row, pictures, there)
                            for place, row in enumerate(rows, first)
                        ],
                    )
                )
                if len(waiting) > _AT_ONCE:
                    self._finish(*waiting.popleft())
            while waiting:
                self._finish(*waiting.popleft())
        except BaseException:
            self._fetcher.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return self._publish()

    def _parts(self) -> Iterator[list[Row]]:
        rows = read_list(self._source, self._plan.columns)
        while part := list(islice(rows, self._plan.part)):
            yield part

    def _pictures_of(self, number: int) -> Path:
        """Where the pictures of a part lie; those of a shard until it is packed."""
        return self._folder / ("images" if self._plan.format == "folder" else _PARTS) / f"{number:05}"

    def _record(self, number: int) -> Path:
        return self._folder / _PARTS / f"{number:05}.jsonl"

    def _records(self, number: int) -> Iterator[dict[str, Any]]:
        with files.open_regular(self._record(number)) as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ClipError(
                        f"{self._record(number)} is not as it was written; delete it to look at its part again."
                    ) from error

    def _fetch(self, place: int, row: Row, pictures: Path, there: dict[str, Path]) -> dict[str, Any]:
        """What becomes of a row: a picture in its file, or a fault."""
        record = {"row": place, "url": row.picture, "caption": row.caption}
        try:
            if not row.picture or not row.caption:
                lacking = "caption" if row.picture else "address"
                raise DownloadError(f"Row {place} of {self._source} has no {lacking}.")
            path = there.get(f"{place:09}")
            data = self._fetcher.fetch(row.picture) if path is None else files.read_regular(path)
            with self._decoding:
                try:
                    image = open_image(data)
                except ImageError as error:
                    raise DownloadError(str(error).replace("The picture given as bytes", row.picture[:200])) from error
                width, height, suffix = *image.size, _SUFFIXES[str(image.format)]
            if min(width, height) < self._plan.smallest_side:
                raise DownloadError(
                    f"{row.picture[:200]} has {width} x {height} pixels, and no side may have fewer than "
                    f"{self._plan.smallest_side}."
                )
            if path is None:
                path = pictures / f"{place:09}{suffix}"
                files.write_bytes(path, data)
        except DownloadError as error:
            return record | {"fault": str(error)}
        return record | {"file": path.name, "width": width, "height": height}

    def _finish(self, number: int, fetched: Iterable[Future[dict[str, Any]]]) -> None:
        """Wait for the rows of a part, and write it down as finished."""
        records = []
        for future in fetched:
            records.append(future.result())
            self._count(records[-1:])
        if self._plan.format == "webdataset":
            self._pack(number, [record for record in records if "file" in record], len(records))
        lines = [json.dumps(record) + "\n" for record in records]
        files.write_text(self._record(number), "".join(lines))
        if self._plan.format == "webdataset":
            shutil.rmtree(self._pictures_of(number))

    def _count(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self._done += 1
            self._pictures += "file" in record
        self._progress(Progress(self._done, self._total, self._pictures))

    def _pack(self, number: int, records: list[dict[str, Any]], rows: int) -> None:
        """Write the pictures of a part into its shard, in the order of the list."""
        with files.atomic_open(self._folder / f"{number:05}.tar") as file, tarfile.open(fileobj=file, mode="w|") as tar:
            for record in records:
                data = files.read_regular(self._pictures_of(number) / record["file"])
                stem, _, suffix = record["file"].partition(".")
                known = {key: record[key] for key in ("url", "width", "height", "row")}
                members = {suffix: data, "txt": record["caption"].encode("utf-8", "replace")}
                for ending, content in (members | {"json": json.dumps(known).encode()}).items():
                    header = tarfile.TarInfo(f"{stem}.{ending}")
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
        statement = {"count": rows, "successes": len(records)}
        files.write_text(self._folder / f"{number:05}_stats.json", json.dumps(statement) + "\n")

    def _publish(self) -> Summary:
        """Write the table and the list of faults."""
        if not self._pictures:
            fault = next(self._all("fault"))["fault"]
            shutil.rmtree(self._folder / _PARTS)  # a network that was down does not make the faults final
            raise ClipError(f"None of the {self._total} pictures of {self._source} could be fetched: {fault}")
        if self._plan.format == "folder":
            names = (*TABLE_COLUMNS, "url", "width", "height")
            write_csv(self._folder / TABLE, names, map(self._table_row, self._all("file")), replace=True)
        with files.atomic_open(self._folder / FAULTS) as file:
            for record in self._all("fault"):
                file.write(json.dumps(record).encode() + b"\n")
        return Summary(self._total, self._pictures, self._total - self._pictures)

    def _table_row(self, record: dict[str, Any]) -> tuple[object, ...]:
        picture = self._pictures_of(record["row"] // self._plan.part) / record["file"]
        path = picture.relative_to(self._folder).as_posix()
        return path, record["caption"], record["url"], record["width"], record["height"]

    def _all(self, key: str) -> Iterator[dict[str, Any]]:
        """The records of all parts that have this key."""
        for number in range(-(-self._total // self._plan.part)):
            yield from (record for record in self._records(number) if key in record)
