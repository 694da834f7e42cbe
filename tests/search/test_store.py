"""The index on disk: exact search equals NumPy, changes are whole, and what is no index is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest

from clip_core import files
from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError
from clip_core.search import store
from clip_core.search.exact import ROWS
from clip_core.search.store import Change, Store, build
from clip_core.similarity import normalize
from tests.search.embedded import STAMP, embedded, unit_vectors

VECTORS = unit_vectors(2 * ROWS + 100)
QUERIES = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An index that no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    build(folder / "index.lance", embedded(folder / "out", VECTORS))
    return folder / "index.lance"


@pytest.fixture
def small(tmp_path) -> Store:
    """An index of ten rows."""
    return build(tmp_path / "index.lance", embedded(tmp_path / "out", unit_vectors(10)))


def ids_of(found: list[store.Hit]) -> list[str]:
    return [hit.row["id"] for hit in found]


def expected(query: np.ndarray, count: int, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """NumPy's answer, in float64."""
    cosines = normalize(VECTORS.astype(np.float64)) @ normalize(query.astype(np.float64))
    order = [place for place in np.argsort(-cosines, kind="stable") if rows[place]][:count]
    return [f"{place:05}.png" for place in order], cosines[order]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("where", [None, "width >= 100 AND width < 1500 AND label = 'it''s even'"])
def test_exact_search_equals_numpy(whole, held, where):
    numbers = np.arange(len(VECTORS))
    rows = np.ones(len(VECTORS), bool) if where is None else (numbers >= 100) & (numbers < 1500) & (numbers % 2 == 0)
    index = Store(whole)
    if held:
        index.hold()
    for query, found in zip(QUERIES, index.search(QUERIES, 20, where), strict=True):
        ids, cosines = expected(query, 20, rows)
        assert ids_of(found) == ids
        assert [hit.score for hit in found] == pytest.approx(cosines, abs=1e-12)
        assert found[0].row["path"] == f"a folder/{ids[0]}"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_equally_near_come_by_their_ids(tmp_path, dtype):
    """Wherever they stand, and however many there are."""
    same = np.repeat(unit_vectors(1), 3 * ROWS, axis=0).astype(dtype)
    names = [f"{number:05}" for number in np.random.default_rng(2).permutation(len(same))]
    index = build(tmp_path / "i", embedded(tmp_path / "out", same, names, stamp=replace(STAMP, dtype=dtype)))
    (found,) = index.search(QUERIES[:1], 5)
    assert ids_of(found) == ["00000", "00001", "00002", "00003", "00004"]
    assert len({hit.score for hit in found}) == 1


def test_vectors_of_other_lengths_are_made_unit(tmp_path):
    stamp = replace(STAMP, normalized=False, dtype="float32")
    vectors = unit_vectors(8).astype(np.float32)
    scaled = vectors * np.arange(1, 9, dtype=np.float32)[:, None]
    index = build(tmp_path / "i", embedded(tmp_path / "out", scaled, stamp=stamp))
    assert index.stamp == replace(stamp, normalized=True)
    np.testing.assert_allclose(np.linalg.norm(index.hold().vectors, axis=1), 1, atol=1e-6)
    scaled[3] = 0
    with pytest.raises(ClipError, match=r"^The embedding of 00003\.png has no direction"):
        build(tmp_path / "j", embedded(tmp_path / "zero", scaled, stamp=stamp))
    assert not (tmp_path / "j").exists()


def test_adding_twice_changes_nothing_and_a_changed_file_replaces_its_row(tmp_path, small):
    assert small.add(Parts(tmp_path / "out")) == Change(0, 0, 10)
    assert small.info()["table_version"] == 1
    names = ["00003.png", "new.png"]
    more = embedded(tmp_path / "more", unit_vectors(2, seed=3), names, bytes_of="changed")
    assert small.add(more) == Change(added=1, replaced=1, unchanged=0)
    assert small.add(more) == Change(0, 0, 2)
    assert len(Store(small.folder)) == len(small) == 11
    (found,) = small.search(unit_vectors(2, seed=3)[:1].astype(np.float32), 1)
    assert (found[0].row["id"], round(found[0].score, 6)) == ("00003.png", 1)


def test_rows_are_removed_by_id_pattern_and_condition(small):
    assert small.remove(ids=["00000.png", "none"], paths=["a folder/0000[1-2].*"], where="width = 9") == 4
    assert small.remove(ids=["00000.png"], paths=["00003*", "a?folder/0000[!3-8]*", "a folder/00003.pn"]) == 0
    assert {row["id"] for row in Store(small.folder).rows()} == {f"{number:05}.png" for number in range(3, 9)}
    assert small.remove(paths=["*"]) == 6
    assert small.search(QUERIES, 3) == [[], [], []]


@pytest.mark.parametrize(
    ("where", "part"),
    [
        ("width >", "the columns are id, path, width, height, sha256, caption, label, and"),
        ("nothing = 3", "No field named nothing; the columns are"),
        ("width", "does not return a boolean"),
        ("width / 0 > 1", "Divide by zero"),
        ("", "cannot be applied"),
        ("true; DROP TABLE embeddings", "has ';'"),
        ("true LIMIT 1", "cannot be applied"),
        ("true) OR (true", "parentheses that do not match"),
        ("true -- all", "has '--'"),
        ("id IN (SELECT id FROM embeddings)", "cannot be applied"),
        ("width > 'many'", "cannot be applied"),
        ("(" * 4000 + "true" + ")" * 4000, "cannot be applied"),
        ("width > 1 OR " * 1000 + "true", "has 13004 characters; at most 10000"),
    ],
)
def test_a_condition_is_a_condition_and_nothing_else(small, where, part):
    for attempt in (lambda: small.search(QUERIES, 3, where), lambda: small.remove(where=where)):
        with pytest.raises(ClipError) as error:
            attempt()
        assert part in str(error.value)
        assert "/" not in str(error.value).replace("width / 0", "")  # no place in LanceDB's own sources
    assert len(small) == 10


def test_other_embeddings_are_refused(tmp_path, small):
    for name, other, part in (
        ("weights", replace(STAMP, weights="2c" * 32), "weights 0a0a0a0a0a0a, and shapes has 2c2c2c2c2c2c"),
        ("tokenizer", replace(STAMP, tokenizer="2c" * 32), "tokenizer 1b1b1b1b1b1b, and shapes has 2c2c2c2c2c2c"),
        ("pixels", replace(STAMP, pixels=STAMP.pixels | {"resolution": 7}), "resolution 64, and shapes has resolution"),
    ):
        with pytest.raises(ClipError) as error:
            small.add(embedded(tmp_path / name, unit_vectors(3), stamp=other))
        assert part in str(error.value)
    assert small.info()["table_version"] == 1


def test_an_approximate_index_has_the_recall_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PARTITION", 64)
    parts = embedded(tmp_path / "out", VECTORS)
    monkeypatch.setattr(store, "PROBES", 1)
    with pytest.raises(ClipError, match=r"^The approximate index finds 0\.\d+ of the 10 nearest, less than 0\.95;"):
        build(tmp_path / "i", parts, approximate=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    monkeypatch.setattr(store, "PROBES", 1000)
    built = build(tmp_path / "i", parts, approximate=True)
    assert built.recall == 1
    assert built.search(QUERIES, 10, "width < 500") == built.search(QUERIES, 10, "width < 500", exact=True)
    more = embedded(tmp_path / "more", normalize(QUERIES).astype(np.float16), ["x", "y", "z"])
    built.add(more)
    assert [ids_of(found)[0] for found in Store(tmp_path / "i").search(QUERIES, 1)] == ["x", "y", "z"]


def test_an_interrupted_build_leaves_the_old_index(tmp_path, small, monkeypatch):
    other = embedded(tmp_path / "other", unit_vectors(3))
    with pytest.raises(ClipError, match=r"index\.lance is there already; give another name, or --force"):
        build(small.folder, other)
    monkeypatch.setattr(Store, "check_ids", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(small.folder, other, force=True)
    assert sorted(os.listdir(tmp_path)) == ["index.lance", "other", "out"]
    assert len(Store(small.folder)) == 10
    monkeypatch.undo()
    assert len(build(small.folder, other, force=True)) == 3
    assert sorted(os.listdir(tmp_path)) == ["index.lance", "other", "out"]


KILLED = """
import os, sys
from clip_core.embedding.parts import Parts
from clip_core.search import store
real = store._batches
def batches(*arguments):
    for batch in real(*arguments):
        yield batch
        os._exit(9)
store._batches = batches
if sys.argv[1] == "add":
    store.Store(sys.argv[2]).add(Parts(sys.argv[3]))
else:
    store.build(sys.argv[2], Parts(sys.argv[3]), force=True)
"""


def test_a_killed_process_leaves_the_old_index(tmp_path, small):
    embedded(tmp_path / "more", unit_vectors(4), ["a", "b", "c", "d"])
    for what in ("add", "build"):
        command = [sys.executable, "-c", KILLED, what, str(small.folder), str(tmp_path / "more")]
        ended = subprocess.run(command, cwd=Path(__file__).parents[2], timeout=120)
        assert ended.returncode == 9
        assert len(Store(small.folder)) == 10
    assert Store(small.folder).add(Parts(tmp_path / "more")) == Change(4, 0, 0)
    build(tmp_path / "index.lance", Parts(tmp_path / "more"), force=True)
    assert sorted(os.listdir(tmp_path)) == ["index.lance", "more", "out"]  # what the killed build left is gone


def test_two_writers_at_once(tmp_path, small):
    other = Store(small.folder)
    with files.exclusive(small.folder, "clip index"):
        for attempt in (lambda: other.add(Parts(tmp_path / "out")), lambda: other.remove(ids=["a"])):
            with pytest.raises(ClipError, match=r"index\.lance is in use by another clip index; wait for it"):
                attempt()
    small.remove(ids=["00000.png"])
    assert other.search(QUERIES, 10)[0] != small.search(QUERIES, 10)[0]  # as it was when it was opened
    assert other.add(Parts(tmp_path / "out")) == Change(added=1, replaced=0, unchanged=9)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ClipError, match="The id 'same' occurs more than once"):
        build(tmp_path / "i", embedded(tmp_path / "out", unit_vectors(4), ["a", "same", "b", "same"]))
    assert not (tmp_path / "i").exists()


def not_there(folder: Path) -> str:
    return "is no index; make one with clip index build"


def a_file(folder: Path) -> str:
    folder.write_text("text")
    return "is no index"


def an_empty_folder(folder: Path) -> str:
    folder.mkdir()
    return "is no index"


def another_table(folder: Path) -> str:
    lancedb.connect(str(folder)).create_table("embeddings", [{"id": "a"}])
    return "is no index that TriCLIP wrote"


def a_table_without_versions(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    shutil.rmtree(folder / "embeddings.lance" / "_versions")
    return "cannot be used"


def a_cut_manifest(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    (manifest,) = (folder / "embeddings.lance" / "_versions").glob("*.manifest")
    manifest.write_bytes(manifest.read_bytes()[:40])
    return "cannot be used"


def missing_data(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    shutil.rmtree(folder / "embeddings.lance" / "data")
    return "cannot be used"


def cut_data(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    (data,) = (folder / "embeddings.lance" / "data").glob("*.lance")
    data.write_bytes(data.read_bytes()[:100])
    return "cannot be used"


def overwritten_vectors(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    (data,) = (folder / "embeddings.lance" / "data").glob("*.lance")
    content, vector = data.read_bytes(), unit_vectors(10)[4].tobytes()
    assert vector in content
    data.write_bytes(content.replace(vector, b"\x00\x7b" * 16))
    return "is damaged: the vector of 00004.png has not the length 1"


def a_newer_format(folder: Path) -> str:
    shutil.copytree(folder.with_name("index.lance"), folder)
    content = lancedb.connect(str(folder)).open_table("embeddings").to_arrow()
    newer = content.replace_schema_metadata(content.schema.metadata | {b"triclip.index": b"2"})
    lancedb.connect(str(folder)).create_table("embeddings", newer, mode="overwrite")
    return "has the format '2', and this version of TriCLIP reads 1"


@pytest.mark.parametrize(
    "make",
    [
        *(not_there, a_file, an_empty_folder, another_table, a_table_without_versions, a_cut_manifest, missing_data),
        *(cut_data, overwritten_vectors, a_newer_format),
    ],
)
def test_what_is_no_index_is_refused_in_one_sentence(tmp_path, small, make):
    folder = tmp_path / "hostile"
    expected = make(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ClipError) as error:
        Store(folder).search(QUERIES, 10)
    assert expected in str(error.value)
    assert str(error.value).endswith(".")
    assert sorted(tmp_path.rglob("*")) == before  # nothing is made by looking


def test_names_that_look_like_addresses_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s3:", "100%20 #?é.lance", "db:"):
        built = build(name, embedded(tmp_path / f"of {name}", unit_vectors(2)))
        assert (tmp_path / name / "embeddings.lance").is_dir()
        assert len(built) == 2
    for name in ("db://cloud", "s3://bucket/index.lance", "a\0b"):
        with pytest.raises(ClipError):
            Store(name)


def test_a_stamp_that_cannot_be_read_is_refused(tmp_path, small):
    table = lancedb.connect(str(small.folder)).open_table("embeddings")
    content = table.to_arrow()
    metadata = content.schema.metadata | {b"triclip": json.dumps({"weights": 3}).encode()}
    lancedb.connect(str(tmp_path / "i")).create_table("embeddings", content.replace_schema_metadata(metadata))
    with pytest.raises(ClipError, match=r"^The stamp of .* cannot be read"):
        Store(tmp_path / "i")
