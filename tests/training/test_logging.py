"""What a run tells: the numbers in each place, and that no place that fails ends or spoils the training."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from clip_core.training.checkpoint import newest, read
from clip_core.training.loop import train
from clip_core.training.monitors import EVENTS
from clip_core.training.plot import plot
from clip_core.training.progress import ProgressBar, ProgressLines
from clip_core.training.recipe import Log
from clip_core.training.run_log import EVALUATION, RunLog, read_metrics
from tests.clip.running import RECIPE
from tests.requested import FRAMEWORKS
from tests.training.disturbances import Wrapped, largest_file
from tests.training.tiny import tiny_data, tiny_recipe, tiny_trainer

ROOT = Path(__file__).parents[2]
EVALUATED = {"every_steps": 4, "batch_size": 8, "retrieval": {"kind": "shapes", "examples": 16}}
METRICS = {
    "step": 60,
    "epoch": 3,
    "loss": 3.43774,
    "logit_scale": 14.2857,
    "learning_rate": 3e-4,
    "gradient_norm": 1.5,
    "top1": 0.125,
    "top5": 0.5,
    "samples_per_second": 326.4,
}


def run(recipe, tokenizer, output: Path, trainer=None, **options):
    return train(recipe, trainer or tiny_trainer(recipe), tiny_data(recipe), tokenizer, output, **options)


@pytest.fixture(scope="module")
def told(tokenizer, tmp_path_factory) -> Path:
    """A run that tells everywhere, stopped at step 6 and resumed from the checkpoint of step 4."""
    output = tmp_path_factory.mktemp("told") / "run"
    recipe = tiny_recipe(log={"tensorboard": True, "nnabla_monitor": True}, evaluation=EVALUATED)
    run(recipe, tokenizer, output, steps=6)
    run(recipe, tokenizer, output, resume=output / "checkpoints" / "step-00000004")
    return output


def test_every_evaluation_stands_once(told):
    lines = read_metrics(told, EVALUATION)
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(0 < line["validation_loss"] < 5 and line["faults"] == 0 for line in lines)


def test_evaluation_does_not_change_the_training(told, tokenizer, tmp_path):
    run(tiny_recipe(), tokenizer, tmp_path / "run")
    losses = [[line["loss"] for line in read_metrics(folder)] for folder in (told, tmp_path / "run")]
    assert losses[0] == losses[1]


def events(path: Path) -> list[Event]:
    """The records of an event file, judged by another implementation."""

    def masked(data: bytes) -> int:
        checksum = crc32c(data)
        return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data, found = path.read_bytes(), []
    while data:
        length, checksum = struct.unpack("<QI", data[:12])
        assert checksum == masked(data[:8])
        content, (checksum,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length : 16 + length])
        assert checksum == masked(content)
        found.append(Event.FromString(content))
        data = data[16 + length :]
    return found


def test_tensorboard_reads_every_number(told):
    first, second = sorted(told.glob(f"{EVENTS}*"))
    assert [first.name[-10:], second.name[-10:]] == ["0000000000", "0000000004"]
    assert events(first)[0].file_version == events(second)[0].file_version == "brain.Event:2"
    resumed = events(second)[1]
    assert (resumed.step, resumed.session_log.status) == (5, 1)  # drop what was told of step 5 and on before
    found = {
        (value.tag, event.step): value.simple_value
        for event in [*(event for event in events(first) if event.step < resumed.step), *events(second)]
        for value in event.summary.value
    }
    expected = {
        (f"train/{name}", line["step"]): value
        for line in read_metrics(told)
        for name, value in line.items()
        if name not in ("step", "epoch")
    }
    expected |= {
        (f"evaluation/{name}", line["step"]): value
        for line in read_metrics(told, EVALUATION)
        for name, value in line.items()
        if name != "step"
    }
    assert found.keys() == expected.keys()
    assert found == {key: np.float32(value) for key, value in expected.items()}


def test_a_start_at_the_same_step_replaces_the_event_file(tmp_path):
    for start in (0, 8, 4):
        with RunLog(tmp_path, Log(tensorboard=True), after=start, last=9):
            pass
    assert sorted(path.name for path in tmp_path.glob(f"{EVENTS}*")) == [f"{EVENTS}0000000000", f"{EVENTS}0000000004"]


@pytest.mark.needs("nnabla")
def test_the_monitor_files_are_nnablas(told, tmp_path):
    from nnabla.monitor import Monitor, MonitorSeries

    monitor = Monitor(str(tmp_path))
    values = {
        "Total loss": [(line["step"], line["loss"]) for line in read_metrics(told)],
        "Logit scale": [(line["step"], np.log(line["logit_scale"])) for line in read_metrics(told)],
        "Learning rate": [(line["step"], line["learning_rate"]) for line in read_metrics(told)],
    }
    scores = read_metrics(told, EVALUATION)
    values |= {
        f"Evaluation {name}": [(line["step"], line[name]) for line in scores] for name in scores[0] if name != "step"
    }
    for name, points in values.items():
        series = MonitorSeries(name, monitor, interval=1, verbose=False)
        for step, value in points:
            series.add(step, value)
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (told / "monitor", tmp_path)
    )
    assert ours == theirs
    assert len(ours["Total-loss.series.txt"].splitlines()) == 12


def test_the_picture_has_the_scores_below_the_loss(told, tmp_path):
    with Image.open(told / "loss.png") as picture:
        assert picture.size == (1080, 1080)
        below = np.asarray(picture.convert("RGB")).astype(int)[560:950]
    assert (np.abs(below - (31, 119, 180)).sum(axis=2) < 30).sum() > 100  # the validation loss
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": null, "learning_rate": 0.1}\n')
    plot(tmp_path)  # a step that was skipped has no place in it


# The terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "numbers"),
    [
        (50, "loss 3.4377"),
        (80, "loss 3.4377  326 samples/s  top-1 12%"),
        (140, "loss 3.4377  326 samples/s  top-1 12%  scale 14.3  rate 3.0e-04  recall 0.2"),
    ],
)
def test_the_bar_shows_what_there_is_room_for(width, numbers):
    screen = io.StringIO()
    bar = ProgressBar(0, 200, Console(file=screen, width=width, force_terminal=True, color_system=None))
    bar.evaluation(50, {"recall": 0.2, "other": 0.1})
    bar.step(METRICS)
    bar.close()
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines() if line]
    assert "step 50: recall 0.2, other 0.1" in lines
    assert re.fullmatch(rf"epoch 3 \S+ +60/200 -:--:-- {re.escape(numbers)} *", lines[-1].split("\r")[-1])


def test_without_a_terminal_there_is_a_line_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("clip_core.training.progress.monotonic", lambda: now[0])
    lines = ProgressLines(10, 100)
    for step in range(11, 101):
        now[0] += 1
        lines.step(METRICS | {"step": step} | ({"skipped": True} if step == 12 else {}))
        if step == 50:
            lines.evaluation(50, {"recall": 0.25})
    told = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in told] == [
        "step 11/100",
        "step 41/100",
        "step 50: recall 0.25",
        "step 71/100",
        "step 100/100",
    ]
    assert told[1] == (
        "step 41/100  epoch 3  0:00:59 left  loss 3.4377  326 samples/s  skipped 1  top-1 12%  scale 14.3  rate 3.0e-04"
    )


# Places that fail -----------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_grow_does_not_end_the_training(tokenizer, tmp_path, capsys):
    """The disk is full for the metrics, which are long here, and not for a checkpoint."""
    recipe, output = tiny_recipe(), tmp_path / "run"
    run(recipe, tokenizer, output, steps=4)
    metrics = output / "metrics.jsonl"
    first, *rest = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([json.dumps(json.loads(first) | {"x" * (8 << 20): 1}) + "\n", *rest]))
    with largest_file(metrics.stat().st_size + 400):  # room for one line and a half
        outcome = run(recipe, tokenizer, output, resume=output)
    assert outcome.step == read(newest(output)).step == 12
    assert [line["step"] for line in read_metrics(output)] == [1, 2, 3, 4, 5]
    assert metrics.read_bytes().endswith(b"}\n")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning")]
    assert warnings == [
        "Warning: training went on, but not all of it could be written: the JSON lines (7 times: [Errno 27] File too "
        "large)."
    ]


def test_curves_that_cannot_be_drawn_do_not_end_the_training(tokenizer, tmp_path, capsys, monkeypatch):
    def fail(folder: Path) -> None:
        raise ValueError("no such font")  # of the drawing library

    monkeypatch.setattr("clip_core.training.loop.plot", fail)
    assert run(tiny_recipe(2), tokenizer, tmp_path / "run").step == 2
    assert "Warning: the curves could not be drawn: no such font" in capsys.readouterr().err


def test_a_log_whose_folder_is_gone_does_not_end_the_training(tokenizer, tmp_path, capsys):
    recipe, output = tiny_recipe(log={"nnabla_monitor": True}), tmp_path / "run"

    def remove() -> None:
        for path in (output / "monitor").iterdir():
            path.unlink()
        (output / "monitor").rmdir()

    assert run(recipe, tokenizer, output, Wrapped(tiny_trainer(recipe), 10, remove)).step == 12
    assert len(read_metrics(output)) == 12
    assert re.search(r"Warning: .*NNabla's monitor files \(3 times: .*No such file", capsys.readouterr().err)


@pytest.mark.parametrize("closed", ["the reader is gone", "from the start"])
def test_closed_output_changes_neither_training_nor_exit_code(closed, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    backend = FRAMEWORKS[-1]  # what writes is the same for all; NNabla is imported soonest
    command = [sys.executable, "-m", "clip", "train", "-c", "tiny.yaml", "--backend", backend, "--output", "run"]
    if closed == "from the start":
        command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert read(newest(tmp_path / "run")).step == 6
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_room_is_given_back(tmp_path):
    """What the tests above take for granted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        (tmp_path / "file").write_bytes(b"x" * 11)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before


def test_a_loss_of_zero_is_drawn_without_a_warning(tmp_path):
    lines = [json.dumps({"step": step, "loss": 0.0, "learning_rate": 0.1}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with Image.open(plot(tmp_path)) as picture:
        assert picture.size == (1080, 600)
