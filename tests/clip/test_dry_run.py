"""``clip train --dry-run``: the plan of a run, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import backends
from clip_core.training.checkpoint import newest
from tests.clip.running import RECIPE, Ended, assert_refused, metrics
from tests.requested import FRAMEWORKS
from tests.training.disturbances import largest_file

for name in FRAMEWORKS:
    backends.get(name)


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def plan_of(result: Ended) -> dict:
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_plan_is_what_training_does(run, recipe, tmp_path, framework):
    output = tmp_path / "run"
    plan = plan_of(run("train", "-c", recipe, "--backend", framework, "--dry-run", "--json", "--output", output))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    assert run("train", "-c", recipe, "--backend", framework, "--output", output).code == 0
    checkpoint = newest(output)
    size = (checkpoint / "state.safetensors").stat().st_size
    assert plan["first_loss"] == metrics(output)[0]["loss"]
    assert plan["checkpoint_size"] == pytest.approx(size, rel=0.01)
    assert plan["checkpoint_folder"] == str(checkpoint.parent)
    parameters = 339_841
    assert plan["checkpoint_size"] == 3 * 4 * parameters + 8
    assert plan["seconds"] == pytest.approx(6 * plan["step_seconds"])
    assert plan["memory"] > 10 * plan["checkpoint_size"]
    assert plan["free_disk"] > 3 * size
    expected = {
        "model": "of the recipe's own shape",
        "trained_parameters": parameters,
        "frozen_parameters": 0,
        "backend": framework,
        "data": "shapes",
        "examples": 100,
        "steps_per_epoch": 25,
        "first_step": 1,
        "last_step": 6,
        "epochs": 0.24,
        "batch_size": 4,
        "processes": 1,
        "pairs_at_once": 4,
        "precision": "fp32",
        "loss": "softmax",
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "device_memory": None,
        "warnings": [],
    }
    assert {name: plan[name] for name in expected} == expected
    assert len(plan) == len(expected) + 7


def test_the_plan_in_words(run, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("-o", "optimizer.frozen=[image]", "-o", "training.micro_batch_size=2", "-o", "training.steps=1000000")
    result = run("train", "-c", recipe, "--dry-run", *options)
    assert (result.code, result.err) == (0, "")
    words = " ".join(result.out.split())
    image = 12 * 64 * 64 + 13 * 64 + 3 * 32 * 32 * 64 + 64 + 5 * 64 + 4 * 64 + 64 * 16
    for part in (
        f"{339_841 - image:,} parameters are trained, {image:,} frozen",
        "shapes: 100 examples, 25 steps per epoch",
        "1 to 1,000,000, which are 40,000.00 epochs",
        "4 pairs on 1 process, 2 at once in each",
        "runs/tiny/checkpoints, where",
    ):
        assert part in words
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_the_plan_of_a_resumed_run_and_of_given_weights(run, recipe, tmp_path):
    output = tmp_path / "run"
    assert run("train", "-c", recipe, "--steps", 4, "--output", output).code == 0
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    resumed = plan_of(run("train", "-c", recipe, "--dry-run", "--json", "--resume", output))
    assert (resumed["first_step"], resumed["last_step"]) == (5, 6)
    loaded = plan_of(run("train", "-c", recipe, "--dry-run", "--json", "--load", output / "model.safetensors"))
    assert before == {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    assert run("train", "-c", recipe, "--resume", output).code == 0
    assert resumed["first_loss"] == metrics(output)[4]["loss"]
    fresh = plan_of(run("train", "-c", recipe, "--dry-run", "--json"))
    assert loaded["first_loss"] != fresh["first_loss"] == metrics(output)[0]["loss"]


def test_a_dry_run_refuses_what_training_refuses(run, recipe, tmp_path):
    output = tmp_path / "run"
    (output / "checkpoints").mkdir(parents=True)
    assert_refused(run("train", "-c", recipe, "--dry-run", "--output", output), "holds a training run already")
    for options, sentence in (
        (["data.batch_size=101"], "The data has 100 examples, fewer than one batch of 101; lower data.batch_size."),
        (["training.precision=bf17"], "training.precision is 'bf17'"),
        (
            ["loss.kind=sigmoid"],
            "The sigmoid loss needs a model with a logit bias; set model.architecture.logit_bias to true.",
        ),
        (["evaluation.every_steps=1", "evaluation.retrieval={kind: coco, annotations: a.json, images: b}"], "a.json"),
    ):
        overrides = [word for option in options for word in ("-o", option)]
        assert_refused(run("train", "-c", recipe, "--dry-run", *overrides), sentence)
    assert_refused(run("train", "-c", recipe, "--json", "--output", tmp_path / "other"), "--json is for the plan")


def test_too_little_disk_is_a_warning(run, recipe, tmp_path, monkeypatch):
    class Usage:
        free = 3 * 4 * 339_841 * 3

    monkeypatch.setattr("clip_core.training.plan.shutil.disk_usage", lambda folder: Usage)
    warning = "2 checkpoints and one that is being written need 12234300 bytes of disk."
    assert plan_of(run("train", "-c", recipe, "--dry-run", "--json"))["warnings"] == [warning]
    result = run("train", "-c", recipe, "--dry-run")
    assert warning in " ".join(result.out.split())
    Usage.free += 3 * 8
    assert plan_of(run("train", "-c", recipe, "--dry-run", "--json"))["warnings"] == []


def test_what_a_recipe_may_not_mean_is_said_before_the_first_step(run, recipe, tmp_path):
    options = ("-o", "schedule.warm_up_steps=7", "-o", "data.augmentation.ratio=[1, 1]")
    said = [
        "schedule.warm_up_steps is 7 and the run has 6 steps, so the learning rate does not reach "
        "optimizer.learning_rate.",
        "data.augmentation.ratio has no effect: it belongs to data.augmentation.crop: resized.",
    ]
    assert plan_of(run("train", "-c", recipe, "--dry-run", "--json", *options))["warnings"] == said
    result = run("train", "-c", recipe, "--output", tmp_path / "run", *options)
    assert result.err.splitlines()[:2] == [f"Warning: {caution}" for caution in said]


def test_a_dry_run_writes_nothing_at_all(run, recipe):
    with largest_file(0):
        assert plan_of(run("train", "-c", recipe, "--dry-run", "--json"))["examples"] == 100


def test_a_loss_that_is_not_finite_is_refused(run, recipe, tmp_path):
    assert run("train", "-c", recipe, "--steps", 1, "--output", tmp_path / "run").code == 0
    weights = tmp_path / "run" / "model.safetensors"
    import converters

    checkpoint = converters.read(weights)
    huge = checkpoint.weights | {"visual.proj": np.full_like(checkpoint.weights["visual.proj"], 3e38)}
    weights = tmp_path / "huge.safetensors"
    converters.write(converters.ModelFile(huge, checkpoint.architecture, vocabulary=checkpoint.vocabulary), weights)
    assert_refused(run("train", "-c", recipe, "--dry-run", "--load", weights), "Step 1 cannot be used: the loss is nan")
