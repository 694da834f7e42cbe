"""Reports of scores: files, tables and what the pictures show."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from clip import figures, report
from clip.command.scores import print_scores
from clip.evaluation import evaluate
from clip_core.errors import ClipError
from clip_core.evaluation.agreement import Choices, agreement
from clip_core.evaluation.intervals import Score
from clip_core.evaluation.scores import Scores, retrieval_scores, sentence_scores, zero_shot_scores
from clip_core.evaluation.shapes import Scenes
from clip_core.evaluation.tasks import Retrieval
from clip_core.installation import requirement
from clip_core.similarity import normalize

NAMES = ("cat", "$dog$ | <b>", "bird\n# big", "fish")


@cache
def classified(classes: int = 4, pictures: int = 200, names: tuple[str, ...] = ()):
    """Scores of which some are mistakes; the last class has no pictures."""
    generator = np.random.default_rng(0)
    of_classes = normalize(generator.standard_normal((classes, 8)).astype(np.float32))
    labels = generator.integers(0, classes - 1, pictures)
    noise = generator.standard_normal((pictures, 8)).astype(np.float32)
    images = normalize(of_classes[labels] + 0.6 * noise)
    names = list(names) or [f"class {number}" for number in range(classes)]
    return zero_shot_scores(images, of_classes, labels, names, 20.0)


@cache
def retrieved():
    generator = np.random.default_rng(0)
    images = normalize(generator.standard_normal((30, 8)).astype(np.float32))
    texts = normalize(images.repeat(2, 0) + 0.6 * generator.standard_normal((60, 8)).astype(np.float32))
    return retrieval_scores(images, texts, np.arange(60).reshape(30, 2))


@cache
def paired():
    gold = np.random.default_rng(0).uniform(0, 5, 50)
    return sentence_scores(np.cos(gold), gold)


def described(scores: dict[str, Scores], **changes) -> dict:
    """A report of these scores as `clip.evaluate` gives it."""
    return {
        "format": 1,
        "task": "linear probe",
        "data": {"kind": "cifar10", "fingerprint": "abc"},
        "model": {"name": "RN50", "files": {"RN50.pt": "12ab"}, "assumed": ["activation"]},
        "precision": "fp32",
        "limit": None,
        "seed": 0,
        "versions": {"numpy": "1.26.4"},
        "results": {name: found.to_dict() | {"faults": {}} for name, found in scores.items()},
        "agreement": {},
    } | changes


def samples(scores: dict[str, Scores]) -> dict:
    return {name: found.samples() for name, found in scores.items()}


def test_a_report_has_numbers_tables_pictures_and_a_row_for_each_sample(tmp_path):
    first = classified(names=NAMES)
    scores = {"torch": first, "numpy": first}
    told = described(scores)
    report.write(tmp_path / "report", told, scores, samples(scores))
    pictures = ["scores", "reliability", "confusion", "margins", "classes"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(
        ["report.json", "report.md", "samples.parquet", *(f"{name}.png" for name in pictures)]
    )
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == told
    rows = pyarrow.parquet.read_table(tmp_path / "report" / "samples.parquet").to_pydict()
    assert rows["backend"] == ["torch"] * 200 + ["numpy"] * 200
    assert rows["label"][:200] == [NAMES[label].replace("\n", "\\n") for label in first.labels]
    assert rows["rank"][200:] == first.comparison.ranks.tolist()
    assert rows["margin"][:200] == first.comparison.margins.tolist()
    assert rows["set_has_label"][:200] == first.sets.covered.tolist()
    tables = (tmp_path / "report" / "report.md").read_text()
    for name in pictures:
        assert f"![{name}]({name}.png)" in tables


def test_the_tables_tell_the_scores():
    found = classified(names=NAMES)
    tables = report.markdown(described({"torch": found}))
    top1, worst = found.scores["top1"], min(found.classes, key=lambda row: 2 if row.top1 is None else row.top1)
    assert tables.startswith("# RN50 on cifar10: linear probe, torch\n")
    ends = f"\\[{100 * top1.low:.2f}, {100 * top1.high:.2f}\\]"
    assert f"| top1 | {100 * top1.value:.2f} % {ends} |" in tables
    assert "| SHA-256 of RN50.pt | 12ab |" in tables
    calibration = found.calibration
    assert f"| expected error | {calibration.before.error:.4f} | {calibration.after.error:.4f} |" in tables
    assert f"| classes in a set, mean | {found.sets.size.value:.2f} |" in tables
    after = tables.split("found worst")[1].splitlines()[4]
    assert after.startswith(f"| {report._cell(worst.name)} | {worst.pictures} | {100 * worst.top1:.1f} %")


def test_names_are_no_markup():
    tables = report.markdown(described({"torch": classified(names=NAMES)}))
    assert "| \\$dog\\$ \\| \\<b\\> |" in tables
    assert "bird\\\\n\\# big" in tables
    assert "\n# big" not in tables


def test_faults_and_agreement_are_told():
    found = classified()
    told = described({"torch": found, "numpy": found})
    told["results"]["numpy"]["faults"] = {f"{number}.png": "is broken" for number in range(30)}
    told["agreement"] = {
        "class": {
            "samples": 200,
            "equal_share": 0.995,
            "smallest_margin_of_different": 1e-7,
            "largest_margin_of_different": 2e-6,
        },
        "none": {
            "samples": 200,
            "equal_share": 1.0,
            "smallest_margin_of_different": None,
            "largest_margin_of_different": None,
        },
    }
    tables = report.markdown(told)
    assert "| class | 200 | 99.500 % | 1.0e-07 to 2.0e-06 |" in tables
    assert "| none | 200 | 100.000 % |  |" in tables
    assert "## Left out (numpy)\n\n30 in all." in tables
    assert tables.count("is broken") == report.MOST_ROWS


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pictures are files without a picture, where it is not what is tested."""
    monkeypatch.setattr(report, "png", lambda figure: b"PNG")


def test_a_report_is_replaced_only_if_wanted_and_what_else_is_there_stays(tmp_path, undrawn):
    (tmp_path / "features").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    first, second = {"torch": classified()}, {"torch": retrieved()}
    report.write(tmp_path, described(first), first, samples(first))
    with pytest.raises(ClipError, match=r"is there already; give another name, or --force"):
        report.write(tmp_path, described(second), second, samples(second))
    assert json.loads((tmp_path / "report.json").read_text()) == described(first)
    report.write(tmp_path, described(second), second, samples(second), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["features", "notes.txt", "report.json", "report.md", "samples.parquet", "scores.png", "margins.png"]
    )
    assert json.loads((tmp_path / "report.json").read_text()) == described(second)


def test_a_report_that_cannot_be_finished_leaves_nothing(tmp_path, undrawn):
    scores = {"torch": paired()}
    with pytest.raises(ValueError, match="Out of range float"):
        report.write(tmp_path / "report", described(scores, seed=float("nan")), scores, samples(scores))
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_writes_its_report_and_refuses_to_replace_it_before_it_encodes(tmp_path):
    task, told = Retrieval(Scenes(12, 0)), []
    options = {"backend": "numpy", "output": tmp_path / "report", "plot": tmp_path / "scores.png"}
    found = evaluate(task, "shapes", **options)
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == found.report
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    rows = pyarrow.parquet.read_table(tmp_path / "report" / "samples.parquet").to_pydict()
    assert rows["name"] == [f"picture {number}" for number in range(12)] + [
        f"caption 0 of picture {number}" for number in range(12)
    ]
    right = np.array(rows["rank"]) == 0
    assert right.sum() > 12
    assert (np.array(rows["nearest"]) == rows["picture"])[right].all()
    for name in ("output", "plot"):
        with pytest.raises(ClipError, match=r"is there already"):
            evaluate(task, "shapes", **{name: options[name]}, progress=lambda *state: told.append(state))
    assert told == []


@pytest.mark.parametrize(
    ("missing", "asked", "message"),
    [
        ("matplotlib", {"plot": "a.png"}, rf"^Drawing needs matplotlib; .* {re.escape(requirement('plot'))}\.$"),
        ("matplotlib", {"folder": "a"}, r"^Drawing needs matplotlib"),
        ("pyarrow", {"folder": "a"}, rf"^A report of samples needs pyarrow; .* {re.escape(requirement('data'))}\.$"),
        ("none", {"plot": "a.pdf"}, r"^a\.pdf cannot be drawn: only PNG files are"),
        ("none", {"plot": "there.png"}, r"^there\.png is there already"),
        ("none", {"folder": "."}, r"report\.json is there already"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch, missing, asked, message):
    monkeypatch.chdir(tmp_path)
    for name in ("there.png", "report.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == missing else "here")
    with pytest.raises(ClipError, match=message):
        report.check(**asked)
    if missing == "none" and "pdf" not in str(asked):
        report.check(**asked, force=True)
    if missing == "pyarrow":
        report.check(plot="a.png")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"plot": "none/a.png"}, r"^none/a\.png cannot be written: there is no such folder"),
        ({"folder": "there.png"}, r"^there\.png cannot be written to: there\.png is a file"),
        ({"folder": "there.png/a/b"}, r"^there\.png/a/b cannot be written to: there\.png is a file"),
    ],
)
def test_no_folder_and_a_file_in_its_place_are_refused_before_the_work(tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").touch()
    for force in (False, True):
        with pytest.raises(ClipError, match=message):
            report.check(**asked, force=force)
    report.check("new/folder", "a.png")


def axes_of(scores: dict[str, Scores], name: str):
    panel, _ = figures._panels(scores, {})[name]
    return figures._figure([panel], scores, "title", (8, 5)).axes[0]


@pytest.mark.parametrize(
    ("scores", "names"),
    [
        (classified, ["scores", "reliability", "confusion", "margins", "classes"]),
        (retrieved, ["scores", "margins"]),
        (paired, ["scores", "pairs"]),
    ],
)
def test_every_aspect_has_a_picture(scores, names):
    found = {"torch": scores()}
    assert list(figures.figures(found, "title")) == names
    assert {f"{name}.png" for name in names} <= set(report.PICTURES)
    picture = Image.open(io.BytesIO(figures.png(figures.summary(found, "$a title$")))).convert("L")
    assert picture.width == 14 * figures.DOTS_PER_INCH
    assert 0.5 < (np.asarray(picture) == 255).mean() < 0.98


@pytest.mark.parametrize(
    "scores",
    [
        lambda: zero_shot_scores(np.eye(2), np.eye(2), np.array([0, 1]), ["a", "b"], 100.0),
        lambda: zero_shot_scores(np.eye(30), np.eye(30), np.arange(30), [""] * 30, 100.0),  # no mistake
        lambda: retrieval_scores(np.eye(2), np.eye(2), [[0, 1], [0, 1]]),  # no foreign target
        lambda: sentence_scores(np.array([0.3, 0.2]), np.array([1.0, 2.0])),
    ],
)
def test_what_is_extreme_can_be_drawn(scores, monkeypatch):
    monkeypatch.setattr(figures, "DOTS_PER_INCH", 30)
    found = {"torch": scores()}
    json.dumps(found["torch"].to_dict(), allow_nan=False)
    assert all(figures.png(figure).startswith(b"\x89PNG") for figure in figures.figures(found, "title").values())


def test_bars_are_the_scores():
    first = retrieved()
    second = replace(first, text_to_image=first.image_to_text)
    axes = axes_of({"torch": first, "numpy": second}, "scores")
    recalls = [score.value for name, score in first.scores.items() if "recall" in name]
    of_second = [score.value for name, score in second.scores.items() if "recall" in name]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(recalls + of_second)
    assert axes.get_yticklabels()[0].get_text() == "image to text recall at 1"
    assert len(recalls) == 6


def test_few_classes_are_drawn_as_a_matrix():
    found = classified(names=NAMES)
    axes = axes_of({"torch": found}, "confusion")
    drawn = np.asarray(axes.images[0].get_array())
    expected = np.zeros((3, 4))
    rows, columns, counts = found.confusion
    expected[rows, columns] = counts
    assert drawn == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    heads = [tick.get_text() for tick in axes.get_xticklabels()]
    assert heads == ["cat", "$dog$ | <b>", "bird\\n# big", "any other"]


def test_of_many_classes_the_most_frequent_mistakes_and_the_extremes_are_drawn():
    found = classified(classes=60, pictures=900)
    axes = axes_of({"torch": found}, "confusion")
    rows, columns, counts = found.confusion
    most = np.sort(counts[rows != columns])[::-1][: figures.MOST_CELLS]
    assert [bar.get_width() for bar in axes.patches] == most.tolist()
    own, other = axes.get_yticklabels()[0].get_text().split(" → ")
    cell = (rows == int(own.split()[1])) & (columns == int(other.split()[1]))
    assert counts[cell] == most[0]
    axes = axes_of({"torch": found}, "classes")
    shares = sorted(row.top1 for row in found.classes if row.top1 is not None)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(shares[:20] + shares[-20:])


def test_the_agreement_of_backends_is_drawn_with_a_cross_for_each_choice_that_differs():
    nearest, margins = np.array([0, 1, 1, 0]), np.array([0.1, 0.2, 1e-6, 0.0], np.float32)
    first, second = Choices(nearest, margins), Choices(np.array([0, 1, 0, 1]), margins)
    agreed = {"class": agreement({"torch": first, "numpy": second}), "other": agreement({"torch": first})}
    scores = {"torch": classified(), "numpy": classified()}
    axes = figures.figures(scores, "title", agreed)["agreement"].axes[0]
    (crosses,) = axes.collections
    assert crosses.get_offsets()[:, 0].tolist() == pytest.approx([1e-6, figures.LEAST_MARGIN])
    heights = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert heights == pytest.approx([1, 1])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "class: 2 of 4 equal",
        "other: 4 of 4 equal",
    ]
    assert "agreement.png" in report.PICTURES


def test_no_bar_of_margins_is_right_and_wrong():
    found = classified()
    axes = axes_of({"torch": found}, "margins")
    right, wrong = (container.patches for container in axes.containers)
    assert sum(bar.get_height() for bar in right) == pytest.approx(found.scores["top1"].value)
    assert sum(bar.get_height() for bar in wrong) == pytest.approx(1 - found.scores["top1"].value)
    assert not any(one.get_height() and other.get_height() for one, other in zip(right, wrong))


def test_the_curve_is_that_of_the_bins():
    found = classified()
    axes = axes_of({"torch": found}, "reliability")
    _, before, after = axes.lines
    used = found.calibration.before.counts > 0
    assert before.get_ydata() == pytest.approx(found.calibration.before.accuracy[used])
    assert f"error {100 * found.calibration.after.error:.1f} %" in after.get_label()


def test_shares_are_shown_in_per_cent_and_ranks_and_correlations_are_not():
    score = Score(0.98765, 0.9, 1.0)
    assert figures.shown("top1", score) == "98.77 % [90.00, 100.00]"
    assert figures.shown("spearman", score) == "0.9877 [0.9000, 1.0000]"
    assert figures.shown("image_to_text_median_rank", Score(2, 1, 3.5)) == "2.0 [1.0, 3.5]"


def test_a_terminal_shows_scores_of_all_backends_and_what_sets_hold(capsys):
    found = classified()
    print_scores({"torch": found, "numpy": found})
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {cells[0] or cells[1]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}
    assert table["score"] == ["torch", "numpy"]
    assert table["top1"] == [figures.shown("top1", found.scores["top1"])] * 2
    assert table["sets of classes for 90 %"] == [figures.shown("coverage", found.sets.coverage)] * 2
    print_scores({"torch": paired()})
    assert "sets" not in capsys.readouterr().out
