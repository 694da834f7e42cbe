"""What can be embedded: every kind of source gives its pictures in its own order, with captions, labels and faults."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clip_core.data.collection.fetching import Fetcher, Limits
from clip_core.embedding import sources
from clip_core.embedding.sources import Columns, Encoded, open_pictures, texts_of
from clip_core.errors import ClipError


def png(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4 + number, 5), (number, 0, 0)).save(data, "PNG")
    return data.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(*arguments: object, **columns: str) -> list[Encoded | ClipError]:
    """All pictures, read in several batches, by a copy as another process has it."""
    pictures = copy.deepcopy(open_pictures([str(argument) for argument in arguments], Columns(**columns)))
    batches = [range(first, min(first + 2, len(pictures))) for first in range(0, len(pictures), 2)]
    found = [each for batch in batches for each in pictures.read(batch)]
    assert len(found) == len(pictures)
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    inside = tmp_path / "photos"
    (inside / "b").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b/2.PNG", "b/10.png", "c.jpg")):
        (inside / name).write_bytes(png(number))
    return inside


def test_files_folders_and_patterns(folder):
    (folder / "notes.md").write_text("")
    with pytest.warns(UserWarning, match=r"1 files \(1 with .md\)"):
        found = read(folder)
    assert [each.id for each in found] == [str(folder / name) for name in ("a.png", "c.jpg", "b/10.png", "b/2.PNG")]
    assert found[2] == Encoded(str(folder / "b/10.png"), str(folder / "b/10.png"), png(2))
    (folder / "notes.md").unlink()
    assert read(folder / "c.jpg", folder / "**" / "*.png", folder)[0].id == str(folder / "c.jpg")
    assert len(read(folder / "c.jpg", folder / "**" / "*.png", folder)) == 4
    with pytest.raises(ClipError, match="names no pictures"):
        open_pictures([str(folder / "*.gif")])


def test_shards_have_captions_and_labels(tmp_path):
    members = {
        "0/b.jpg": png(0),
        "0/b.txt": b"a dog\n",
        "0/b.cls": b"3",
        "a.x.png": png(1),
        "a.json": b'{"say": "a cat"}',
    }
    path = tar_of(tmp_path / "0.tar", {"notes.txt": b"", **members, ".hidden.png": b""})
    assert read(path) == [
        Encoded(f"{path}/0/b.jpg", f"{path}/0/b.jpg", png(0), "a dog", "3"),
        Encoded(f"{path}/a.x.png", f"{path}/a.x.png", png(1)),
    ]
    assert read(path, caption="say")[1].caption == "a cat"
    with pytest.raises(ClipError, match="named more than once"):
        open_pictures([str(path), str(path)])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ClipError, match="is cut short"):
        open_pictures([str(path)])


def test_zip_files_and_a_folder_of_archives(tmp_path):
    (tmp_path / "shards").mkdir()
    tar_of(tmp_path / "shards" / "b.tar", {"1.png": png(1)})
    with zipfile.ZipFile(tmp_path / "shards" / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/0.png", png(0))
        file.writestr("x/0.txt", "a dog")
    found = read(tmp_path / "shards")
    assert [(each.data, each.caption) for each in found] == [(png(0), "a dog"), (png(1), None)]


@pytest.mark.parametrize("record", [False, True])
def test_parquet_with_pictures(tmp_path, record):
    stored = [png(0), png(1), None, png(3), png(4), png(5)]
    images = [{"bytes": data, "path": "a"} for data in stored] if record else stored
    table = pyarrow.table({"image": images, "caption": ["a", None, "c", "d", "e", "f"], "label": [1, 2, 3, 4, 5, 6]})
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    found = read(path)
    assert found[3] == Encoded(f"{path}#3", f"{path}#3", png(3), "d", "4")
    assert found[1].caption is None
    assert str(found[2]) == f"{path}#2 holds no picture in column image."
    pictures = open_pictures([str(path)])
    assert [each.data for each in pictures.read(range(3, 6))] == stored[3:]
    assert [each.data for each in pictures.read(range(0, 2))] == stored[:2]  # back again
    with pytest.raises(ClipError, match=r"no column 'photo', only 'image', .*--image-column"):
        open_pictures([str(path)], Columns(image="photo"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_lists_of_paths(folder, suffix):
    path = folder / f"list{suffix}"
    rows = [("c.jpg", "a dog", "x"), ("a.png", "", ""), ("c.jpg", "twice", "y"), ("none.png", "gone", "")]
    if suffix == ".txt":
        path.write_text("".join(f"{name}\n" for name, *_ in rows))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(("image", "caption", "label"), row))) + "\n" for row in rows))
    elif suffix == ".parquet":
        columns = dict(zip(("image", "caption", "label"), map(list, zip(*rows))))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        mark = "," if suffix == ".csv" else "\t"
        path.write_text("".join(f"{mark.join(row)}\n" for row in [("image", "caption", "label"), *rows]))
    found = read(path)
    about = (None, None) if suffix == ".txt" else ("a dog", "x")
    assert found[0] == Encoded("c.jpg", str(folder / "c.jpg"), png(3), *about)
    assert (found[1].data, found[1].caption, found[1].label) == (png(0), None, None)
    assert "none.png cannot be read" in str(found[2])
    assert len(found) == 3


def test_addresses_are_fetched(tmp_path, monkeypatch):
    """In order, safely: an address inside of a private network is a fault."""
    asked = []

    def fetch(self: Fetcher, url: str) -> bytes:
        asked.append(url)
        return png(len(url) % 10)

    address = "http://127.0.0.1:9/a.png"
    (tmp_path / "list.txt").write_text(f"{address}\nhttps://example.org/b.png\n")
    refused = read(address)[0]
    assert "127.0.0.1, which is not an address of the public internet" in str(refused)
    monkeypatch.setattr(Fetcher, "fetch", fetch)
    found = read(tmp_path / "list.txt", "https://example.org/c.png")
    assert [each.id for each in found] == [address, "https://example.org/b.png", "https://example.org/c.png"]
    assert found[0].data == png(len(address) % 10)
    assert sorted(asked) == sorted(each.path for each in found)
    assert Limits().private is False


def test_fingerprints_tell_inputs_apart(folder):
    before = open_pictures([str(folder)]).fingerprint()
    assert open_pictures([str(folder)]).fingerprint() == before
    os.utime(folder / "a.png", (1, 1))
    assert open_pictures([str(folder)]).fingerprint() == before
    (folder / "a.png").write_bytes(png(0) + b"x")
    assert open_pictures([str(folder)]).fingerprint() != before


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\n a cat \n")
    (tmp_path / "a.csv").write_text('text,n\n"a, b",1\nc,2\n')
    (tmp_path / "a.jsonl").write_text('{"say": "a"}\n{"say": "b"}\n')
    assert texts_of(str(tmp_path / "a.txt")) == ["a dog", "a cat"]
    assert texts_of(str(tmp_path / "a.csv")) == ["a, b", "c"]
    assert texts_of(str(tmp_path / "a.jsonl"), "say") == ["a", "b"]
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ClipError, match="not UTF-8"):
        texts_of(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"\n")
    with pytest.raises(ClipError, match="has no texts"):
        texts_of(str(tmp_path / "a.txt"))


def test_names_are_kept_as_one_block():
    """No object for each picture, of which there may be a billion."""
    listed = sources.Listed(f"{number}.png" for number in range(1000))
    assert not any(isinstance(value, list | dict | tuple) for value in vars(listed).values())
    assert len(pickle.dumps(listed)) < 20_000
    assert len(listed) == 1000
