"""``clip index``, ``search``, ``duplicates`` and ``cluster``, and `clip.Index`: on pictures of shapes and colours."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip
import converters
from clip import contact_sheet
from clip.api import weights_file
from clip.contact_sheet import Cell, Row
from clip.embedding import embed_into
from clip_core.data.shapes import KINDS, Kind
from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError
from clip_core.evaluation.shapes import SingleThings
from clip_core.installation import requirement
from clip_core.search.store import Hit, build
from tests.clip.running import assert_refused
from tests.requested import BACKENDS
from tests.search.embedded import STAMP, embedded, unit_vectors

FEW: list[Kind] = [(shape, colour) for shape in ("circle", "star", "heart") for colour in ("red", "blue", "green")]


def draw(folder: Path, kinds: Sequence[Kind], of_each: int) -> None:
    """Pictures of one thing each, with what it is in the name."""
    folder.mkdir()
    things = SingleThings(kinds, "search", of_each)
    for number in range(len(things)):
        things[number][0].save(folder / f"{things.name(number)}.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder with 90 pictures, and the file of one of them again under another name."""
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder / "pictures", FEW, 10)
    shutil.copy(folder / "pictures" / "blue star 3.png", folder / "pictures" / "copy.png")
    return folder


@pytest.fixture(scope="module")
def index(drawn) -> Path:
    embed_into(drawn / "out", [str(drawn / "pictures")], backend=BACKENDS[0])
    build(drawn / "index.lance", Parts(drawn / "out"))
    return drawn / "index.lance"


def names_of(hits: Sequence[Hit]) -> list[str]:
    return [Path(hit.row["path"]).stem for hit in hits]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_red_circle_finds_red_circles_first(backend, index):
    opened = clip.Index(index, backend=backend)
    assert sum(name.startswith("red circle") for name in names_of(opened.search("a red circle", count=10))) >= 9
    assert sum(name.startswith("blue star") for name in names_of(opened.search("a blue star", count=10))) >= 9
    assert opened.loaded.model.backend == backend


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_red_circle_finds_red_circles_first_among_2000(backend, tmp_path):
    draw(tmp_path / "pictures", KINDS, 25)
    parts = embed_into(tmp_path / "out", [str(tmp_path / "pictures")], backend=backend)
    assert len(parts) >= 2000
    opened = clip.Index.build(tmp_path / "out", tmp_path / "i", backend=backend)
    for colour, shape in (("red", "circle"), ("blue", "star"), ("green", "heart")):
        found = names_of(opened.search(f"a {colour} {shape}", count=10))
        assert sum(name.startswith(f"{colour} {shape}") for name in found) >= 9, found


def test_queries_are_sums_of_unit_vectors(index, drawn):
    opened = clip.Index(index, backend="numpy")
    circle = drawn / "pictures" / "red circle 0.png"
    parts = {
        "text": opened.query("a red circle"),
        "image": opened.query(image=circle),
        "minus": opened.query("a blue star"),
    }
    assert all(np.linalg.norm(part) == pytest.approx(1, abs=1e-6) for part in parts.values())
    total = parts["text"] + parts["image"] - parts["minus"]
    found = opened.query("a red circle", image=Image.open(circle), minus="a blue star")
    assert found == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    assert names_of(opened.search(image=circle, count=1)) == ["red circle 0"]
    assert opened.search(image=circle, count=1)[0].score == pytest.approx(1, abs=1e-5)
    (nearest,) = opened.nearest(parts["image"][None], 1)
    assert names_of(nearest) == ["red circle 0"]
    reds = names_of(opened.search("red", minus=["circle"], count=10))
    assert all(name.startswith("red") and "circle" not in name for name in reds)
    with pytest.raises(ClipError, match="cancel each other out"):
        opened.query("a red circle", minus="a red circle")
    with pytest.raises(ClipError, match="There is nothing to search for; give a text, or a picture with --image"):
        opened.search()
    with pytest.raises(ClipError, match=r"The queries have the shape \(1, 3\)"):
        opened.nearest(np.ones((1, 3)))
    with pytest.raises(ClipError, match="A query has no direction"):
        opened.nearest(np.zeros((1, opened.store.dimension)))


def test_an_index_of_arrays_and_of_texts(tmp_path, drawn):
    paths = sorted(map(str, (drawn / "pictures").glob("*circle 0.png")))
    embedded = clip.embed(paths, backend="numpy")
    opened = clip.Index.build(embedded, tmp_path / "i", backend="numpy")
    assert len(opened) == 3
    assert "red circle" in opened.search("a red circle", count=1)[0].row["path"]
    assert opened.add(clip.embed(drawn / "pictures" / "red star 1.png", backend="numpy")).added == 1
    assert "red star" in opened.search("a red star", count=1)[0].row["id"]
    assert opened.remove(paths=["*star*"]) == 1
    (tmp_path / "texts.txt").write_text("a red circle\na blue star\n")
    embed_into(tmp_path / "out", texts=tmp_path / "texts.txt", backend="numpy")
    texts = clip.Index.build(tmp_path / "out", tmp_path / "t", backend="numpy")
    assert texts.search(image=drawn / "pictures" / "blue star 2.png", count=1)[0].row["text"] == "a blue star"
    with pytest.raises(ClipError, match="is an index of texts, and the embeddings are of pictures"):
        texts.add(embedded)


def test_search_as_a_command(run, index, drawn, tmp_path):
    plot = tmp_path / "grid.png"
    command = ["search", index, "a red circle", "--top", "5", "--where", "width > 10", "--backend", "numpy"]
    found = run(*command, "--json", "--plot", plot).json
    assert [Path(hit["path"]).name[:10] for hit in found["results"]] == ["red circle"] * 5
    scores = [hit["score"] for hit in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert found["model"] == "shapes"
    lines = run(*command).out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"{score:.4f}" for score in scores]
    colours = np.asarray(Image.open(plot).convert("RGB")).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] > 180) & (colours[:, 1:] < 80).all(axis=1)).sum() > 1000  # red
    assert_refused(run(*command, "--plot", plot), "grid.png is there already")
    assert run(*command, "--where", "width > 1000").out.split() == ["score", "path"]


def test_index_commands(run, drawn, index, tmp_path):
    built = run("index", "build", drawn / "out", "-o", tmp_path / "i", "--json").json
    assert built == {"path": str(tmp_path / "i"), "rows": 91, "recall": None}
    assert run("index", "add", tmp_path / "i", drawn / "out", "--json").json == {
        **{"added": 0, "replaced": 0},
        "unchanged": 91,
    }
    pattern = ["--path", f"{drawn}/pictures/red*"]
    assert run("index", "remove", tmp_path / "i", *pattern, "--json").json == {"removed": 30}
    assert run("index", "add", tmp_path / "i", drawn / "out").out.split() == [
        *("added", "30", "replaced", "0"),
        *("unchanged", "61"),
    ]
    info = run("index", "info", tmp_path / "i", "--json").json
    assert (info["rows"], info["kind"], info["model"], info["search"]) == (91, "pictures", "shapes", "exact")
    shown = run("index", "info", tmp_path / "i").out
    assert shown.startswith(f"pictures                 91\nmodel                    shapes, in {BACKENDS[0]}, fp32\n")
    approximate = ["index", "build", drawn / "out", "-o", tmp_path / "a", "--approximate"]
    assert "recall@10 on a sample: 1.000" in run(*approximate).out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["search", "none", "a"], "none is no index; make one with clip index build"),
        (["search", "INDEX"], "There is nothing to search for"),
        (["search", "INDEX", "a", "--where", "nothing > 3"], "No field named nothing; the columns are id, path"),
        (["search", "INDEX", "a", "--image", "none.png"], "none.png cannot be read"),
        (["search", "INDEX", "a " * 100], "tokens"),
        (["search", "INDEX", "a", "--plot", "a.pdf"], "only PNG files are"),
        (["search", "INDEX", "a", "--top", "401", "--plot", "a.png"], "401 pictures are too many for one drawing"),
        (["index", "info", "none"], "none is no index"),
        (["index", "build", "none", "-o", "i"], "none cannot be read"),
        (["index", "build", "OUT", "-o", "INDEX"], "is there already; give another name, or --force"),
        (["index", "build", "OUT", "-o", "OUT", "--force"], "is a folder without an index"),
        (["index", "remove", "INDEX"], "give --id, --path or --where"),
        (["index", "remove", "INDEX", "--where", "1"], "does not return a boolean"),
        (["cluster", "INDEX", "-k", "92"], "has 91 rows, too few for 92 clusters"),
        (["cluster", "INDEX", "--labels-file", "none.txt"], "none.txt cannot be read"),
        (["duplicates", "INDEX", "-o", "OUT/from-00000000.parquet"], "is there already"),
    ],
)
def test_refusals(arguments, part, run, index, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"INDEX": str(index), "OUT": str(drawn / "out")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert_refused(run(*arguments), part)
    assert list(tmp_path.iterdir()) == []


def test_another_model_is_refused(run, index, tmp_path):
    """Other weights, another tokenizer, other pixels; and a converted file is the same model."""
    file = converters.read(weights_file("shapes")[0])
    converters.write(file, tmp_path / "same.h5")
    assert run("search", index, "a", "--model", tmp_path / "same.h5", "--backend", "numpy", "--json").code == 0
    weights = dict(file.weights)
    weights["logit_scale"] = weights["logit_scale"] + np.float32(0.5)
    converters.write(replace(file, weights=weights), tmp_path / "weights.h5")
    lines = str(file.vocabulary).rstrip("\n").split("\n")
    lines[-1], lines[-2] = lines[-2], lines[-1]
    converters.write(replace(file, vocabulary="\n".join(lines) + "\n"), tmp_path / "tokenizer.h5")
    converters.write(file.at_resolution(128), tmp_path / "pixels.h5")
    for name, what in (("weights", "has the weights"), ("tokenizer", "has the tokenizer"), ("pixels", "has the ")):
        refused = run("search", index, "a", "--model", tmp_path / f"{name}.h5", "--backend", "numpy")
        assert_refused(refused, f"{name}.h5 is not the model that", what, f"and {name}.h5 has", "cannot be compared")


def test_a_model_that_is_not_here_has_to_be_given(run, tmp_path):
    stamp = replace(STAMP, source="elsewhere.h5")
    build(tmp_path / "i", embedded(tmp_path / "out", unit_vectors(4), stamp=stamp))
    assert_refused(
        run("search", tmp_path / "i", "a"), "was made by elsewhere.h5, which is not in this folder; give it with"
    )


def test_duplicates(run, index, tmp_path):
    found = run("duplicates", index, "--threshold", "0.9999", "-o", tmp_path / "d.csv", "--json").json["groups"]
    (group,) = found
    assert [Path(member["path"]).name for member in group] == ["blue star 3.png", "copy.png"]
    assert [member["copy_of"] for member in group] == [None, group[0]["id"]]
    assert [member["cosine"] for member in group] == pytest.approx([1, 1], abs=1e-6)
    rows = list(csv.reader(io.StringIO((tmp_path / "d.csv").read_text())))
    assert rows[0] == ["group", "id", "path", "cosine", "copy_of"]
    assert [row[0] for row in rows[1:]] == ["1", "1"]
    assert "91 of 91 rows are in 1 group" in run("duplicates", index, "--threshold", "0").out
    written = run("duplicates", index, "--threshold", "0.9999", "-o", tmp_path / "again.csv").out
    assert written == f"2 of 91 rows are in 1 group; they are in {tmp_path / 'again.csv'}\n"


def test_clusters_with_names(run, index, drawn, tmp_path):
    names = [f"{colour} {shape}" for shape, colour in FEW]
    (tmp_path / "names.txt").write_text("\n".join(names))
    command = ["cluster", index, "-k", "9", "--labels-file", tmp_path / "names.txt", "--backend", "numpy"]
    ended = run(*command, "-o", tmp_path / "c.csv", "--plot", tmp_path / "c.png", "--json")
    found = ended.json["clusters"]
    assert sum(each["size"] for each in found) == 91
    assert [each["size"] for each in found] == sorted((each["size"] for each in found), reverse=True)
    right = [
        name for each in found for name in map(Path, each["representatives"]) if name.stem.startswith(each["name"])
    ]
    assert len(right) >= 0.7 * sum(len(each["representatives"]) for each in found)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert len(rows) == 91
    assert {row["name"] for row in rows} <= set(names)
    with Image.open(tmp_path / "c.png") as sheet:
        assert sheet.height > 9 * 120
    given = ["cluster", index, "-k", "9", "--labels", ",".join(names), "--backend", "numpy", "--json"]
    assert run(*given).json["clusters"] == found  # the same seed
    head, *_, last = run("cluster", index, "-k", "9", "--backend", "numpy", "-o", tmp_path / "d.csv").out.splitlines()
    assert head.split() == ["cluster", "size", "mean", "cosine", "nearest", "to", "the", "centre"]
    assert last == f"the cluster of each row is in {tmp_path / 'd.csv'}"


def test_a_contact_sheet_has_room_for_what_is_missing(drawn, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"x")
    cells = [Cell(str(drawn / "pictures" / "red circle 0.png"), "0.5"), Cell("no/$where$.png", "0.25")]
    figure = contact_sheet.contact_sheet([Row("a\n$title$", [*cells, Cell(str(tmp_path / "broken.png"), "0")] * 2)], 4)
    assert [len(axes.images) for axes in figure.axes] == [1, 0, 0, 1, 0, 0]
    assert figure.axes[1].get_xlabel() == "$where$.png\n0.25"
    assert [text.get_text() for text in figure.axes[1].texts] == ["cannot be read"]
    assert figure.texts[0].get_text() == "a\\n$title$"


def test_without_lancedb_the_sentence_names_the_extra(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ClipError, match=rf"install it with: pip install {re.escape(requirement('search'))}\."):
        clip.Index(index)
