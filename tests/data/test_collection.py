"""Lists of pictures in every form, their download, and the table of what was downloaded."""

from __future__ import annotations

import csv
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from clip_core import files
from clip_core.data.collection import fetching
from clip_core.data.collection.downloads import Plan, Summary, download
from clip_core.data.collection.fetching import Limits
from clip_core.data.collection.index import index
from clip_core.data.collection.lists import Columns, Row, join, read_list, write_corpus
from clip_core.errors import ClipError
from tests.data.numbered import encoded, number_in, open_source, picture
from tests.serving import Pictures, answer, running

ROWS = [Row("http://a.example/1.jpg", 'one, "first"'), Row("http://a.example/2.jpg", "two\tüber"), Row("", "none")]
QUICK = Limits(seconds=10, attempts=1, requests_per_second=10_000, private=True)


# Lists


def written(folder: Path, name: str, rows: list[Row], columns: tuple[str, str]) -> Path:
    path = folder / name
    records = [dict(zip(columns, row)) for row in rows]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([*records, {columns[0]: float("nan"), columns[1]: 5}]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\r\n")
            writer.writerows([columns, *rows])
    return path


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("list.csv", ("URL", "TEXT")),
        ("list.jsonl", ("url", "caption")),
        ("list.parquet", ("URL", "TEXT")),
        ("words_00.json", ("image", "query")),
    ],
)
def test_every_form_of_a_list(tmp_path, name, columns):
    found = list(read_list(written(tmp_path, name, ROWS, columns)))
    assert found == ROWS + [Row("", "")] * (name == "words_00.json")


def test_lines_separated_by_tabs(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_bytes(b'caption\turl\r\n"a" b\thttp://a/1\r\n"c, ""d"""\thttp://a/2\r\n\r\n"e\thttp://a/3\r\n')
    assert list(read_list(path)) == [
        Row("http://a/1", '"a" b'),
        Row("http://a/2", 'c, "d"'),
        Row("http://a/3", '"e'),
    ]
    for first, second in (("http://a/1", "a caption"), ("a caption", "http://a/1")):
        path.write_text(f"{first}\t{second}\n" * 2)  # as Conceptual Captions are published
        assert list(read_list(path)) == [Row("http://a/1", "a caption")] * 2


def test_columns_are_given_or_found(tmp_path):
    path = written(tmp_path, "list.csv", ROWS, ("photo_image_url", "ai_description"))
    assert list(read_list(path, Columns(caption="ai_description"))) == ROWS
    for columns, part in (
        (
            Columns(),
            "'ai_description', and no column has a usual name (caption, text, title, query, q); name one by --c",
        ),
        (
            Columns("url", "ai_description"),
            "has no column 'url', only 'photo_image_url', 'ai_description'; give one of",
        ),
    ):
        with pytest.raises(ClipError) as caught:
            list(read_list(path, columns))
        assert part in str(caught.value)
    with pytest.raises(ClipError, match="several columns could be meant; name one by --image-column"):
        list(read_list(written(tmp_path, "both.csv", ROWS, ("url", "image")), Columns(None, "image")))


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("list.txt", b"", "is no list of pictures by its name; give a file that ends in .csv, .tsv"),
        ("list.csv", b"", "has the columns none"),
        ("list.csv", b"url,text\na,b,c\n", "has 3 fields in row 2, and 2 columns"),
        ("list.csv", b'url,text\na,"b\n', "cannot be read in or behind row 1"),
        ("list.tsv", b"url\ttext\n\xff\tb\n", "is not UTF-8 in or behind row 1"),
        ("list.jsonl", b'{"url": 1, "text": "a"}\n[', "has no JSON in line 2"),
        ("list.jsonl", b'"a"', "entry 1 is no object"),
        ("list.json", b"{}", "holds no list"),
        ("list.json", b"[" * 100_000, "is not JSON"),
        ("list.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_list(tmp_path, name, data, part):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClipError) as caught:
        list(read_list(tmp_path / name))
    assert part in str(caught.value)


def test_parquet_of_other_types_or_too_many_rows(tmp_path):
    path = tmp_path / "list.parquet"
    parquet.write_table(pyarrow.table({"image": [b"a"], "text": ["b"]}), path)
    with pytest.raises(ClipError, match="has the column image of type binary; give one of texts"):
        list(read_list(path))
    parquet.write_table(pyarrow.table({"url": ["a"] * 10**6, "text": ["b"] * 10**6}), path)
    with pytest.raises(ClipError, match="states 1000000 rows, more than it has bytes"):
        list(read_list(path))


def test_join_keeps_each_whole_row_once(tmp_path):
    first = written(tmp_path, "words_0.json", [*ROWS, ROWS[0]], ("image", "query"))
    second = written(tmp_path, "words_1.json", [ROWS[1], Row("http://a.example/2.jpg", "another")], ("image", "query"))
    target = tmp_path / "joined.csv"
    joined = join([first, second], target, Columns(), replace=False)
    assert joined._asdict() == {"rows": 8, "kept": 3, "incomplete": 3, "repeated": 2}
    assert target.read_text() == (
        'query,image\n"one, ""first""",http://a.example/1.jpg\ntwo\tüber,http://a.example/2.jpg\n'
        "another,http://a.example/2.jpg\n"
    )
    assert list(read_list(target)) == [ROWS[0], ROWS[1], Row(ROWS[1].picture, "another")]
    with pytest.raises(ClipError, match="no row has a picture and a caption"):
        join([written(tmp_path, "words_2.json", [ROWS[2]], ("image", "query"))], target, Columns(), replace=True)
    assert len(list(read_list(target))) == 3


def test_corpus_has_a_caption_on_each_line(tmp_path):
    first = written(tmp_path, "list.csv", [Row("a", " one\n two "), Row("b", ""), Row("c", "three")], ("IMG", "Q"))
    (tmp_path / "captions.jsonl").write_text('{"caption": "four"}\n{"caption": null}\n')
    assert write_corpus([first, tmp_path / "captions.jsonl"], tmp_path / "corpus.txt", None, replace=False) == 3
    assert (tmp_path / "corpus.txt").read_text() == "one two\nthree\nfour\n"
    (tmp_path / "captions.jsonl").write_text('{"caption": null}\n')
    with pytest.raises(ClipError, match="there is no caption; check the column"):
        write_corpus([tmp_path / "captions.jsonl"], tmp_path / "none.txt", None, replace=False)
    assert not (tmp_path / "none.txt").exists()


# Downloads


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)


@pytest.fixture
def server() -> Iterator[tuple[Pictures, str]]:
    """Pictures 0 to 9, and what else strangers have."""
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "PNG", "PNG", "PNG", "PNG", "PNG"]
    answers = {f"/{number}": encoded(number, kind) for number, kind in enumerate(kinds)}
    pictures = Pictures(answers | {"/page": b"<html>gone</html>", "/cut": answers["/1"][:-40]})
    with running(pictures.handler) as address:
        yield pictures, address


def listed(folder: Path, address: str, *names: object) -> Path:
    path = folder / "list.csv"
    path.write_text("url,caption\n" + "".join(f"{address}/{name},number {name}\n" for name in names))
    return path


def made(source: Path, folder: Path, plan: Plan, **options) -> Summary:
    return download(source, folder, plan, QUICK, **options)


def faults(folder: Path) -> dict[int, str]:
    return {line["row"]: line["fault"] for line in map(json.loads, (folder / "faults.jsonl").read_text().splitlines())}


def shown(kind: str, settings: dict) -> list[tuple[int, str]]:
    source = open_source(kind, settings, 0)
    examples = [source[place] for place in range(len(source))]
    return [(number_in(example.picture), *example.caption) for example in examples]


EXPECTED = [(number, f"number {number}") for number in range(6)]


def test_a_folder_with_a_table(tmp_path, server):
    pictures, address = server
    source, folder = listed(tmp_path, address, 0, 1, 2, "gone", 3, 4, "page", 5, "cut"), tmp_path / "folder"
    source.write_text(source.read_text() + f"{address}/6,\n,number 7\n")
    seen = []
    assert made(source, folder, Plan(part=4), progress=seen.append) == Summary(11, 6, 5)
    assert seen[-1] == (11, 11, 6)
    assert shown("table", {"file": str(folder / "images.csv"), "separator": ","}) == EXPECTED
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.name != ".lock") == [
        *("download.json", "faults.jsonl", "images.csv"),
        *(f"images/00000/00000000{end}" for end in ("0.png", "1.jpg", "2.webp")),
        *(f"images/00001/00000000{end}" for end in ("4.gif", "5.bmp", "7.png")),
    ]
    assert (folder / "images" / "00001" / "000000007.png").read_bytes() == pictures.answers["/5"]
    assert (folder / "images.csv").read_text().splitlines()[:2] == [
        "filepath,title,url,width,height",
        f"images/00000/000000000.png,number 0,{address}/0,8,8",
    ]
    found = faults(folder)
    assert list(found) == [3, 6, 8, 9, 10]
    assert found[3] == f"{address}/gone answers 404."
    assert found[6].startswith(f"{address}/page is text, perhaps a saved web page")
    assert found[8].startswith(f"{address}/cut cannot be decoded whole")
    assert found[9].endswith("list.csv has no caption.")
    assert found[10].endswith("list.csv has no address.")
    # What is finished is not fetched again, and what is another download is refused.
    pictures.asked.clear()
    assert made(source, folder, Plan(part=4)) == Summary(11, 6, 5)
    assert pictures.asked == []
    for other, plan in ((source, Plan(part=3)), (listed(tmp_path, address, 0), Plan(part=4))):
        with pytest.raises(ClipError, match="holds a download of another list or with other options"):
            made(other, folder, plan)
    with pytest.raises(ClipError, match="has files of something else; give a new folder"):
        made(source, tmp_path, Plan())


def test_shards(tmp_path, server):
    _, address = server
    source, folder = listed(tmp_path, address, 0, 1, 2, "gone", 3, 4, 5), tmp_path / "shards"
    assert made(source, folder, Plan("webdataset", part=3)) == Summary(7, 6, 1)
    assert sorted(path.name for path in folder.iterdir() if path.name != ".lock") == [
        *("00000.tar", "00000_stats.json", "00001.tar", "00001_stats.json", "00002.tar", "00002_stats.json"),
        *("download.json", "faults.jsonl"),
    ]
    assert shown("webdataset", {"shards": str(folder / "{00000..00002}.tar")}) == EXPECTED
    assert shown("webdataset", {"shards": str(folder / "00001.tar"), "json_key": "url"}) == [
        (number, f"{address}/{number}") for number in (3, 4)
    ]
    assert json.loads((folder / "00001_stats.json").read_text()) == {"count": 3, "successes": 2}
    assert list(faults(folder)) == [3]


def test_pictures_that_are_too_small(tmp_path, server):
    pictures, address = server
    pictures.answers["/small"] = encoded(0)
    picture(1, 20).save(tmp_path / "large.png")
    pictures.answers["/large"] = (tmp_path / "large.png").read_bytes()
    assert made(listed(tmp_path, address, "small", "large"), tmp_path / "out", Plan(smallest_side=20)) == (2, 1, 1)
    assert faults(tmp_path / "out") == {0: f"{address}/small has 8 x 8 pixels, and no side may have fewer than 20."}


@pytest.mark.parametrize("format", ["folder", "webdataset"])
def test_an_interrupted_download_goes_on(tmp_path, server, format):
    """Finished parts are not asked for again, nor pictures that are there."""
    pictures, address = server
    source, folder, plan = listed(tmp_path, address, *range(10)), tmp_path / "out", Plan(format, part=3)
    expected = tmp_path / "expected"
    made(source, expected, plan)
    pictures.asked.clear()
    release = threading.Event()

    def hang(handler) -> None:
        release.wait(20)

    own, pictures.answers["/7"] = pictures.answers["/7"], hang

    def interrupt(progress) -> None:
        if progress.done == 7:  # the rest of the third part waits for the server
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(source, folder, plan, progress=interrupt, threads=1)
    release.set()
    assert not (folder / "images.csv").exists()
    pictures.answers["/7"] = own
    pictures.asked.clear()
    assert made(source, folder, plan, threads=1) == Summary(10, 10, 0)
    assert sorted(set(pictures.asked)) == ["/7", "/8", "/9"]
    for path in expected.rglob("*.*"):
        assert (folder / path.relative_to(expected)).read_bytes() == path.read_bytes(), path
    assert not (folder / "parts").exists()


def test_when_no_picture_comes_all_are_tried_again(tmp_path, server):
    pictures, address = server
    source = listed(tmp_path, address, "late")
    with pytest.raises(ClipError, match=r"None of the 1 pictures of .* could be fetched: http.*/late answers 404"):
        made(source, tmp_path / "out", Plan())
    pictures.answers["/late"] = encoded(1)
    assert made(source, tmp_path / "out", Plan()) == Summary(1, 1, 0)


def test_faults_are_a_list(tmp_path, server):
    pictures, address = server
    made(listed(tmp_path, address, 0, "late"), tmp_path / "first", Plan())
    pictures.answers["/late"] = encoded(9)
    assert made(tmp_path / "first" / "faults.jsonl", tmp_path / "second", Plan()) == Summary(1, 1, 0)
    assert shown("table", {"file": str(tmp_path / "second" / "images.csv"), "separator": ","}) == [(9, "number late")]


def test_a_server_that_drops_all_is_a_fault_of_its_pictures(tmp_path, server):
    pictures, address = server
    pictures.answers["/drop"] = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)
    pictures.answers["/large"] = lambda handler: answer(handler, 200, Content_Length=10**10)
    assert made(listed(tmp_path, address, "drop", 1, "large"), tmp_path / "out", Plan()) == Summary(3, 1, 2)


def test_a_disk_that_is_full_ends_the_download(tmp_path, server, monkeypatch):
    _, address = server

    def full(path, data) -> None:
        raise ClipError(f"{path} cannot be written: No space left on device.")

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(ClipError, match="No space left"):
        made(listed(tmp_path, address, *range(10)), tmp_path / "out", Plan())


# The table for a training


def test_index(tmp_path):
    for number, side in enumerate((8, 112, 200)):
        picture(number, side).save(tmp_path / f"{number}.png")
    picture(3, 112).crop((0, 0, 112, 111)).save(tmp_path / "3.png")
    (tmp_path / "4.png").write_bytes(b"<html>")
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", ""]
    table = written(tmp_path, "list.csv", [Row(name, f"number {name}") for name in names], ("IMG", "Q"))
    seen = []
    found = index(
        table, tmp_path, tmp_path / "out.csv", 112, names=("IMG", "Q"), progress=lambda *now: seen.append(now)
    )
    assert found[:4] == (7, 2, 2, 3)
    assert found.fault.startswith(f"{tmp_path}/4.png is text")
    assert seen == [(done, 7) for done in range(1, 8)]
    assert (tmp_path / "out.csv").read_text() == "IMG,Q\n1.png,number 1.png\n2.png,number 2.png\n"
    with pytest.raises(ClipError, match=r"can be used and has 1000 pixels on its shorter side: .*4.png is text"):
        index(table, tmp_path, tmp_path / "none.csv", 1000)
    assert not (tmp_path / "none.csv").exists()
