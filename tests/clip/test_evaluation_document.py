"""docs/evaluation.md is true: its commands and its snippet run, and its tables are those of the code."""

from __future__ import annotations

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

from clip import report, samples
from clip.evaluation import TRAINING_SHARE
from clip_core.data.families import FAMILIES
from clip_core.data.shapes import TRAINED, Scene, Thing, describe, draw, random_for
from clip_core.evaluation import calibration, intervals, probe, scores
from clip_core.evaluation.features import PART
from clip_core.evaluation.sentences import SENTENCES
from clip_core.evaluation.sets import SETS
from clip_core.evaluation.sets.labelled import PublishedSettings
from clip_core.training.recipe import Evaluation
from tests.clip.running import ROOT
from tests.evaluation import layouts

DOCUMENT = (ROOT / "docs" / "evaluation.md").read_text()
BLOCKS = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)]
(SNIPPET,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
(SECTION,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
KINDS = TRAINED[::12][:3]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with the data that the page names."""
    folder = tmp_path_factory.mktemp("document")
    annotations = {"images": [], "annotations": []}
    for number, (kind, place) in enumerate((kind, place) for kind in KINDS for place in range(3)):
        scene = Scene(Thing(*kind, "large", "solid"))
        picture = draw(scene, random_for("document", 0, number))
        for target in (
            *(folder / part / "_".join(reversed(kind)) / f"{place}.png" for part in ("pictures", "training")),
            folder / "COCO" / "val2017" / f"{number}.png",
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
        annotations["images"].append({"id": number, "file_name": f"{number}.png"})
        annotations["annotations"].append({"image_id": number, "caption": f"{describe(scene)} {number}"})
    (folder / "COCO" / "annotations").mkdir()
    (folder / "COCO" / "annotations" / "captions_val2017.json").write_text(json.dumps(annotations))
    layouts.write(folder / "CIFAR" / "cifar-10-batches-bin", layouts.cifar10()["cifar-10-batches-bin"])
    for name in ("STS", "photos"):
        (folder / name).mkdir()
    lines = ["sentence1\tsentence2\tscore", "a red circle\ta red circle\t5", "a blue star\ta red circle\t1"]
    (folder / "STS" / "sts-test.tsv").write_text("\n".join(lines) + "\n")
    for path in list(samples.pictures().values())[:2]:
        (folder / "photos" / path.name).write_bytes(path.read_bytes())
    (folder / "photos" / "texts.txt").write_text("a blue circle\na red circle\n")
    return folder


def rows(head: str) -> list[list[str]]:
    """The rows of the table whose first column has this head."""
    table = re.search(rf"^\| {head} \|.*\n\|[ -|]*\n((\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def names_in(cells: list[str]) -> list[str]:
    return list(chain.from_iterable(re.findall(r"`([\w.]+)`", cell) for cell in cells))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[0].split()[2])
def test_the_commands(block, run, data, tmp_path, monkeypatch):
    for path in data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    documented = {name.replace("_", " ") for name in names_in([row[0] for row in rows("score")])}
    for line in block:
        program, *arguments = shlex.split(line)
        assert program == "clip"
        ended = run(*arguments)
        assert ended.code == 0, ended.err
        lines = [text.split("  ")[0] for text in ended.out.splitlines()]
        if "score" in lines:
            assert re.fullmatch(r"shapes on \w+: [-\w ]+, \w+(, \w+)*: \d.*", lines[0])
            lines = lines[1:]
            shown = lines[1 : lines.index("calibration error")] if "calibration error" in lines else lines[1:]
            assert set(shown) <= documented | {"class: all backends choose the same for 9 of 9"}


def test_the_snippet(data, monkeypatch):
    monkeypatch.chdir(data)
    with redirect_stdout(io.StringIO()) as printed:
        exec(SNIPPET, {})  # noqa: S102
    assert re.fullmatch(r"1\.00, from 1\.00 to 1\.00\n", printed.getvalue())


def test_the_recipe():
    section = Evaluation.model_validate(yaml.safe_load(SECTION)["evaluation"])
    assert section.sentences.kind == "stsb"


def test_every_data_set_is_named():
    table = {names_in([row[0]])[0]: row for row in rows("data set")}
    assert table.keys() == SETS.keys()
    for kind, (_, _, names, templates) in table.items():
        if issubclass(SETS[kind], PublishedSettings) and kind != "wds":
            assert templates == f"`{SETS[kind].default[0]}`"
        assert ("OpenAI's list" in names) == kind.startswith("imagenet")
    (captions,) = re.findall(r"scored by retrieval: (.*?) and all other", DOCUMENT)
    assert set(names_in([captions])) <= FAMILIES.keys()
    (sentences,) = re.findall(r"Sets of sentences are (.*?), with the files", DOCUMENT, re.DOTALL)
    assert set(names_in([sentences])) == SENTENCES.keys()


def test_every_score_is_defined():
    features = np.eye(12, dtype=np.float32)
    found = [
        scores.zero_shot_scores(features, features, np.arange(12), [""] * 12, 100.0),
        scores.retrieval_scores(features, features, np.arange(12)[:, None]),
        scores.sentence_scores(np.arange(3.0), np.arange(3.0)),
    ]
    of_tasks = {"held_out_top1", "trained_top1", "top1_before", "top1_after", "follows_the_text"}
    assert set(names_in([row[0] for row in rows("score")])) == of_tasks.union(*(each.scores for each in found))


def test_the_files_of_a_report():
    assert set(names_in([row[0] for row in rows("file")])) == {
        *(report.REPORT, report.TABLES, report.SAMPLES, "features"),
        *report.PICTURES,
    }


def test_the_figures():
    for figure in (
        f"{100 * intervals.LEVEL:.0f} % of the scores of {intervals.RESAMPLES:,} resamples",
        f"accuracies in {calibration.BINS} bins",
        f"at most {100 * scores.ERROR:.0f} % (`--error`)",
        f"in parts of {PART:,}",
        f"from 1e-{probe.DECADES} to 1e{probe.DECADES}",
        f"{100 * TRAINING_SHARE:.0f} % of the pictures of a set",
    ):
        assert figure in DOCUMENT
