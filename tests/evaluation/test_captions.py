"""Published sets of pictures with captions, and of pairs of sentences: what is read from each, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clip_benchmark.datasets.flickr import Flickr
from layouts import tar, write, zipped

from clip_core.data.families import FAMILIES
from clip_core.errors import ClipError
from clip_core.evaluation.sentences import SENTENCES
from tests.data.numbered import contents, encoded, write_picture


def opened(kind: str, **settings: Any) -> Any:
    return FAMILIES[kind](kind=kind, **{key: str(value) for key, value in settings.items()}).open(seed=0)


def refused(kind: str, **settings: Any) -> str:
    with pytest.raises(ClipError) as caught:
        opened(kind, **settings)
    return str(caught.value)


@pytest.fixture
def pictures(tmp_path) -> Path:
    for number in range(4):
        write_picture(tmp_path / "pictures" / f"{number}.jpg", number)
    return tmp_path / "pictures"


@pytest.mark.parametrize("filepath", ["val2014", None])
def test_splits_of_karpathy(filepath, pictures, tmp_path):
    splits = ["test", "train", "restval", "test"]
    images = [
        {
            "filename": f"{number}.jpg",
            "split": split,
            "sentences": [{"raw": f"{number}a", "tokens": []}, {"raw": f"{number}b"}],
        }
        | ({"filepath": filepath} if filepath else {})
        for number, split in enumerate(splits)
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert contents(opened("karpathy", annotations=path, images=pictures)) == [(0, ("0a", "0b")), (3, ("3a", "3b"))]
    assert "has no pictures of the split val; its splits are restval, test, train" in refused(
        "karpathy", annotations=path, images=pictures, split="val"
    )
    if filepath:
        pictures.rename(tmp_path / filepath)
        assert [
            number for number, _ in contents(opened("karpathy", annotations=path, images=tmp_path, split="train"))
        ] == [1, 2]
    path.write_text(json.dumps({"images": [images[0] | {"sentences": ["0a"]}]}))
    assert "entry 0 of 'images' has a sentence without 'raw'" in refused("karpathy", annotations=path, images=pictures)
    path.write_text('{"annotations": []}')
    assert "has no list 'images'; give a file in the published layout" in refused(
        "karpathy", annotations=path, images=pictures
    )


FORMS_OF_FLICKR = {
    "Flickr8k.token.txt": '0.jpg#0\tA child , "pink" .\n0.jpg#1\tA girl\n1.jpg#0\ta | b\n',
    "captions.txt": 'image,caption\n0.jpg,"A child , ""pink"" ."\n0.jpg,A girl\n1.jpg,a | b\n',
    "results.csv": "image_name| comment_number| comment\n"
    '0.jpg| 0| A child , "pink" .\n0.jpg| 1| A girl\n1.jpg| 0| a | b\n',
}


@pytest.mark.parametrize("form", FORMS_OF_FLICKR)
def test_flickr_in_its_three_forms(form, pictures, tmp_path):
    (tmp_path / form).write_text(FORMS_OF_FLICKR[form])
    source = opened("flickr", captions=tmp_path / form, images=pictures)
    assert contents(source) == [(0, ('A child , "pink" .', "A girl")), (1, ("a | b",))]
    settings = {"captions": tmp_path / form, "images": pictures, "listed": tmp_path / "test.txt"}
    settings["listed"].write_text("1\n")
    assert contents(opened("flickr", **settings)) == [(1, ("a | b",))]
    settings["listed"].write_text("1.jpg\n3.jpg\n")
    assert "names '3.jpg', and" in refused("flickr", **settings)
    (tmp_path / form).write_text(FORMS_OF_FLICKR[form] + "a line\n")
    assert "'a line', which does not begin with the name of a picture" in refused("flickr", **settings)


def test_flickr_is_read_as_clip_benchmark_reads_it(pictures, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("image,caption\n0.jpg,A child , pink .\n0.jpg,A girl\n2.jpg,two\n")
    expected = Flickr(str(pictures), str(path))
    found = contents(opened("flickr", captions=path, images=pictures))
    assert found == [(number, tuple(expected[place][1])) for place, number in enumerate((0, 2))]


def test_retrieval_shards_of_clip_benchmark(tmp_path):
    files = {
        f"s{number}.{suffix}": data
        for number in (0, 1)
        for suffix, data in (("png", encoded(number)), ("txt", f"one {number}\ntwo {number}".encode()))
    }
    write(tmp_path, {"test/0.tar": tar(files), "test/nshards.txt": b"1\n", "dataset_type.txt": b"retrieval\n"})
    source = opened("wds_retrieval", folder=tmp_path)
    assert contents(source) == [(0, ("one 0", "two 0")), (1, ("one 1", "two 1"))]
    assert list(source.captions()) == ["one 0", "two 0", "one 1", "two 1"]
    (tmp_path / "dataset_type.txt").unlink()
    assert "is a set for 'classification', and one for retrieval is expected" in refused(
        "wds_retrieval", folder=tmp_path
    )
    write(tmp_path, {"dataset_type.txt": b"retrieval\n", "test/nshards.txt": b"many\n"})
    assert "nshards.txt holds 'many', and the number of shards is expected" in refused("wds_retrieval", folder=tmp_path)


def test_sets_in_the_folder_of_their_files(pictures, tmp_path):
    """Each by its folder alone, with the pictures in a folder or in an archive of them."""
    split = {"images": [{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "one"}]}]}
    files = {f"{number}.jpg": (pictures / f"{number}.jpg").read_bytes() for number in range(4)}
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "one"}]}
    tokens = {"Flickr8k.token.txt": b"1.jpg#0\tone\n2.jpg#0\ttwo\n", "Flickr_8k.testImages.txt": b"1.jpg\n"}
    forms = {
        "coco/2017": {"annotations/captions_val2017.json": json.dumps(coco).encode(), "val2017/1.jpg": files["1.jpg"]},
        "coco/2014": {
            "annotations/captions_val2014.json": json.dumps(coco).encode(),
            "val2014.zip": zipped({f"val2014/{name}": data for name, data in files.items()}),
        },
        "coco/splits": {"dataset_coco.json": json.dumps(split).encode(), "val2014/1.jpg": files["1.jpg"]},
        "flickr30k/splits": {"dataset_flickr30k.json": json.dumps(split).encode(), "images/1.jpg": files["1.jpg"]},
        "flickr30k/listed": {
            "flickr30k_test_karpathy.txt": b"image,caption\n1.jpg,one\n",
            "flickr30k-images.tar.gz": tar({f"flickr30k-images/{name}": data for name, data in files.items()}),
        },
        "flickr8k/tokens": tokens | {f"Flicker8k_Dataset/{name}": data for name, data in files.items()},
        "flickr8k/zip": tokens
        | {"Flickr8k_Dataset.zip": zipped({f"Flicker8k_Dataset/{name}": data for name, data in files.items()})},
    }
    for form, of_form in forms.items():
        write(tmp_path / form, of_form)
        kind = form.partition("/")[0]
        assert contents(opened(kind, folder=tmp_path / form)) == [(1, ("one",))]
        assert "has no captions: none of " in refused(kind, folder=pictures)
    (tmp_path / "flickr8k" / "tokens" / "Flickr_8k.testImages.txt").unlink()
    assert "has no list of the split test: none of" in refused("flickr8k", folder=tmp_path / "flickr8k" / "tokens")
    write(tmp_path / "coco" / "2014", {"val2014.zip": zipped({"other/7.jpg": b"?"})})
    assert "val2014.zip has no picture 1.jpg; give the archive that has it" in refused(
        "coco", folder=tmp_path / "coco" / "2014"
    )


# Pairs of sentences


def pairs(kind: str, folder: Path) -> list[tuple[str, str, float]]:
    found = SENTENCES[kind](kind=kind, folder=str(folder)).pairs()
    assert len(found) == len(found.first) == len(found.second)
    return list(zip(found.first, found.second, found.gold.tolist()))


def no_pairs(kind: str, folder: Path) -> str:
    with pytest.raises(ClipError) as caught:
        pairs(kind, folder)
    return str(caught.value)


SICK = "pair_ID\tsentence_A\tsentence_B\tentailment_label\trelatedness_score\tSemEval_set\n"
ROWS = '1\tA "dog" runs\tA cat\tNEUTRAL\t4.5\tTRAIN\n2\tA man\tA boy\tNEUTRAL\t3.6\tTEST\n3\tTwo\t2\tNEUTRAL\t5\tTEST\n'


def test_sick(tmp_path):
    (tmp_path / "SICK.txt").write_text(SICK + ROWS)
    assert pairs("sick", tmp_path) == [("A man", "A boy", 3.6), ("Two", "2", 5.0)]
    (tmp_path / "SICK.txt").write_text(SICK + ROWS.replace("3.6", "much"))
    assert "has the score 'much' in line 3, and a number is expected" in no_pairs("sick", tmp_path)
    (tmp_path / "SICK.txt").write_text(SICK + ROWS.replace("\tA boy", ""))
    assert "has 5 fields in line 3, and 6 columns" in no_pairs("sick", tmp_path)
    (tmp_path / "SICK.txt").write_text(SICK)
    assert "has 0 pairs of sentences, and at least two are needed" in no_pairs("sick", tmp_path)
    (tmp_path / "SICK.txt").write_text(SICK.replace("relatedness_score", "score") + ROWS)
    assert "has no column relatedness_score, only 'pair_ID'," in no_pairs("sick", tmp_path)
    (tmp_path / "SICK.txt").unlink()
    assert "has none of SICK.txt, SICK/SICK.txt," in no_pairs("sick", tmp_path)


@pytest.mark.parametrize("year", [12, 13, 14, 15, 16])
def test_sts_of_each_year(year, tmp_path):
    folder = tmp_path / f"STS{year}-en-test"
    write(folder, {"STS.input.a.txt": b"A man\tA boy\nTwo\t2\n", "STS.gs.a.txt": b"3.25\n\n"})
    write(folder, {"STS.input.b.txt": b"x\ty\textra\n", "STS.gs.b.txt": b"0\n", "STS.input.ALL.txt": b"x\ty\n"})
    expected = [("A man", "A boy", 3.25), ("x", "y", 0.0)]
    assert pairs(f"sts{year}", tmp_path) == pairs(f"sts{year}", folder) == expected
    write(folder, {"STS.gs.b.txt": b"0\n1\n"})
    assert "STS.input.b.txt has 1 lines and" in no_pairs(f"sts{year}", tmp_path)
    write(folder, {"STS.gs.b.txt": b"0\n", "STS.input.b.txt": b"x y\n"})
    assert "has 'x y' in line 1, not two sentences" in no_pairs(f"sts{year}", tmp_path)
    assert "has no STS.input.*.txt; give the folder with STS" in no_pairs(f"sts{year}", Path(__file__).parent)


def test_the_sts_benchmark(tmp_path):
    write(tmp_path, {"sts-test.csv": b'main\tfile\t2012\t1\t2.5\tA "girl\tA brush\tx\nmain\tfile\t2012\t2\t4\tc\td\n'})
    assert pairs("stsb", tmp_path) == [('A "girl', "A brush", 2.5), ("c", "d", 4.0)]
    write(tmp_path / "tsv" / "stsbenchmark", {"sts-test.tsv": b"sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n"})
    assert pairs("stsb", tmp_path / "tsv") == [("a", "b", 1.0), ("c", "d", 2.0)]
    write(tmp_path, {"sts-test.csv": b"main\tfile\n"})
    assert "has 2 fields in line 1, too few for a pair" in no_pairs("stsb", tmp_path)
