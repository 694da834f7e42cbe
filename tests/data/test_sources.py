"""Every family of data, read from files in its layout that the test makes: which pictures, which captions."""

from __future__ import annotations

import base64
import json
import pickle
import re
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from clip_core.data.webdataset import expand
from clip_core.errors import ClipError
from tests.data.numbered import (
    contents,
    encoded,
    fault,
    loader,
    number_in,
    numbers,
    open_source,
    picture,
    sample,
    save,
    shard,
    texts,
    write_picture,
)


def opened(source: str, **settings):
    """The source as another process sees it."""
    return pickle.loads(pickle.dumps(open_source(source, settings, seed=0)))  # noqa: S301


def refused(source: str, **settings) -> str:
    with pytest.raises(ClipError) as caught:
        open_source(source, settings, seed=0)
    return str(caught.value)


# Tables


def test_conceptual_captions(tmp_path):
    for number in range(3):
        write_picture(tmp_path / "train" / f"{number}.jpg", number)
    (tmp_path / "cc.csv").write_text('filepath\ttitle\ntrain/0.jpg\ta "red" café\ntrain/2.jpg\t"two\tparts"\n')
    source = opened("table", file=str(tmp_path / "cc.csv"))
    assert contents(source) == [(0, ('a "red" café',)), (2, ("two\tparts",))]


def test_wkit(tmp_path):
    write_picture(tmp_path / "pairs" / "images" / "7.jpg", 7)
    (tmp_path / "WKIT_local.csv").write_bytes('\ufeffQ,IMG\r\n"a dog, asleep",images/7.jpg\r\n'.encode())
    columns = {"image_column": "IMG", "caption_column": "Q", "separator": ","}
    source = opened("table", file=str(tmp_path / "WKIT_local.csv"), images=str(tmp_path / "pairs"), **columns)
    assert contents(source) == [(7, ("a dog, asleep",))]


def test_rows_of_one_picture_are_one_example(tmp_path):
    for number in (1, 2):
        write_picture(tmp_path / f"{number}.png", number)
    rows = "2.png\tb\n1.png\ta\n2.png\tc\n2.png\t \n"
    (tmp_path / "t.tsv").write_text("filepath\ttitle\n" + rows)
    assert contents(opened("table", file=str(tmp_path / "t.tsv"))) == [(2, ("b", "c")), (1, ("a",))]


def test_rows_without_caption_or_picture_are_faults(tmp_path):
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "2.png").write_bytes(encoded(2)[:50])
    rows = ["0.png\tzero", "1.png", "1.png\t  ", "\tno picture", "\t", "2.png\ttwo", "gone.png\tgone"]
    (tmp_path / "t.tsv").write_text("filepath\ttitle\n" + "\n".join(rows) + "\n")
    source = opened("table", file=str(tmp_path / "t.tsv"))
    assert len(source) == 6
    assert source[0].caption == ("zero",)
    assert fault(source, 1) == f"{tmp_path / '1.png'} has no caption."
    assert fault(source, 2).startswith(f"A row of {tmp_path / 't.tsv'} names no picture")
    assert fault(source, 3).startswith(f"A row of {tmp_path / 't.tsv'} names no picture")
    assert fault(source, 4).startswith(f"{tmp_path / '2.png'} cannot be decoded whole")
    assert str(tmp_path / "gone.png") in fault(source, 5)


def test_a_table_that_cannot_be_read_is_refused(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("filepath\ttitle\n")
    assert "names no pictures" in refused("table", file=str(table))
    table.write_text("")
    assert "has no column 'filepath', only nothing" in refused("table", file=str(table))
    table.write_text("filepath,title\na.jpg,b\n")
    assert refused("table", file=str(table)) == (
        f"{table} has no column 'filepath', only 'filepath,title'; "
        'the separator is a tab, so write data.source.separator: ",".'
    )
    assert opened("table", file=str(table), separator=",")._captions[0] == "b"
    table.write_bytes(b"filepath\ttitle\na.jpg\tcaf\xe9\n")
    assert "t.tsv is not UTF-8" in refused("table", file=str(table))
    table.write_text("filepath\ttitle\ttitle\na.jpg\tb\tc\n")
    assert "has more than one column 'title', only 'filepath', 'title', 'title'; set" in refused(
        "table", file=str(table)
    )
    table.write_text("filepath\ttitle\na.jpg\ta\tb\n")
    assert "t.tsv has 3 fields in line 2, and 2 columns; put a field" in refused("table", file=str(table))
    assert "gone.tsv" in refused("table", file=str(tmp_path / "gone.tsv"))
    assert "there is no key data.source.fil; did you mean data.source.file?" in refused("table", fil="x")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (['24" screen', 'a "red" one', '"hello" says'], None),  # None: as they are written
        (['"never ends', "b", "c"], None),
        (["a", '"', "c"], None),
        (["a", "b", '"in the last row'], None),
        (["a", '"one', "c", 'two" x', "e"], None),
        (["a", '"one', "c", '"two" e', "f"], None),
        (["a", '"one', "c", 'and its end"', "e"], None),  # each of these lines is a row
        (['"in quotes"', '"with ""more"" of them"', '""'], ["in quotes", 'with "more" of them', ""]),
        (['"a\ttab"', "b"], ["a\ttab", "b"]),
        (['"of two\nlines"', "b"], ["of two\nlines", "b"]),
        (['"of\n\nthree"', '"never ends', "c"], ["of\n\nthree", '"never ends', "c"]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotation_marks_in_a_table_separated_by_tabs_swallow_no_row(written, expected, end, tmp_path):
    rows = "".join(f"{number}.png\t{caption}\n" for number, caption in enumerate(written))
    (tmp_path / "t.tsv").write_bytes(("filepath\ttitle\n" + rows).replace("\n", end).encode())
    found = open_source("table", {"file": str(tmp_path / "t.tsv")}, 0)
    assert len(found) == len(written)
    captions = [found._captions[number].replace(end, "\n") for number in range(len(found))]
    assert captions == (written if expected is None else expected)


def test_a_carriage_return_ends_a_line_only_where_the_file_has_no_other_ends(tmp_path):
    file = tmp_path / "t.tsv"
    for rows, expected in [
        (b'filepath\ttitle\n1.png\tone\rtwo\n2.png\t"three\rfour"\n', ["one\rtwo", "three\rfour"]),
        (b"filepath\ttitle\r\n1.png\tone\rtwo\r\n2.png\tthree\r\n", ["one\rtwo", "three"]),
        (b"filepath\ttitle\r1.png\tone\r2.png\ttwo", ["one", "two"]),
        (b"filepath\ttitle\r1.png\tone\r2.png\ttwo\r\n", ["one", "two"]),
    ]:
        file.write_bytes(rows)
        found = opened("table", file=str(file))
        assert list(found._paths) == ["1.png", "2.png"]
        assert list(found.captions()) == expected
    file.write_bytes(b"filepath,title\n1.png,one\n2.png,two\rthree\n")
    assert f"{file} cannot be read from line 3 on: new" in refused("table", file=str(file), separator=",")


def test_where_a_field_of_a_table_ends_has_to_be_certain(tmp_path):
    file = tmp_path / "t.tsv"
    file.write_text('filepath\ttitle\textra\n1.png\t"a\tb"\n')  # three fields as plain characters, as the header has
    assert open_source("table", {"file": str(file)}, 0)._captions[0] == '"a'
    file.write_text('filepath\ttitle\n1.png\ta\n2.png\t"b\nc\n3.png\td"\n')
    assert "t.tsv has a field in quotation marks from line 3 to 5, in which some lines could be rows; put" in refused(
        "table", file=str(file)
    )


def test_a_quotation_mark_without_end_in_a_csv_is_refused_by_its_line(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('filepath,title\n1.png,"of two\nlines"\n\n2.png,"never ends\n' + "3.png,c\n" * 50_000)
    assert f"{file} cannot be read from line 5 on: field larger than" in refused("table", file=str(file), separator=",")
    file.write_text('filepath,title\n1.png,a\n2.png,"never ends\n3.png,c\n')
    assert f"{file} cannot be read from line 3 on: unexpected end" in refused("table", file=str(file), separator=",")
    file.write_text('filepath,title\n1.png,"hello" says\n')
    assert f"{file} cannot be read from line 2 on: ',' expected" in refused("table", file=str(file), separator=",")
    file.write_text("filepath,title\n1.png,a dog, asleep\n2.png,b,\n")
    assert f"{file} has 3 fields in line 2, and 2 columns" in refused("table", file=str(file), separator=",")


@pytest.mark.parametrize("separator", ["\t", ","])
@pytest.mark.parametrize(
    "text",
    [
        "a\t" * 250_000 + "\n" + "b\n" * 250_000,
        "filepath\ttitle\n" + 'a\t"\n' * 200_000,
        "filepath\ttitle\n" + 'a\t"""\n' * 160_000,
        "filepath\ttitle\n" + '"' * 10**6,
        "filepath\ttitle\n" + "\n" * 10**6,
    ],
    ids=["columns", "quotes", "double quotes", "nothing but quotes", "empty lines"],
)
def test_a_megabyte_of_table_is_read_or_refused_at_once(text, separator, tmp_path):
    (tmp_path / "t").write_text(text.replace("\t", separator))
    began = time.process_time()
    with suppress(ClipError):
        open_source("table", {"file": str(tmp_path / "t"), "separator": separator}, 0)
    assert time.process_time() - began < 10


def test_paths_that_differ_in_spelling_alone_are_one_picture(tmp_path):
    for number in (1, 2):
        write_picture(tmp_path / "sub" / f"{number}.png", number)
    (tmp_path / "t.tsv").write_text("filepath\ttitle\nsub/1.png\ta\n./sub//2.png\tb\nsub/../sub/1.png\tc\n")
    assert contents(opened("table", file=str(tmp_path / "t.tsv"))) == [(1, ("a", "c")), (2, ("b",))]


# PASSL's tree


def test_pictures_are_paired_with_texts_by_their_whole_path(tmp_path):
    for number, path in enumerate(["b/1.jpg", "a/1.PNG", "a/deep/1.jpeg", "a/2.bmp"]):
        write_picture(tmp_path / path, number)
    (tmp_path / "b/1.txt").write_text("jambon\n\n  fromage \n", encoding="utf-8")
    (tmp_path / "a/1.TXT").write_text("crème brûlée", encoding="utf-8-sig")
    (tmp_path / "a/deep/1.txt").write_text("x\r\ny\r\n")
    (tmp_path / "a/2.txt").write_text("z")
    source = opened("paired", folder=str(tmp_path))
    expected = [(1, ("crème brûlée",)), (3, ("z",)), (2, ("x", "y")), (0, ("jambon", "fromage"))]
    assert contents(source) == expected  # by path: a/1, a/2, a/deep/1, b/1


def test_unpaired_files_and_bad_texts_are_faults(tmp_path):
    for number in range(4):
        write_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "0.txt").write_text("zero")
    (tmp_path / "1.txt").write_text("\n \n")
    (tmp_path / "2.txt").write_bytes(b"caf\xe9")
    (tmp_path / "9.txt").write_text("nine")
    source = opened("paired", folder=str(tmp_path))
    assert len(source) == 5
    assert fault(source, 0).startswith(f"{tmp_path / '9.txt'} has no picture of the same name beside it (.png, ")
    assert source[1].caption == ("zero",)
    assert fault(source, 2) == f"{tmp_path / '1.txt'} has no caption."
    assert fault(source, 3).startswith(f"{tmp_path / '2.txt'} is not UTF-8")
    assert fault(source, 4) == f"{tmp_path / '3.png'} has no .txt file of the same name beside it."
    (tmp_path / "empty").mkdir()
    assert "has no pictures" in refused("paired", folder=str(tmp_path / "empty"))
    assert "gone cannot be read: no such file" in refused("paired", folder=str(tmp_path / "gone"))


def test_linked_folders_and_all_suffixes_of_pictures_belong_to_a_tree(tmp_path):
    for number, name in enumerate(["0.tif", "1.gif", "2.PGM", "3.jfif"]):
        (tmp_path / "tree").mkdir(exist_ok=True)
        picture(number).convert("RGB").save(tmp_path / "tree" / name)
        (tmp_path / "tree" / name).with_suffix(".txt").write_text(f"caption {number}")
    write_picture(tmp_path / "elsewhere" / "4.png", 4)
    (tmp_path / "elsewhere" / "4.txt").write_text("caption 4")
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree" / ".hidden.png").write_bytes(b"")
    source = opened("paired", folder=str(tmp_path / "tree"))
    assert [example[1] for example in contents(source)] == [(f"caption {number}",) for number in range(5)]


def test_what_a_tree_passes_over_is_said_and_links_that_lead_back_end(tmp_path):
    write_picture(tmp_path / "a" / "0.png", 0)
    (tmp_path / "a" / "0.txt").write_text("zero")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    for name in ("1.avif", "2.avif", "notes"):
        (tmp_path / "a" / name).write_bytes(b"")
    said = (
        rf"^Of {tmp_path} are passed over: 3 files \(2 with \.avif, 1 with no suffix\) and the folder .*back, which is "
    )
    with pytest.warns(UserWarning, match=said):
        assert len(opened("paired", folder=str(tmp_path))) == 1
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.warns(UserWarning, match="and 2 folders that are there under other names"):
        assert len(opened("paired", folder=str(tmp_path))) == 1


# Food-101


def food(root: Path, listing: str = "txt") -> None:
    keys = ["apple_pie/10", "apple_pie/11", "ice_cream/12"]
    for number, key in enumerate(keys):
        write_picture(root / "images" / f"{key}.jpg", number)
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("apple_pie\nice_cream\n")
    if listing == "txt":
        (root / "meta" / "train.txt").write_text("\n".join(keys[1:]))
        (root / "meta" / "test.txt").write_text(keys[0] + "\n")
    else:
        (root / "meta" / "train.json").write_text(json.dumps({"apple_pie": keys[1:2], "ice_cream": keys[2:]}))
        (root / "meta" / "test.json").write_text(json.dumps({"apple_pie": keys[:1], "ice_cream": []}))


@pytest.mark.parametrize("listing", ["txt", "json"])
def test_food101(listing, tmp_path):
    food(tmp_path, listing)
    train, test = (opened("food101", folder=str(tmp_path), split=split) for split in ("train", "test"))
    assert contents(train) == [
        (1, ("a photo of apple pie, a type of food.",)),
        (2, ("a photo of ice cream, a type of food.",)),
    ]
    assert contents(test) == [(0, ("a photo of apple pie, a type of food.",))]
    templates = ["{}", "some {} on a plate"]
    assert contents(opened("food101", folder=str(tmp_path), split="test", templates=templates)) == [
        (0, ("apple pie", "some apple pie on a plate"))
    ]


def test_a_food101_picture_that_is_listed_twice_counts_once(tmp_path):
    food(tmp_path)
    (tmp_path / "meta" / "train.txt").write_text("ice_cream/12\napple_pie/11\nice_cream/12\n")
    assert [number for number, _ in contents(opened("food101", folder=str(tmp_path)))] == [2, 1]


def test_a_food101_that_does_not_fit_together_is_refused(tmp_path):
    food(tmp_path)
    assert "templates.0 is 'no place': write {} once" in refused(
        "food101", folder=str(tmp_path), templates=["no place"]
    )
    assert "split is 'val'" in refused("food101", folder=str(tmp_path), split="val")
    for empty in ("", "\n\n"):
        (tmp_path / "meta" / "train.txt").write_text(empty)
        assert f"{tmp_path / 'meta' / 'train.txt'} names no pictures; give data" in refused(
            "food101", folder=str(tmp_path)
        )
    (tmp_path / "meta" / "train.txt").write_text("soup/1\n")
    assert "names 'soup/1', and 'soup' is not in meta/classes.txt" in refused("food101", folder=str(tmp_path))
    (tmp_path / "meta" / "train.txt").unlink()
    assert "train.json" in refused("food101", folder=str(tmp_path))


# COCO, TextCaps, SBU


def test_coco(tmp_path):
    for number in range(3):
        write_picture(tmp_path / "train2017" / f"{number:012}.jpg", number)
    file = tmp_path / "captions_train2017.json"
    content = {
        "info": {},
        "images": [{"id": 90 - number, "file_name": f"{number:012}.jpg"} for number in range(3)],
        "annotations": [
            {"image_id": 90, "id": 1, "caption": "A man"},
            {"image_id": 89, "id": 2, "caption": "Two\n"},
            {"image_id": 90, "id": 3, "caption": "A boy"},
        ],
    }
    file.write_text(json.dumps(content))
    settings = {"annotations": str(file), "images": str(tmp_path / "train2017")}
    source = opened("coco", **settings)
    assert len(source) == 3
    assert source[0].caption == ("A man", "A boy")
    assert source[1].caption == ("Two\n",)
    assert fault(source, 2) == f"{tmp_path / 'train2017' / '000000000002.jpg'} has no caption."
    twice = [{"id": 7, "file_name": "000000000001.jpg"}, {"id": 8, "file_name": "000000000001.jpg"}]
    named = [{"image_id": 8, "caption": "x"}, {"image_id": 7, "caption": "y"}]
    file.write_text(json.dumps({"images": twice, "annotations": named}))
    assert [example[1] for example in contents(opened("coco", **settings))] == [("x", "y")]
    file.write_text(json.dumps({"images": [], "annotations": []}))
    assert f"{file} names no pictures" in refused("coco", **settings)
    file.write_text(json.dumps(content | {"annotations": [{"image_id": 5, "caption": "x"}]}))
    assert "has a caption for picture 5, which" in refused("coco", **settings)
    file.write_text(json.dumps(content | {"annotations": [{"image_id": 90, "caption": None}]}))
    assert "entry 0 of 'annotations' has no 'caption' of type str" in refused("coco", **settings)
    file.write_text("[]")
    assert "has no list 'images'" in refused("coco", **settings)
    file.write_text("{")
    assert "is not JSON" in refused("coco", **settings)


def test_textcaps(tmp_path):
    for number in range(2):
        write_picture(tmp_path / "train_images" / f"00{number}e7.jpg", number)
    entries = [("001e7", "A sign"), ("000e7", "A box"), ("001e7", "A red sign")]
    data = [{"image_id": key, "caption_str": text, "image_name": key} for key, text in entries]
    (tmp_path / "t.json").write_text(json.dumps({"dataset_name": "textcaps", "data": data}))
    source = opened("textcaps", annotations=str(tmp_path / "t.json"), images=str(tmp_path / "train_images"))
    assert contents(source) == [(1, ("A sign", "A red sign")), (0, ("A box",))]
    (tmp_path / "t.json").write_text(json.dumps({"data": []}))
    assert "t.json names no pictures" in refused(
        "textcaps", annotations=str(tmp_path / "t.json"), images=str(tmp_path / "train_images")
    )


def test_sbu(tmp_path):
    for number in range(2):
        write_picture(tmp_path / "images" / f"{number}_ab.jpg", number)
    urls = tmp_path / "SBU_captioned_photo_dataset_urls.txt"
    urls.write_text("".join(f"http://static.example/27/{name}_ab.jpg\n" for name in (1, 9, 0, 1, 0)))
    (tmp_path / "SBU_captioned_photo_dataset_captions.txt").write_text("one\nnine\nzero\nanother one\n\n")
    source = opened("sbu", folder=str(tmp_path), images=str(tmp_path / "images"))
    assert contents(source) == [(1, ("one", "another one")), (0, ("zero",))]  # the address of 9 was dead
    assert "gone cannot be read" in refused("sbu", folder=str(tmp_path), images=str(tmp_path / "gone"))
    urls.write_text("http://static.example/27/1_ab.jpg\n")
    assert "urls.txt has 1 lines and" in refused("sbu", folder=str(tmp_path), images=str(tmp_path / "images"))


@pytest.mark.parametrize("content", ["[" * 10**6, '{"a":' * 200_000, "1" * 10**6, "\0" * 10**6, '["' + "a" * 10**6])
def test_a_megabyte_of_nonsense_is_not_json(content, tmp_path):
    (tmp_path / "meta").mkdir()
    for name in ("list.json", "state.json", "meta/train.json"):
        (tmp_path / name).write_text(content)
    file, images = str(tmp_path / "list.json"), str(tmp_path)
    for sentence in (
        refused("coco", annotations=file, images=images),
        refused("textcaps", annotations=file, images=images),
        refused("saved", folder=images),
        refused("food101", folder=images),
    ):
        assert ".json is not JSON: " in sentence
        assert len(sentence) < 500


# Saved by datasets


def image_rows(numbers: list[int | None]) -> list[dict | None]:
    return [None if number is None else {"bytes": encoded(number), "path": None} for number in numbers]


def test_saved_data(tmp_path):
    tables = [
        pyarrow.table({"image": image_rows([0, None, 2]), "caption": ["zero", "nothing", "two"]}),
        pyarrow.table({"image": image_rows([3, 4]), "caption": ["three", ""]}),
    ]
    save(tmp_path / "sbu", tables)
    source = opened("saved", folder=str(tmp_path / "sbu"))
    assert len(source) == 4
    assert [(number_in(source[n].picture), source[n].caption) for n in range(3)] == [
        (0, ("zero",)),
        (2, ("two",)),
        (3, ("three",)),
    ]
    assert fault(source, 3) == f"Row 4 of {tmp_path / 'sbu'} has no caption."


def test_saved_data_with_splits_lists_of_captions_and_paths(tmp_path):
    write_picture(tmp_path / "5.png", 5)
    rows = [{"bytes": None, "path": str(tmp_path / "5.png")}, {"bytes": encoded(6), "path": "gone.png"}]
    table = pyarrow.table({"picture": rows, "text": [["a", "b"], ["c"]]})
    save(tmp_path / "set" / "train", [table])
    save(tmp_path / "set" / "test", [table.slice(1)])
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    settings = {"folder": str(tmp_path / "set"), "image_column": "picture", "caption_column": "text"}
    assert contents(opened("saved", split="train", **settings)) == [(5, ("a", "b")), (6, ("c",))]
    assert contents(opened("saved", split="test", **settings)) == [(6, ("c",))]
    assert "has the splits train, test; set data.source.split" in refused("saved", **settings)
    assert "has the columns picture, text, not image; set" in refused("saved", folder=settings["folder"], split="test")


def test_m3it_rows_of_one_picture_are_one_example(tmp_path):
    pictures = [[base64.b64encode(encoded(number)).decode()] for number in (1, 2, 1)] + [["§§"], []]
    captions = ["one", "two", "eins", "broken", "none"]
    columns = {"instruction": ["Describe it."] * 5, "image_base64_str": pictures, "outputs": captions}
    save(tmp_path / "m3it", [pyarrow.table(columns)])
    source = opened("m3it", folder=str(tmp_path / "m3it"))
    assert len(source) == 4
    assert [(number_in(source[n].picture), source[n].caption) for n in (0, 1)] == [(1, ("one", "eins")), (2, ("two",))]
    assert fault(source, 2).startswith(f"Row 3 of {tmp_path / 'm3it'}: the picture is not in base64")
    assert fault(source, 3) == f"Row 4 of {tmp_path / 'm3it'} holds no picture in column image_base64_str."


def not_utf8(texts: list[bytes]) -> pyarrow.Array:
    """A column of texts, unchecked."""
    ends = np.cumsum([0] + [len(text) for text in texts]).astype(np.int32)
    return pyarrow.Array.from_buffers(
        pyarrow.utf8(), len(texts), [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"".join(texts))]
    )


def test_a_row_that_is_not_utf8_is_a_fault_of_its_own(tmp_path):
    data = pyarrow.array([encoded(0), encoded(1), encoded(2)])
    paths = pyarrow.StructArray.from_arrays([data, not_utf8([b"0.png", b"\xff.png", b"2.png"])], ["bytes", "path"])
    save(tmp_path / "paths", [pyarrow.table({"image": paths, "caption": ["zero", "one", "two"]})])
    save(tmp_path / "texts", [pyarrow.table({"image": data, "caption": not_utf8([b"zero", b"caf\xe9", b"two"])})])
    for name in ("paths", "texts"):
        source = opened("saved", folder=str(tmp_path / name))
        assert [(number_in(source[n].picture), source[n].caption) for n in (0, 2)] == [(0, ("zero",)), (2, ("two",))]
        assert fault(source, 1).startswith(f"Row 1 of {tmp_path / name} is damaged: ")
        assert len(source.fingerprint()) == 64
    assert list(source.captions()) == ["zero", "two"]
    columns = {"image_column": "image", "caption_column": "caption"}
    assert len(opened("m3it", folder=str(tmp_path / "paths"), **columns)) == 3
    file = tmp_path / "texts" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b"caption\0", b"capti\xff\xff\0"))
    assert f"{file} cannot be read as an Arrow stream: 'utf-8' codec" in refused(
        "saved", folder=str(tmp_path / "texts")
    )


def test_damaged_saved_data_is_refused(tmp_path):
    save(tmp_path / "set", [pyarrow.table({"image": image_rows([0, 1]), "caption": ["zero", "one"]})])
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        file.write_bytes(data)
        assert "cannot be read as an Arrow stream" in refused("saved", folder=str(tmp_path / "set"))
    other = pyarrow.table({"image": ["text"], "caption": ["two"]})
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, other.schema) as stream:
        stream.write_table(other)
    state = {"_data_files": [{"filename": file.name}, {"filename": "second.arrow"}]}
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    (tmp_path / "set" / "second.arrow").write_bytes(whole)
    assert "are damaged or do not fit together" in refused("saved", folder=str(tmp_path / "set"))
    file.unlink()
    assert "cannot be read as an Arrow stream" in refused("saved", folder=str(tmp_path / "set"))
    save(tmp_path / "none", [pyarrow.table({"image": image_rows([None]), "caption": ["zero"]})])
    assert "has no row with a picture" in refused("saved", folder=str(tmp_path / "none"))
    assert "state.json" in refused("saved", folder=str(tmp_path / "gone"))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("encoded_by", ["rows", "dictionary"])
def test_compressed_saved_data_is_refused(codec, encoded_by, tmp_path):
    captions = pyarrow.array(["a" * 10**6] * 3)
    table = pyarrow.table(
        {"image": image_rows([0, 1, 2]), "caption": captions.dictionary_encode() if encoded_by != "rows" else captions}
    )
    save(tmp_path / "set", [table])
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    options = pyarrow.ipc.IpcWriteOptions(compression=codec)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    assert file.stat().st_size < 10**5
    allocated = pyarrow.total_allocated_bytes()
    assert refused("saved", folder=str(tmp_path / "set")) == (
        f"{file} is compressed, which is not read here; save the data with save_to_disk again."
    )
    assert pyarrow.total_allocated_bytes() <= allocated + 10**5


@pytest.mark.parametrize(
    ("captions", "kind"),
    [
        (pyarrow.array(["one", "one"]).dictionary_encode(), "dictionary"),
        (pyarrow.array([[None] * 5, []], pyarrow.list_(pyarrow.null())), "list<"),
        (pyarrow.array([1, 2]), "int64"),
    ],
)
def test_saved_columns_in_which_rows_may_share_content_are_refused(captions, kind, tmp_path):
    save(tmp_path / "set", [pyarrow.table({"image": image_rows([0, 1]), "caption": captions})])
    message = refused("saved", folder=str(tmp_path / "set"))
    assert f"has the column caption of type {kind}" in message
    assert message.endswith("save it as texts, as bytes, or as lists or records of them.")


def test_more_rows_than_bytes_are_refused(tmp_path):
    save(tmp_path / "set", [pyarrow.table({"image": ["one"], "caption": ["one"]})])
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    table = pyarrow.table({"image": pyarrow.nulls(10**6), "caption": pyarrow.nulls(10**6)})
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    assert f"{file} states 1000000 rows, more than it has bytes" in refused("saved", folder=str(tmp_path / "set"))


# WebDataset


def test_webdataset_shards(tmp_path):
    shard(tmp_path / "08.tar", sample(0) + sample(1))
    shard(tmp_path / "09.tar", sample(2, "png"))
    shard(tmp_path / "10.tar", [("folder/" + name, data) for name, data in sample(3)])
    shards = str(tmp_path / "{08..10}.tar")
    assert contents(opened("webdataset", shards=shards)) == [(n, (f"caption {n}",)) for n in range(4)]
    assert contents(opened("webdataset", shards=[shards], json_key="top_caption")) == [
        (n, (f"top {n}",)) for n in range(4)
    ]


def test_shard_ranges():
    assert expand("a/{00009..00011}.tar") == ["a/00009.tar", "a/00010.tar", "a/00011.tar"]
    assert expand("{0..1}/{8..9}") == ["0/8", "0/9", "1/8", "1/9"]
    assert expand("plain.tar") == ["plain.tar"]


def test_absurd_ranges_are_refused_by_arithmetic(tmp_path):
    shard(tmp_path / "0.tar", sample(0))
    for pattern in ("{0..99999999999}.tar", "{0..9999}{0..9999}{0..9999}.tar", "{0..1000000}.tar"):
        assert "shards, and at most 1000000 are read; check its ranges" in refused("webdataset", shards=pattern)
    assert "count down from 3 to 1; write the smaller number first" in refused("webdataset", shards="{3..1}.tar")


def test_samples_of_shards_are_shuffled_together_and_resume_exactly(tmp_path):
    for place in range(3):
        shard(tmp_path / f"{place}.tar", [part for n in range(4) for part in sample(4 * place + n, "png")])
    source = opened("webdataset", shards=str(tmp_path / "{0..2}.tar"))
    whole = loader(source, 5)
    batches = [(numbers(batch), texts(batch)) for batch in (next(whole) for _ in range(6))]
    assert all(said == [f"caption{n}" for n in shown] for shown, said in batches)
    assert {n // 4 for n in batches[0][0]} == {0, 1, 2}
    resumed = loader(source, 5, workers=1)
    resumed.restore({"position": 4})
    found = [(numbers(batch), texts(batch)) for batch in (next(resumed), next(resumed))]
    resumed.close()
    assert found == batches[4:]


def test_faulty_samples_are_named(tmp_path):
    path = tmp_path / "0.tar"
    broken = [("3.jpg", encoded(3)[:50]), ("3.txt", b"three"), ("4.txt", b"four"), ("5.jpg", encoded(5))]
    undecodable = [("6.jpg", encoded(6)), ("6.txt", b"\xff"), ("7.jpg", encoded(7)), ("7.txt", b" ")]
    shard(path, broken + undecodable)
    source = opened("webdataset", shards=str(path))
    assert [fault(source, index).partition(f" in {path}")[0] for index in range(5)] == [
        "3",
        "4",
        "5",
        "The caption of 6",
        "7",
    ]
    assert "has no member with its picture (.png, " in fault(source, 1)
    assert "has no member with its caption" in fault(source, 2)
    shard(path, [("3.jpg", encoded(3)), ("3.json", b"[]")])
    assert "has no caption" in fault(opened("webdataset", shards=str(path), json_key="caption"), 0)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar file, as it stands there; ``size`` is octal digits, or 12 bytes with the highest bit set."""
    fields = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.rjust(12, b"0") + b"0" * 12 + b" " * 8 + kind
    block = bytearray(fields.ljust(257, b"\0") + b"ustar\0" + b"00").ljust(512, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative(size: int) -> bytes:
    return (size % 2**96).to_bytes(12, "big")


def attributes(*records: bytes) -> bytes:
    data = b"".join(records)
    return header(b"x", b"%o" % len(data), b"x") + data.ljust(-(-len(data) // 512) * 512, b"\0")


ENDLESS_SHARDS = {
    "a size that leads back": (
        header(b"1.jpg", b"0") + header(b"2.jpg", negative(-512)),
        "a header states -512 bytes",
    ),
    "a size that leads far back": (
        header(b"1.x", b"0") * 9 + header(b"2.jpg", negative(-4096)),
        "states -4096 bytes",
    ),
    "attributes with a size that leads back": (
        header(b"1.x", b"0") * 9 + attributes(b"13 size=-2048\n"[:13]) + header(b"2.x", b"0"),
        # Newer versions of Python's tarfile take such a member for the end, which then lacks its mark.
        r"is not an uncompressed tar file: member '2\.x' states -|has no end mark after byte 4608: it is cut short",
    ),
    "a name of a terabyte": (header(b"x", b"%o" % 2**30, b"L") + bytes(1024), "a header states 1073741824 bytes"),
    "names of names": (header(b"x", b"0", b"L") * 3000, "maximum recursion depth exceeded"),
    "attributes of attributes": (header(b"x", b"0", b"x") * 3000, "maximum recursion depth exceeded"),
    "attributes that are searched again and again": (
        attributes(b"2 " * 2**18) + header(b"1.jpg", b"0"),
        "a header states 524288 bytes",
    ),
}


@pytest.mark.parametrize("kind", ENDLESS_SHARDS)
def test_shards_that_would_never_end_are_refused(kind, tmp_path):
    data, expected = ENDLESS_SHARDS[kind]
    (tmp_path / "0.tar").write_bytes(data + bytes(1024))
    sentence = refused("webdataset", shards=str(tmp_path / "0.tar"))
    assert sentence.startswith(f"{tmp_path / '0.tar'} ")
    assert re.search(expected, sentence)


def test_damaged_shards_are_refused(tmp_path):
    path = tmp_path / "0.tar"
    shard(path, sample(0) + sample(1))
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    whole = path.read_bytes()
    for length in range(0, end, tarfile.BLOCKSIZE // 2):
        path.write_bytes(whole[:length])
        sentence = refused("webdataset", shards=str(path))
        assert any(text in sentence for text in ("is not an uncompressed tar file", "no end mark", "is cut short"))
    path.write_bytes(b"<html>" + whole[6:])
    assert "is not an uncompressed tar file" in refused("webdataset", shards=str(path))
    shard(path, sample(0) + sample(0))
    assert "has 000000000.jpg or another jpg of its stem twice" in refused("webdataset", shards=str(path))
    shard(path, [])
    assert "has no samples" in refused("webdataset", shards=str(path))
    assert refused("webdataset", shards=[str(path), str(path)]) == (
        f"data.source.shards names {path} 2 times; name each shard once."
    )
    assert "gone.tar" in refused("webdataset", shards=str(tmp_path / "gone.tar"))


# Fingerprints


def test_fingerprints_tell_other_data_of_the_same_number(tmp_path):
    """Of each family: the same files give the same, also elsewhere; another caption, picture or order another."""

    def table(folder: Path, rows: str) -> str:
        folder.mkdir(exist_ok=True)
        (folder / "t.tsv").write_text("filepath\ttitle\n" + rows)
        return opened("table", file=str(folder / "t.tsv")).fingerprint()

    first = table(tmp_path / "a", "1.png\ta\n1.png\tb\n2.png\tc\n")
    assert first == table(tmp_path / "b", "1.png\ta\n1.png\tb\n2.png\tc\n")
    assert len(first) == 64
    changed = ["1.png\ta\n2.png\tb\n2.png\tc\n", "1.png\ta\n1.png\tb\n2.png\td\n", "2.png\tc\n1.png\ta\n1.png\tb\n"]
    assert len({first, *(table(tmp_path / "b", rows) for rows in changed)}) == 4

    def tree(folder: Path, text: str) -> str:
        write_picture(folder / "sub" / "1.png", 1)
        (folder / "sub" / "1.txt").write_text(text)
        return opened("paired", folder=str(folder)).fingerprint()

    assert tree(tmp_path / "c", "one") == tree(tmp_path / "d", "one") != tree(tmp_path / "d", "two")

    def shards(members: list[tuple[str, bytes]]) -> str:
        shard(tmp_path / "0.tar", members)
        return opened("webdataset", shards=str(tmp_path / "0.tar")).fingerprint()

    pair = [("1.png", encoded(1)), ("1.txt", b"one")]
    assert shards(pair) == shards(pair[::-1]) != shards([pair[0], ("1.txt", b"two")])

    def saved(name: str, texts: list[str]) -> str:
        save(tmp_path / name, [pyarrow.table({"image": image_rows([0, 1]), "caption": texts})])
        return opened("saved", folder=str(tmp_path / name)).fingerprint()

    assert saved("e", ["one", "two"]) == saved("f", ["one", "two"]) != saved("g", ["two", "one"])

    def drawn(seed: int, examples: int) -> str:
        return open_source("shapes", {"examples": examples}, seed).fingerprint()

    assert drawn(0, 9) == drawn(0, 9)
    assert len({drawn(0, 9), drawn(1, 9), drawn(0, 8)}) == 3

    def mixed(weights: tuple[int, int], seed: int) -> str:
        parts = [{"kind": "shapes", "examples": 4} for _ in weights]
        return open_source("combined", {"parts": parts, "weights": weights}, seed).fingerprint()

    assert mixed((1, 1), 0) == mixed((2, 2), 0)
    assert len({mixed((1, 1), 0), mixed((3, 1), 0), mixed((1, 1), 1)}) == 3
