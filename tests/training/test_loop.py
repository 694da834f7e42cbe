"""The loop: the same losses when stopped and resumed as when never stopped, and a clear end to every fault."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from math import log
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.backend import StepResult
from clip_core.data.shapes import TrainingSet
from clip_core.errors import ClipError
from clip_core.files import exclusive, sha256
from clip_core.installation import requirement
from clip_core.training.checkpoint import newest, read
from clip_core.training.loop import Outcome, train
from clip_core.training.recipe import Recipe
from clip_core.training.run_log import read_metrics
from clip_core.training.schedule import learning_rate
from tests.training.tiny import METRICS, TINY, tiny_data, tiny_recipe, tiny_trainer

# The same small run as a program of its own, to be stopped from outside.
PROGRAM = """
import sys
from pathlib import Path
import torch
from clip_core.text.bpe_training import learn
from clip_core.data.shapes import vocabulary_captions
from clip_core.text.bpe import BytePairTokenizer
from clip_core.training.loop import train
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate
from tests.training.tiny import TINY, tiny_data, tiny_trainer

torch.set_num_threads(1)
recipe = Recipe.read(sys.argv[1])
tokenizer = BytePairTokenizer(learn(vocabulary_captions(), 200))
outcome = train(recipe, tiny_trainer(recipe), tiny_data(recipe), tokenizer, Path(sys.argv[2]))
sys.exit(0 if outcome.signal is None else 128 + outcome.signal)
"""


def run(recipe: Recipe, tokenizer, output: Path, **options) -> Outcome:
    return train(recipe, tiny_trainer(recipe), tiny_data(recipe), tokenizer, output, **options)


def losses(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(output)]


@pytest.fixture(scope="module")
def uninterrupted(tokenizer, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    outcome = run(tiny_recipe(), tokenizer, output)
    assert outcome == Outcome(12, output / "checkpoints" / "step-00000012", losses(output)[-1][1], None)
    return output


def test_the_run_folder_has_one_object_per_step(uninterrupted):
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(list(line) == METRICS for line in lines)
    assert [line["learning_rate"] for line in lines[:3]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert [line["epoch"] for line in lines] == [1] * 7 + [2] * 5
    assert all(0 <= line["top1"] <= line["top5"] <= 1 for line in lines)
    assert min(line["gradient_norm"] for line in lines) > 0.1
    assert lines[0]["logit_scale"] == pytest.approx(1 / 0.07)
    assert min(line["samples_per_second"] for line in lines) > 0
    assert Recipe.read(uninterrupted / "recipe.yaml") == tiny_recipe()


def test_training_lowers_the_loss(tokenizer, tmp_path):
    recipe = tiny_recipe(
        80, data={"source": {"kind": "shapes", "examples": 2000}, "batch_size": 20}, schedule={"warm_up_steps": 20}
    )
    run(recipe, tokenizer, tmp_path / "run")
    values = [loss for _, loss in losses(tmp_path / "run")]
    assert np.mean(values[:10]) > log(20)  # chance
    assert np.mean(values[-10:]) < log(20) - 0.4


def test_the_loss_curve_shows_falling_ink(uninterrupted):
    with Image.open(uninterrupted / "loss.png") as picture:
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert picture.size == (1080, 600)
    assert (np.abs(colours - (31, 119, 180)).sum(axis=2) < 30).sum() > 500  # the line in blue


def test_a_resumed_run_has_exactly_the_losses_of_an_uninterrupted_one(uninterrupted, tokenizer, tmp_path):
    output = tmp_path / "run"
    assert run(tiny_recipe(), tokenizer, output, steps=6).step == 6
    assert losses(output) == losses(uninterrupted)[:6]
    run(tiny_recipe(), tokenizer, output, resume=output)
    assert losses(output) == losses(uninterrupted)
    expected, found = read(newest(uninterrupted)), read(newest(output))
    assert found.step == expected.step == 12
    assert found.loader == expected.loader
    assert all(np.array_equal(found.trainer[name], array) for name, array in expected.trainer.items())


def test_resuming_an_older_checkpoint_writes_each_step_once(uninterrupted, tokenizer, tmp_path):
    output = tmp_path / "run"
    run(tiny_recipe(), tokenizer, output, steps=10)
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # as a crash leaves it
    run(tiny_recipe(), tokenizer, output, resume=output / "checkpoints" / "step-00000008")
    assert losses(output) == losses(uninterrupted)


DAMAGED = [
    b"\0" * 4096,  # as a power cut leaves it
    b"\xff\xfe",
    b'{"step": 5, "loss": 1.0, "lear',
    b'{"step": "5", "learning_rate": 0.1}',
    b'{"step": true, "learning_rate": 0.1}',
    b'{"step": 5, "learning_rate": NaN}',
    b'{"step": 5, "learning_rate": 1e999}',
    b'{"step": 5, "learning_rate": null}',
    b'{"step": 5, "learning_rate": 0.1, "loss": "low"}',
    b'{"step": 5, "learning_rate": 1' + b"0" * 400 + b"}",
    b'{"loss": 3}',
    b"[" * 100_000,
    b"7",
    b"",
]


def test_damaged_lines_are_passed_over_and_said_once(uninterrupted, tokenizer, tmp_path, capsys):
    output = tmp_path / "run"
    evaluation = {"every_steps": 3, "batch_size": 8, "retrieval": {"kind": "shapes", "examples": 8}}
    run(tiny_recipe(evaluation=evaluation, log={"nnabla_monitor": True}), tokenizer, output, steps=6)
    for name in ("metrics.jsonl", "evaluation.jsonl", "monitor/Total-loss.series.txt"):
        first, *rest = (output / name).read_bytes().splitlines()
        (output / name).write_bytes(b"\n".join([first, *DAMAGED, *rest, b'{"step": 7']))
    assert len(read_metrics(output)) == 6
    capsys.readouterr()
    run(tiny_recipe(evaluation=evaluation, log={"nnabla_monitor": True}), tokenizer, output, resume=output)
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert told == [
        f"Passed over: {len(DAMAGED)} damaged lines of {output / 'metrics.jsonl'}.",
        f"Passed over: {len(DAMAGED) - 1} damaged lines of {output / 'evaluation.jsonl'}.",
    ]
    assert losses(output) == losses(uninterrupted)
    assert [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()] == [*range(1, 13)]
    series = (output / "monitor" / "Total-loss.series.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in series] == [*range(1, 13)]


def test_an_interrupt_ends_the_run_with_a_checkpoint_of_its_last_step(tmp_path):
    """Another signal does so in tests/clip/test_torch_train.py."""
    output = tmp_path / "run"
    process = started(output, tmp_path, tiny_recipe(100_000))
    wait_for(lambda: len(read_metrics(output)) >= 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert read(newest(output)).step == len(read_metrics(output))
    assert (output / "loss.png").is_file()


def started(output: Path, folder: Path, recipe: Recipe) -> subprocess.Popen:
    recipe.write(folder / "recipe.yaml")
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder / "recipe.yaml"), str(output)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for five minutes"
        assert process.poll() is None or condition(), f"the run ended with {process.returncode}"
        time.sleep(0.05)


class Diverging:
    """A trainer whose loss or gradient is not a number from some step on."""

    def __init__(self, inner, step: int, result: StepResult) -> None:
        self.inner, self.at, self.result = inner, step, result
        self.model, self.processes, self.distribution = inner.model, inner.processes, inner.distribution

    def step(self, pixels, tokens, learning_rate):
        self.at -= 1
        good = self.inner.step(pixels, tokens, learning_rate)
        return good if self.at > 0 else self.result

    def state(self):
        return self.inner.state()


@pytest.mark.parametrize("result", [StepResult(float("nan"), 1.0, 1.0), StepResult(1.0, 1.0, float("inf"))])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(result, tokenizer, tmp_path):
    recipe = tiny_recipe()
    trainer = Diverging(tiny_trainer(recipe), 7, result)
    with pytest.raises(ClipError, match=r"stopped at step 7.*last good checkpoint is .*step-00000004"):
        train(recipe, trainer, tiny_data(recipe), tokenizer, tmp_path / "run")
    assert read(newest(tmp_path / "run")).step == 4
    assert len(read_metrics(tmp_path / "run")) == 6


def test_a_folder_with_files_of_no_run_is_refused(tokenizer, tmp_path):
    for name in ("model.safetensors", "model-average.safetensors", "recipe.yaml", "metrics.jsonl", "loss.png"):
        output = tmp_path / name.partition(".")[0]
        output.mkdir()
        (output / name).write_text("of no run")
        with pytest.raises(ClipError, match=rf"{name} would be replaced, and there is no .*; give another folder\."):
            run(tiny_recipe(), tokenizer, output)
        assert [(path.name, path.read_text()) for path in output.iterdir()] == [(name, "of no run")]
    with pytest.raises(ClipError, match=r"loss\.png is a file; give the name of a folder for the run\."):
        run(tiny_recipe(), tokenizer, tmp_path / "loss" / "loss.png")


def test_a_folder_with_other_files_or_of_a_run_without_checkpoints_is_taken(tokenizer, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other.safetensors").write_text("mine")
    recipe = tiny_recipe()
    broken = Diverging(tiny_trainer(recipe), 1, StepResult(float("nan"), 1.0, 1.0))
    with pytest.raises(ClipError, match="stopped at step 1"):
        train(recipe, broken, tiny_data(recipe), tokenizer, tmp_path)
    assert (tmp_path / "recipe.yaml").exists()
    assert not (tmp_path / "checkpoints").exists()
    assert run(recipe, tokenizer, tmp_path, steps=1).step == 1
    assert [(tmp_path / name).read_text() for name in ("notes.txt", "other.safetensors")] == ["mine", "mine"]


def test_a_folder_with_another_run_is_refused(uninterrupted, tokenizer, tmp_path):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    with pytest.raises(ClipError, match="holds a training run already"):
        run(tiny_recipe(), tokenizer, uninterrupted)
    run(tiny_recipe(), tokenizer, tmp_path, steps=1)
    with pytest.raises(ClipError, match="holds a training run already"):  # whose later checkpoints would go
        run(tiny_recipe(), tokenizer, uninterrupted, resume=tmp_path)
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"learning_rate": 2e-3}}, "optimizer.learning_rate = 0.001, and the recipe says 0.002"),
        ({"training": {"seed": 6}}, "training.seed = 5, and the recipe says 6"),
        ({"data": {"batch_size": 9}}, "data.batch_size = 8, and the recipe says 9"),
        ({"data": {"source": {"kind": "shapes", "examples": 61}}}, "data.source.examples = 60, and the recipe says 61"),
        (
            {"model": {"architecture": "shapes"}},
            r"model\.architecture = a section of \d+ keys, and the recipe says 'shapes'",
        ),
        (
            {"model": {"architecture": TINY.to_dict() | {"embed_dim": 64}}},
            r"model\.architecture\.embed_dim = 32, and the recipe says 64",
        ),
        ({"data": {"augmentation": {"flip": 0.5}}}, r"data\.augmentation\.flip = 0.0, and the recipe says 0.5"),
        ({"loss": {"reduction": "sum"}}, "loss.reduction = 'mean', and the recipe says 'sum'"),
    ],
)
def test_resuming_with_another_recipe_says_what_differs(change, message, uninterrupted, tokenizer, tmp_path):
    with pytest.raises(ClipError, match=message):
        run(tiny_recipe(**change), tokenizer, tmp_path / "run", resume=uninterrupted)


class Shorter:
    """The same data without its last example."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner) - 1

    def __getitem__(self, index: int):
        return self.inner[index]

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


def test_resuming_on_other_data_is_refused(uninterrupted, tokenizer, tmp_path):
    recipe = tiny_recipe()
    with pytest.raises(ClipError, match="was made on 60 examples, and the data has 59 now; resume with the same data"):
        train(recipe, tiny_trainer(recipe), Shorter(tiny_data(recipe)), tokenizer, tmp_path / "run", 13, uninterrupted)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_resuming_on_other_data_of_the_same_number_is_refused(uninterrupted, tokenizer, tmp_path):
    recipe, other = tiny_recipe(), TrainingSet(6, 60)
    with pytest.raises(ClipError, match=r"was made on other data of as many examples: paths, captions or sizes have"):
        train(recipe, tiny_trainer(recipe), other, tokenizer, tmp_path / "run", 13, uninterrupted)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_changes_no_number_may_change_at_a_resume(uninterrupted, tokenizer, tmp_path):
    output = tmp_path / "run"
    run(tiny_recipe(), tokenizer, output, steps=6)
    changed = tiny_recipe(
        data={"fault_share": 0.5}, training={"micro_batch_size": 8}, checkpoint={"every_steps": 3, "background": True}
    )
    run(changed, tokenizer, output, resume=output)
    assert losses(output) == losses(uninterrupted)


def test_a_checkpoint_from_before_a_key_was_there_resumes(uninterrupted, tokenizer, tmp_path, capsys):
    """Without it, the default held."""
    output = tmp_path / "run"
    run(tiny_recipe(), tokenizer, output, steps=4)
    with open_described(newest(output)) as described:
        del described["recipe"]["training"]["compile"]
        del described["recipe"]["log"]
        del described["recipe"]["optimizer"]["ema_decay"]
        del described["loader"]["examples"], described["loader"]["fingerprint"]
    run(tiny_recipe(), tokenizer, output, resume=output)
    assert losses(output) == losses(uninterrupted)
    assert "Resumed with" not in capsys.readouterr().err


def test_a_checkpoint_with_a_key_that_is_not_known_is_refused(tokenizer, tmp_path):
    run(tiny_recipe(), tokenizer, tmp_path / "run", steps=2)
    with open_described(newest(tmp_path / "run")) as described:
        described["recipe"]["optimizer"]["lookahead"] = 5
    with pytest.raises(ClipError, match=r"step-00000002: there is no key optimizer\.lookahead"):
        run(tiny_recipe(), tokenizer, tmp_path / "run", resume=tmp_path / "run")


class Faulty(TrainingSet):
    def __getitem__(self, number: int):
        if number == 3:
            raise ClipError(f"Picture {number} is damaged.")
        return super().__getitem__(number)


def test_examples_that_could_not_be_used_are_told_once_at_the_end(tokenizer, tmp_path, capsys):
    recipe = tiny_recipe(data={"fault_share": 0.5})
    train(recipe, tiny_trainer(recipe), Faulty(5, 60), tokenizer, tmp_path / "run", 11)
    faults = (tmp_path / "run" / "faults.jsonl").read_text().splitlines()
    told = [line for line in capsys.readouterr().err.splitlines() if "Passed over" in line]
    listed = f"listed in {tmp_path / 'run' / 'faults.jsonl'}."
    assert told == [f"Passed over: 2 examples that could not be used, as {listed}"]
    assert [json.loads(line)["example"] for line in faults] == [3, 3]  # in each of the two epochs


def test_resuming_says_what_is_not_as_it_was(uninterrupted, tokenizer, tmp_path, capsys):
    output = tmp_path / "run"
    run(tiny_recipe(), tokenizer, output, steps=4)
    with open_described(newest(output)) as described:
        described["versions"] |= {"paddlepaddle": "3.0.0", "numpy": "1.0"}
        del described["versions"]["torch"]
        described["loader"]["skipped"] = [0, 0]
    capsys.readouterr()
    run(tiny_recipe(), tokenizer, output, resume=output)
    line = capsys.readouterr().err.splitlines()[0]
    changed = f"torch {version('torch')} instead of paddlepaddle 3.0.0, numpy {np.__version__} instead of 1.0"
    assert line == f"Resumed with {changed}, 1 process instead of 2; losses may differ in rounding."
    assert losses(output) == losses(uninterrupted)


def test_a_damaged_checkpoint_is_passed_over_by_name(uninterrupted, tokenizer, tmp_path, capsys):
    output = tmp_path / "run"
    run(tiny_recipe(), tokenizer, output, steps=8)
    damaged = newest(output) / "state.safetensors"
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    capsys.readouterr()
    run(tiny_recipe(), tokenizer, output, resume=output)
    assert f"Passed over: {damaged} has changed since it was written" in capsys.readouterr().err
    assert losses(output) == losses(uninterrupted)
    assert [entry.name for entry in sorted((output / "checkpoints").iterdir())] == ["step-00000008", "step-00000012"]
    assert read(output / "checkpoints" / "step-00000008").step == 8


@contextmanager
def open_described(checkpoint: Path):
    """The step, loader, recipe and versions of a checkpoint, to be changed as if it had been written so."""
    run_file, manifest_file = checkpoint / "run.json", checkpoint / "manifest.json"
    described, manifest = json.loads(run_file.read_text()), json.loads(manifest_file.read_text())
    yield described
    run_file.write_text(json.dumps(described))
    manifest["sha256"]["run.json"] = sha256(run_file)
    manifest_file.write_text(json.dumps(manifest))


def test_a_finished_run_resumes_to_nothing(uninterrupted, tokenizer, tmp_path):
    outcome = run(tiny_recipe(), tokenizer, tmp_path / "run", resume=uninterrupted)
    assert (outcome.step, outcome.loss, outcome.signal) == (12, None, None)


def test_the_loop_runs_outside_the_main_thread(tokenizer, tmp_path):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run(tiny_recipe(2), tokenizer, tmp_path / "run")))
    thread.start()
    thread.join()
    assert outcomes[0].step == 2


def test_the_folder_of_a_running_run_is_refused(tokenizer, tmp_path):
    with exclusive(tmp_path / "run", "training run"), pytest.raises(ClipError, match="in use by another training run"):
        run(tiny_recipe(), tokenizer, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_training_needs_is_asked_for_before_it_starts(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_core.training.loop.find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(ClipError, match=rf"Training needs matplotlib.*pip install {re.escape(requirement('train'))}\."):
        run(tiny_recipe(), tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_length_in_epochs_counts_every_example(tokenizer, tmp_path):
    recipe = tiny_recipe(training={"steps": None, "epochs": 2})
    outcome = run(recipe, tokenizer, tmp_path / "run")
    assert outcome.step == 2 * (60 // 8)
    rates = [line["learning_rate"] for line in read_metrics(tmp_path / "run")]
    assert rates == [learning_rate(recipe, step, 14) for step in range(1, 15)]
