"""``clip label``: the labels of the classifier, in every form, from pictures and from their embeddings."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import clip
from clip.zero_shot import Classifier
from clip_core.data import shapes
from clip_core.image import open_image
from tests.clip.running import assert_refused

LABELS = ["a red circle", "a blue square", "a green star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """12 drawn pictures, and one that is broken."""
    made = tmp_path_factory.mktemp("drawn")
    for number in range(12):
        shapes.training_example(3, number).picture.save(made / f"{number:02}.png")
    (made / "05.png").write_bytes(b"")
    return made


@pytest.fixture
def command(folder, tmp_path) -> list[object]:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    return ["--labels-file", tmp_path / "labels.txt", "--backend", "numpy", "--fault-share", 0.1]


def test_the_labels_are_those_of_the_classifier(run, folder, command, tmp_path):
    target = tmp_path / "labels.csv"
    found = run("label", folder, *command, "-o", target, "--top-k", 2, "--json").json
    loaded = clip.api.open_model("shapes", backend="numpy")
    paths = [path for path in sorted(folder.iterdir()) if path.name != "05.png"]
    pixels = np.stack([loaded.preprocess.pixels(open_image(path)) for path in paths])
    scores = Classifier(loaded, LABELS, "{}").score(pixels).probabilities
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["rank"]) for row in rows] == [(str(path), rank) for path in paths for rank in "12"]
    order = np.argsort(-scores, axis=1)[:, :2]
    assert [row["label"] for row in rows] == [LABELS[place] for of_one in order for place in of_one]
    given = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(given, np.take_along_axis(scores, order, 1).ravel(), atol=1e-5)
    best = [LABELS[place] for place in order[:, 0]]
    assert found["labels"] == {label: best.count(label) for label in best}
    assert (found["pictures"], found["faults"]) == (12, 1)
    (fault,) = (tmp_path / "labels.faults.jsonl").read_text().splitlines()
    assert json.loads(fault)["name"] == str(folder / "05.png")


def test_embeddings_are_labelled_without_their_pictures(run, folder, command, tmp_path):
    out = tmp_path / "out"
    assert run("embed", folder, "-o", out, "--backend", "numpy", "--fault-share", 0.1).code == 0
    assert run("label", folder, *command, "-o", tmp_path / "a.jsonl").code == 0
    assert run("label", out, *command, "-o", tmp_path / "b.parquet").code == 0
    direct = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    kept = pyarrow.parquet.read_table(tmp_path / "b.parquet").to_pylist()
    assert [(row["path"], row["label"]) for row in kept] == [(row["path"], row["label"]) for row in direct]
    np.testing.assert_allclose([row["probability"] for row in kept], [row["probability"] for row in direct], atol=0.02)


def test_a_list_with_paths_and_labels_in_options(run, folder, command, tmp_path):
    (tmp_path / "list.csv").write_text(f"id,path\n1,{folder / '00.png'}\n2,{folder / '01.png'}\n")
    given = [part for label in LABELS for part in ("--labels", f"{label} ,")]
    assert run("label", folder / "00.png", folder / "01.png", *command, "-o", tmp_path / "a.csv").code == 0
    assert run("label", tmp_path / "list.csv", *given, "-o", tmp_path / "b.csv", "--backend", "numpy").code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    nothing = run("label", folder / "00.png", "-o", tmp_path / "c.csv", "--backend", "numpy")
    assert_refused(nothing, "There are no labels; give some with --labels or --labels-file.")


def test_several_templates_stand_for_a_label_by_their_mean(run, folder, command, tmp_path):
    (tmp_path / "templates.txt").write_text("{}\nthe {}\n")
    given = ["--templates", tmp_path / "templates.txt"]
    assert run("label", folder / "00.png", *command, *given, "-o", tmp_path / "l.jsonl").code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    texts = [[template.replace("{}", label) for label in LABELS] for template in ("{}", "the {}")]
    means = np.mean([clip.embed(texts=of_one, backend="numpy").array for of_one in texts], axis=0)
    cosines = clip.embed(folder / "00.png", backend="numpy").array @ means.T / np.linalg.norm(means, axis=1)
    assert row["label"] == LABELS[int(cosines.argmax())]


def test_what_cannot_be_labelled_is_refused(run, folder, command, tmp_path, other):
    out = tmp_path / "out"
    assert_refused(run("label", folder, *command, "-o", tmp_path / "l.txt"), "is no table by its name", ".parquet")
    assert_refused(run("label", folder / "05.png", *command, "-o", tmp_path / "l.csv"), "1 of 1 pictures")
    assert not (tmp_path / "l.csv").exists()
    assert run("embed", folder / "00.png", "-o", out, "--model", other, "--backend", "numpy").code == 0
    assert_refused(run("label", out, *command, "-o", tmp_path / "l.csv"), "cannot be labelled", "other.safetensors")
