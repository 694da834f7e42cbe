"""One step is the same step in every framework, in chunks or whole, on one process or two."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import pytest

import backends
from clip_core import similarity
from clip_core.architecture import Architecture, ModifiedResNet, TextTransformer
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.naming import Weights, parameters
from clip_core.reference import CLIP as Reference
from clip_core.training.recipe import Loss, Recipe
from clip_core.training.rules import prepare, rules
from tests.training.distributed_worker import ARCHITECTURE, batches

FRAMEWORKS = ("torch", "paddle", "nnabla")
LOSS_BOUND = 1e-4  # relative, of each step; measured 1.2e-6
GRADIENT_BOUND = 1e-4  # of a tensor, relative to its largest value; measured 6e-6
# Of weights after six steps at a rate of 1e-3, per step. Adam divides a gradient by its own size, so where the true
# gradient is zero (the bias of the keys) rounding alone decides the direction; elsewhere the measured worst is 2e-5.
WEIGHT_BOUND = 1e-4

RECIPES = {
    "softmax": {},
    "sum of both directions, Adam, all decayed": {
        "loss": {"reduction": "sum"},
        "optimizer": {"name": "adam", "decay": "all", "gradient_clip": 1.0},
    },
    "sigmoid": {"loss": {"kind": "sigmoid", "initial_logit_scale": 10.0}},
    "chunks": {"training": {"micro_batch_size": 3}},
    "frozen image tower, slower text tower": {"optimizer": {"frozen": ["image"], "text_learning_rate": 1e-4}},
    "frozen text tower": {"optimizer": {"frozen": ["text"]}, "training": {"micro_batch_size": 4}},
}


def recipe(changes: dict | None = None) -> Recipe:
    data: dict = {"model": {"architecture": "shapes"}, "training": {"steps": 6}, "optimizer": {"learning_rate": 1e-3}}
    for section, values in (changes or {}).items():
        data[section] = data.get(section, {}) | values
    return Recipe.parse(data)


def trainer_for(backend: str, what: Recipe, weights: Weights | None = None):
    architecture = replace(ARCHITECTURE, logit_bias=what.loss.kind == "sigmoid")
    if weights is None:
        weights = prepare(initialize(architecture, 0), what.loss)
    model = backends.get(backend).CLIP(architecture, weights, device="cpu")
    return importlib.import_module(f"backends.{backend}.training").Trainer(model, what)


def run(trainer, steps: slice = slice(None)) -> list:
    return [trainer.step(pixels, tokens, 1e-3) for pixels, tokens in (batches() * 2)[steps]]


def without_key_biases(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state without what has no gradient but rounding: the middle third of the biases of queries, keys, values."""
    kept = {}
    for name, array in state.items():
        if name.endswith("attn.in_proj_bias"):
            array = np.delete(array, np.s_[len(array) // 3 : 2 * len(array) // 3])
        kept[name] = array
    return kept


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_every_framework_takes_the_same_steps(changes):
    what = recipe(changes)
    found = {}
    for framework in FRAMEWORKS:
        trainer = trainer_for(framework, what)
        found[framework] = run(trainer), without_key_biases(trainer.state())
    expected, expected_state = found["torch"]
    assert expected[3].loss < expected[0].loss  # the same batch again
    for framework in FRAMEWORKS[1:]:
        results, state = found[framework]
        for name in ("loss", "logit_scale", "gradient_norm"):
            values = [getattr(result, name) for result in results]
            np.testing.assert_allclose(values, [getattr(result, name) for result in expected], rtol=LOSS_BOUND)
        assert state.keys() == expected_state.keys()
        for name, array in state.items():
            np.testing.assert_allclose(array, expected_state[name], rtol=0, atol=6 * WEIGHT_BOUND, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_first_loss_is_the_oracles(framework, kind):
    what = recipe({"loss": {"kind": kind, "initial_logit_scale": 20.0, "initial_logit_bias": -3.0}})
    trainer = trainer_for(framework, what)
    judge = Reference(trainer.model.architecture, trainer.model.export(), precision="fp64")
    pixels, tokens = batches()[0]
    logits = similarity.logits(judge.encode_image(pixels), judge.encode_text(tokens), 20.0)
    if kind == "softmax":
        expected = similarity.contrastive_loss(logits)[0]
    else:
        expected = similarity.sigmoid_loss(logits, -3.0)[0]
    result = trainer.step(pixels, tokens, 1e-3)
    assert result.loss == pytest.approx(expected, rel=LOSS_BOUND)
    assert result.logit_scale == pytest.approx(20.0, rel=1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_first_update_is_adamw_as_pytorch_defines_it(framework):
    """After one step the moments tell the gradient, and the weights must follow from it by the definition."""
    what = recipe({"optimizer": {"weight_decay": 0.3, "betas": [0.8, 0.9], "epsilon": 1e-3}})
    trainer = trainer_for(framework, what)
    before = trainer.model.export()
    trainer.step(*batches()[0], 0.01)
    state = trainer.state()
    for name, rule in rules(ARCHITECTURE, what).items():
        gradient = state[f"first_moment/{name}"].astype(np.float64) / 0.2
        np.testing.assert_allclose(state[f"second_moment/{name}"], 0.1 * gradient**2, rtol=1e-4, atol=1e-12)
        kept = before[name] * (1 - 0.01 * rule.decay)
        expected = kept - 0.01 * gradient / (np.abs(gradient) + 1e-3)
        np.testing.assert_allclose(state[f"weights/{name}"], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    kinds = {parameter.name: parameter.kind for parameter in parameters(ARCHITECTURE)}
    decayed = {kinds[name] for name, rule in rules(ARCHITECTURE, what).items() if rule.decay}
    assert decayed == {"linear", "conv", "projection", "embedding"}


def test_gradients_of_the_first_step_agree_by_tensor():
    moments = {}
    for framework in FRAMEWORKS:
        trainer = trainer_for(framework, recipe())
        trainer.step(*batches()[0], 1e-3)
        moments[framework] = without_key_biases(trainer.state())
    names = [name for name in moments["torch"] if name.startswith("first_moment/")]
    assert len(names) == len(parameters(ARCHITECTURE))
    for framework in FRAMEWORKS[1:]:
        for name in names:
            expected = moments["torch"][name]
            bound = GRADIENT_BOUND * np.abs(expected).max()
            np.testing.assert_allclose(moments[framework][name], expected, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_chunks_give_the_gradient_of_the_whole_batch(framework, kind, size):
    whole = trainer_for(framework, recipe({"loss": {"kind": kind}}))
    chunked = trainer_for(framework, recipe({"loss": {"kind": kind}, "training": {"micro_batch_size": size}}))
    expected, found = (trainer.step(*batches()[0], 1e-3) for trainer in (whole, chunked))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    expected_state, found_state = (without_key_biases(trainer.state()) for trainer in (whole, chunked))
    for name, array in expected_state.items():
        if name.startswith("first_moment/"):
            bound = GRADIENT_BOUND * np.abs(array).max()
            np.testing.assert_allclose(found_state[name], array, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_keeps_its_weights_and_the_rest_moves(framework, tower):
    trainer = trainer_for(framework, recipe({"optimizer": {"frozen": [tower]}}))
    before = trainer.model.export()
    run(trainer, slice(1))
    after = trainer.model.export()
    for parameter in parameters(ARCHITECTURE):
        image = parameter.name.startswith("visual.")
        frozen = parameter.kind != "scalar" and image == (tower == "image")
        assert (after[parameter.name] == before[parameter.name]).all() == frozen, parameter.name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_scale_stays_within_its_bounds(framework):
    what = recipe({"optimizer": {"logit_scale_bounds": [14.2, 14.25]}})
    trainer = trainer_for(framework, what)
    run(trainer, slice(2))
    assert 14.2 * (1 - 1e-6) <= exp(trainer.model.export()["logit_scale"]) <= 14.25 * (1 + 1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_tower_with_a_rate_of_its_own_moves_at_that_rate(framework):
    what = recipe({"optimizer": {"image_learning_rate": 1e-5, "text_learning_rate": 2e-3, "weight_decay": 0.0}})
    trainer = trainer_for(framework, what)
    before = trainer.model.export()
    trainer.step(*batches()[0], 1e-3)
    after = trainer.model.export()
    # The first step of Adam is the rate itself wherever the gradient is larger than epsilon.
    moved = {name: float(np.abs(after[name] - before[name]).max()) for name in ("visual.proj", "text_projection")}
    assert moved["visual.proj"] == pytest.approx(1e-5, rel=0.02)
    assert moved["text_projection"] == pytest.approx(2e-3, rel=0.02)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("other", FRAMEWORKS)
def test_a_run_goes_on_in_another_framework(framework, other):
    first = trainer_for(framework, recipe())
    expected = run(first)
    stopped = trainer_for(framework, recipe())
    run(stopped, slice(3))
    resumed = trainer_for(other, recipe())
    resumed.restore(stopped.state())
    found = run(resumed, slice(3, None))
    for result, wanted in zip(found, expected[3:], strict=True):
        if framework == other:
            assert result == wanted
        else:
            assert result.loss == pytest.approx(wanted.loss, rel=LOSS_BOUND)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_state_that_does_not_fit_changes_nothing(framework):
    trainer = trainer_for(framework, recipe())
    run(trainer, slice(1))
    before = trainer.state()
    broken = dict(before)
    del broken["first_moment/visual.proj"]
    broken["weights/text_projection"] = np.zeros((1, 1), np.float32)
    with pytest.raises(
        CheckpointError, match=r"text_projection has shape \(1, 1\).*first_moment/visual.proj is missing"
    ):
        trainer.restore(broken)
    after = trainer.state()
    assert all((after[name] == before[name]).all() for name in before)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_a_model_cannot_follow_is_refused(framework):
    module = importlib.import_module(f"backends.{framework}.training")
    model = backends.get(framework).CLIP(ARCHITECTURE, initialize(ARCHITECTURE, 0), device="cpu")
    with pytest.raises(ClipError, match="sigmoid loss needs a model with a logit bias"):
        module.Trainer(model, recipe({"loss": {"kind": "sigmoid"}}))
    resnet = Architecture(8, ModifiedResNet(32, 2, (1, 1, 1, 1), 1), TextTransformer(8, 50, 64, 1, 1))
    model = backends.get(framework).CLIP(resnet, initialize(resnet, 0), device="cpu")
    with pytest.raises(ClipError, match="micro_batch_size does not go with a ResNet"):
        module.Trainer(model, recipe({"training": {"micro_batch_size": 2}}))


def test_prepare_sets_scale_and_bias_alone():
    architecture = replace(ARCHITECTURE, logit_bias=True)
    weights = initialize(architecture, 0)
    prepared = prepare(weights, Loss(kind="sigmoid", initial_logit_scale=10.0, initial_logit_bias=-7.0))
    assert exp(prepared["logit_scale"]) == pytest.approx(10.0)
    assert prepared["logit_bias"] == -7.0
    assert all((prepared[name] == weights[name]).all() for name in weights if not name.startswith("logit_"))


LAUNCHERS = {
    "torch": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "paddle": [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "logs"],
    "nnabla": [
        *(str(Path(sys.executable).with_name("mpirun")), "--allow-run-as-root", "--oversubscribe", "-n", "2"),
        sys.executable,
    ],
}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_take_the_steps_of_one(framework, loss, tmp_path):
    worker = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2])}
    found = {}
    for name, launcher in (("one", [sys.executable]), ("two", LAUNCHERS[framework])):
        output = tmp_path / f"{name}.npz"
        command = [*launcher, str(worker), framework, loss, str(output)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = without_key_biases(dict(np.load(output)))
    one, two = found["one"], found["two"]
    assert (one.pop("size"), two.pop("size")) == (1, 2)
    for name in ("loss", "logit_scale", "gradient_norm"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-4, atol=3 * WEIGHT_BOUND, err_msg=name)
