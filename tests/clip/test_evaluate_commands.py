"""``clip evaluate``: several backends, what a folder of output keeps, what is left out, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import clip
from backends.numpy import CLIP as Reference
from clip.figures import shown
from clip_core.data.shapes import TRAINED, Scene, Thing, draw, random_for
from clip_core.errors import ClipError
from clip_core.evaluation import features
from clip_core.evaluation.intervals import Score
from tests.clip.running import assert_refused
from tests.requested import BACKENDS

KINDS = TRAINED[::12][:4]
EACH = 5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder of pictures for each of four classes."""
    return draw_into(tmp_path_factory.mktemp("drawn"), "commands")


def draw_into(folder: Path, purpose: str) -> Path:
    for number, kind in enumerate(KINDS):
        inside = folder / "_".join(reversed(kind))
        inside.mkdir(parents=True)
        for place in range(EACH):
            picture = draw(Scene(Thing(*kind, "large", "solid")), random_for(purpose, number, place))
            picture.save(inside / f"{place}.png")
    return folder


@pytest.fixture
def data(drawn, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))


@pytest.fixture
def folders(run):
    """``clip evaluate folders`` in NumPy, unless told otherwise."""

    def call(folder, *arguments, backend="numpy"):
        return run("evaluate", "folders", "--data", folder, "--backend", backend, *arguments)

    return call


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The number of pictures of each batch that NumPy encodes."""

    def counted(self, pixels):
        batches.append(len(pixels))
        return embed(self, pixels)

    batches: list[int] = []
    embed = Reference.embed_image
    monkeypatch.setattr(Reference, "embed_image", counted)
    return batches


def test_all_backends_agree(folders, drawn):
    found = folders(drawn, "--json", backend=",".join(BACKENDS)).json
    assert list(found["results"]) == list(BACKENDS)
    scores = [of_backend["scores"] for of_backend in found["results"].values()]
    assert all(each == scores[0] for each in scores)
    assert scores[0]["top1"]["value"] >= 0.8
    assert found["data"]["pictures"] == len(KINDS) * EACH
    assert [choice["equal_share"] for choice in found["agreement"].values()] == [1] * (len(BACKENDS) > 1)


@pytest.mark.needs("torch")
def test_backends_that_disagree_end_the_command_with_1(folders, drawn, monkeypatch):
    embed = Reference.embed_image
    monkeypatch.setattr(Reference, "embed_image", lambda self, pixels: np.roll(embed(self, pixels), 1, axis=0))
    ended = folders(drawn, backend="torch,numpy")
    assert ended.code == 1
    assert "class: all backends choose the same for " in ended.out
    assert "of the samples, and --max-disagreement is 0.10%; clip parity says which backend is wrong.\n" in ended.err
    assert folders(drawn, "--max-disagreement", 1, backend="torch,numpy").code == 0


def test_from_python_the_report_is_that_of_the_command(folders, drawn):
    found = clip.evaluate(
        "folders", "shapes", folder=drawn, backend="numpy", keys={"templates": ["a large {}"]}, seed=3
    )
    (drawn.parent / "templates.txt").write_text("a large {}\n")
    ended = folders(drawn, "--templates", drawn.parent / "templates.txt", "--seed", 3, "--json")
    of_command = ended.json
    assert of_command["results"] == found.report["results"]
    assert of_command["data"]["fingerprint"] == found.report["data"]["fingerprint"]
    assert found.disagreement == 0


def test_from_python_no_process_is_started_unless_asked_for(drawn, monkeypatch):
    started: list[int] = []
    in_order = features.in_order
    monkeypatch.setattr(features, "MANY", 1)
    monkeypatch.setattr(
        features,
        "in_order",
        lambda work, tasks, workers, died: started.append(workers) or in_order(work, tasks, 0, died),
    )
    for options in ({}, {"workers": None}):
        clip.evaluate("folders", folder=drawn, backend="numpy", limit=4, **options)
    assert started == [0, min(4, os.cpu_count())]


def test_the_error_of_the_sets_is_that_of_the_option(folders, drawn):
    ended = folders(drawn, "--error", 0.5, "--json").json["results"]["numpy"]
    assert ended["sets"]["error"] == 0.5
    assert "sets of classes for 50 %" in folders(drawn, "--error", 0.5).out
    assert_refused(folders(drawn, "--error", 0), "The error of prediction sets is 0.0; give a share between 0 and 1")


def test_output_keeps_features_for_other_prompts(folders, drawn, tmp_path, encoded):
    output = ["--output", tmp_path / "out"]
    first = folders(drawn, *output, "--json").json
    assert sum(encoded) == len(KINDS) * EACH
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == first
    assert_refused(
        folders(drawn, *output), "report.json is there already", "the features that the folder keeps are used"
    )
    (tmp_path / "templates.txt").write_text("{}\n")
    encoded.clear()
    second = folders(drawn, *output, "--templates", tmp_path / "templates.txt", "--force", "--json").json
    assert encoded == []
    assert second["data"]["prompts"] == len(KINDS)
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "samples.parquet").to_pydict()
    assert sorted(rows["name"]) == sorted(str(path.relative_to(drawn)) for path in drawn.glob("*/*.png"))


def test_other_pictures_are_encoded_anew(folders, data, tmp_path, encoded):
    folders(data, "--output", tmp_path / "out")
    first = next(data.glob("*/0.png"))
    first.rename(first.with_name("other.png"))
    encoded.clear()
    assert folders(data, "--output", tmp_path / "out", "--force").code == 0
    assert sum(encoded) == len(KINDS) * EACH


def test_a_broken_picture_is_counted_and_named(folders, data):
    broken = next(data.glob("*/2.png"))
    broken.write_bytes(broken.read_bytes()[:-80])
    assert_refused(folders(data), "1 of 20 pictures could not be used, and at most 0 may be left out", str(broken))
    ended = folders(data, "--fault-share", 0.05)
    assert f"numpy: left out 1: {broken.relative_to(data)}\n" in ended.out
    found = folders(data, "--fault-share", 0.05, "--json").json["results"]["numpy"]
    assert found["pictures"] == 19
    assert list(found["faults"]) == [str(broken.relative_to(data))]


def test_what_has_changed_in_its_place_is_encoded_anew(folders, data, tmp_path):
    first, second = (next(data.glob(f"*/{name}")) for name in ("0.png", "1.png"))
    whole = first.read_bytes()
    first.write_bytes(b"half a picture")
    command = [data, "--output", tmp_path / "report", "--force"]
    assert_refused(folders(*command), "1 of 20 pictures could not be used, and at most 0 may be left out", str(first))
    assert "left out 1" in folders(*command, "--fault-share", 0.05).out
    assert_refused(folders(*command), "1 of 20 pictures could not be used, and at most 0 may be left out", str(first))
    first.write_bytes(whole)
    assert "left out" not in folders(*command).out
    other = next(folder for folder in data.iterdir() if folder != second.parent)
    shutil.copy(other / "0.png", second)
    ended = folders(*command, "--json").json["results"]["numpy"]
    assert ended["scores"]["top1"]["value"] == 0.95


@pytest.mark.parametrize(
    "given", [{"limit": 0}, {"batch_size": 0}, {"workers": -1}, {"seed": -1}, {"fault_share": float("nan")}]
)
def test_numbers_out_of_range_are_refused_in_python(given):
    with pytest.raises(ClipError, match=f"^{next(iter(given))} is .*; give a "):
        clip.evaluate("shapes", **given)


def test_a_limit_takes_equally_many_of_each_class(folders, drawn):
    found = folders(drawn, "--limit", 8, "--json").json
    assert found["limit"] == 8
    assert [row["pictures"] for row in found["results"]["numpy"]["per_class"]] == [2] * 4


def test_a_probe_tells_its_c(run, drawn, tmp_path):
    command = ["evaluate", "probe", "folders", "--data", drawn, "--backend", "numpy", "--json", "--train"]
    assert_refused(run(*command, drawn), "The training pictures are those that are to be scored")
    command.append(draw_into(tmp_path / "training", "training commands"))
    found = run(*command).json
    assert found["task"] == "linear probe"
    of_numpy = found["results"]["numpy"]
    assert of_numpy["scores"]["top1"]["value"] == 1
    assert of_numpy["fitted_pictures"] == 20
    assert 1e-6 <= of_numpy["C"] <= 1e6
    assert run(*command, "--shots", 2).json["results"]["numpy"]["fitted_pictures"] == 8
    own = ["evaluate", "probe", "folders", "--data", drawn, "--backend", "numpy", "--json"]
    parts = run(*own).json["data"]
    assert (parts["training_pictures"], parts["pictures"]) == (16, 4)
    assert_refused(run(*command, "--shots", 5), "has 5 training pictures, and a probe needs 9; give more pictures")


def test_typographic_writes_on_shapes_or_a_folder(run, drawn):
    shapes = run("evaluate", "typographic", "--backend", "numpy", "--limit", 9, "--json").json["results"]["numpy"]
    assert shapes["scores"].keys() == {"top1_before", "top1_after", "follows_the_text"}
    ended = run("evaluate", "typographic", "--data", drawn, "--backend", "numpy", "--seed", 5, "--json").json
    assert ended["data"]["written_seed"] == 5
    scores = {name: Score(**score) for name, score in ended["results"]["numpy"]["scores"].items()}
    assert scores["top1_before"].value >= scores["top1_after"].value
    shown_ones = run("evaluate", "typographic", "--data", drawn, "--backend", "numpy", "--seed", 5).out
    assert f"follows the text                   {shown('follows_the_text', scores['follows_the_text'])}" in shown_ones


def test_pairs_of_sentences(run, tmp_path):
    lines = ["a red circle\ta red circle\t5", "a red circle\ta blue star\t0", "a red star\ta red circle\t3"]
    (tmp_path / "sts-test.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    found = run("evaluate", "stsb", "--data", tmp_path, "--backends", ",".join(BACKENDS), "--json").json
    assert found["data"]["pairs"] == 3
    for of_backend in found["results"].values():
        assert of_backend["scores"]["spearman"]["value"] == pytest.approx(1)
    fewer = run("evaluate", "stsb", "--data", tmp_path, "--backend", "numpy", "--limit", 2, "--json").json
    assert fewer["results"]["numpy"]["pairs"] == 2


def change(data: Path, what: str) -> list[str]:
    """Make the data unfit, and give the options that go with it."""
    if what == "an empty class":
        (data / "empty").mkdir()
    if what == "no pictures":
        shutil.rmtree(data)
        data.mkdir()
    if what == "a template without a place":
        (data.parent / "templates.txt").write_text("a photo of {}\na photo\n")
        return ["--templates", str(data.parent / "templates.txt")]
    if what == "names of other folders":
        (data.parent / "names.txt").write_text("n01\ttench\nn02\tgoldfish\n")
        return ["--names", str(data.parent / "names.txt")]
    if what == "too few names":
        (data.parent / "names.txt").write_text("tench\ngoldfish\n")
        return ["--names", str(data.parent / "names.txt")]
    if what == "one class":
        for folder in sorted(data.iterdir())[1:]:
            shutil.rmtree(folder)
    return []


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("an empty class", "The class empty of"),
        ("no pictures", "has no pictures"),
        ("a template without a place", "templates.txt"),
        ("names of other folders", "names.txt"),
        ("too few names", "names.txt"),
        ("one class", "There is 1 class to choose from; give data of two classes or more"),
    ],
)
def test_unfit_data_is_refused(what, part, folders, data, encoded):
    assert_refused(folders(data, *change(data, what)), part)
    assert encoded == []


def test_data_in_another_layout_is_refused(run, drawn, tmp_path):
    for kind in ("cifar10", "mnist", "stl10", "wds", "parquet", "imagenetv2", "caltech101", "coco", "sick", "sts12"):
        found = run("evaluate", kind, "--data", drawn, "--backend", "numpy")
        assert_refused(found, str(drawn) if kind != "coco" else "")
    assert_refused(run("evaluate", "folders", "--data", tmp_path / "none"), "none cannot be read: no such file")
    assert_refused(run("evaluate", "food101", "--data", drawn, "--split", "x"), "The data set food101: split is 'x'")
    assert_refused(run("evaluate", "folders", "--data", drawn, "--backend", "jax"), "There is no backend 'jax'")
