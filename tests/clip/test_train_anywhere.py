"""One recipe trains in every framework, on one process or several, from given weights, and resumes in another."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import converters
from clip_core.initialize import initialize
from clip_core.installation import requirement
from tests.clip.running import RECIPE, assert_refused, ended, metrics, process
from tests.requested import FRAMEWORKS


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


def test_every_framework_writes_comparable_metrics(run, recipe, tmp_path):
    for framework in FRAMEWORKS:
        result = run("train", "-c", recipe, "--backend", framework, "--seed", 0, "--output", tmp_path / framework)
        assert result.code == 0, result.err
    expected = losses(tmp_path / FRAMEWORKS[0])
    assert len(expected) == 6
    for framework in FRAMEWORKS[1:]:
        np.testing.assert_allclose(losses(tmp_path / framework), expected, rtol=1e-4)
        assert converters.read(tmp_path / framework / "model.safetensors").vocabulary is not None


@pytest.mark.parametrize(("first", "second"), list(zip(FRAMEWORKS, FRAMEWORKS[1:] + FRAMEWORKS[:1])))
def test_a_run_resumes_in_another_framework(run, recipe, tmp_path, first, second):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("train", "-c", recipe, "--backend", first, "--output", whole).code == 0
    assert run("train", "-c", recipe, "--backend", first, "--steps", 3, "--output", parts).code == 0
    result = run("train", "-c", recipe, "--backend", second, "--resume", parts)
    assert result.code == 0, result.err
    assert losses(parts)[:3] == losses(whole)[:3]
    np.testing.assert_allclose(losses(parts)[3:], losses(whole)[3:], rtol=1e-4)


@pytest.mark.slow  # the launchers themselves also start two processes in the tests of docs/migrating.md
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_by_the_frameworks_launcher(run, recipe, tmp_path, framework):
    assert run("train", "-c", recipe, "--backend", framework, "--output", tmp_path / "one").code == 0
    environment = {
        "OMP_NUM_THREADS": "1",
        # What tests need on a machine of few cores; a user's MPI is set up by whoever set up the machine.
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    options = ("--num-gpus", 2, "--output", tmp_path / "two")
    command = process("train", "-c", recipe, "--backend", framework, *options, environment=environment, cwd=tmp_path)
    result = ended(command)
    assert result.code == 0, result.err
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_faults_are_found_before_a_launcher_is_started(run, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("clip.command.train.run_until_stopped", lambda *_: pytest.fail("a launcher was started"))
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    assert run("train", "-c", recipe, "--steps", 1, "--output", tmp_path / "done").code == 0
    new = ("--output", tmp_path / "new")
    for options, part in (
        ((*new, "-o", "data.batch_sise=4"), "did you mean data.batch_size"),
        ((*new, "-o", "data.batch_size=5"), "A batch of 5 cannot be cut into 2 equal parts; change data.batch_size."),
        ((*new, "-o", "data.source.examples=3"), "The data has 3 examples, fewer than one batch of 4"),
        ((*new, "--load", "none.pt"), "There is no file none.pt and no model of that name"),
        (("--output", tmp_path / "old"), f"old holds a training run already; go on with --resume {tmp_path / 'old'} "),
        (("--resume", tmp_path / "old"), "has no complete training checkpoint"),
        (("--resume", tmp_path / "done", "--seed", 2), "was made with training.seed = 1, and the recipe says 2"),
        (
            ("--resume", tmp_path / "done", "-o", "data.source.examples=99"),
            "was made with data.source.examples = 100, and the rec",
        ),
    ):
        assert_refused(run("train", "-c", recipe, "--num-gpus", 2, *options), part)
    sharded = ("--backend", "paddle", "--num-gpus", 2, "-o", "training.fully_sharded=true", *new)
    assert_refused(run("train", "-c", recipe, *sharded), "training.fully_sharded works in PyTorch alone")
    assert not (tmp_path / "new").exists()


@pytest.mark.needs("nnabla")
def test_the_launcher_of_mpi_is_looked_for_beside_the_interpreter(run, recipe, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("clip.command.train.run_until_stopped", lambda command, _: started.append(command) or 7)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    command = ("train", "-c", recipe, "--backend", "nnabla", "--num-gpus", 2, "--output", tmp_path / "run")
    assert_refused(
        run(*command),
        f"started by mpirun, which is neither on the PATH nor in {tmp_path / 'bin'}; "
        f"run: pip install {requirement('mpi')}.",
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").touch(mode=0o755)
    assert run(*command).code == 7
    assert started[0][:3] == [str(tmp_path / "bin" / "mpirun"), "-n", "2"]


def test_overrides_take_the_place_of_the_recipes_values(run, recipe, tmp_path):
    options = ("-o", "training.steps=2", "-o", "optimizer.betas=[0.5, 0.6]", "-o", "optimizer.learning_rate=2e-5")
    result = run("train", "-c", recipe, *options, "--output", tmp_path / "run")
    assert result.code == 0, result.err
    assert metrics(tmp_path / "run")[0]["learning_rate"] == pytest.approx(1.5e-5)  # a third down the cosine of 2 steps
    assert len(metrics(tmp_path / "run")) == 2
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "- 0.5\n  - 0.6" in written
    for bad, part in (
        ("optimizer.learning_rat=1", "did you mean optimizer.learning_rate"),
        ("learning_rate=1", "there is no key learning_rate; did you mean optimizer.learning_rate or"),
        ("training.steps", "--override training.steps has no value; write key=value, or key=null to remove it"),
        ("data=&x [*x]", "--override data=&x [*x], line 1: there are no anchors"),
        ("training.steps=none", "training.steps is 'none'"),
        ("training.steps=[1", "--override training.steps=[1 is not YAML: while parsing a flow sequence"),
    ):
        assert_refused(run("train", "-c", recipe, "-o", bad, "--output", tmp_path / "refused"), part)
    assert not (tmp_path / "refused").exists()


def test_training_starts_from_given_weights(run, recipe, tmp_path):
    assert run("train", "-c", recipe, "--steps", 2, "--output", tmp_path / "first").code == 0
    weights = tmp_path / "first" / "model.safetensors"
    result = run("train", "-c", recipe, "--load", weights, "--steps", 1, "--output", tmp_path / "second")
    assert result.code == 0, result.err
    # The third batch of the first run differs from the first of the second, so the losses are not equal; the scale is.
    scale = np.exp(converters.read(weights).weights["logit_scale"])
    assert metrics(tmp_path / "second")[0]["logit_scale"] == pytest.approx(float(scale), rel=1e-6)

    other = converters.read(weights).architecture
    other = type(other)(8, other.image, other.text)
    converters.write(converters.ModelFile(initialize(other, 0), other), tmp_path / "other.safetensors")
    refused = run("train", "-c", recipe, "--load", tmp_path / "other.safetensors", "--output", tmp_path / "third")
    assert_refused(refused, "other.safetensors holds another model", ", embed_dim 8 rather than 16; change")
