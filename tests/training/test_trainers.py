"""One step is the same step in every framework, in chunks or whole, on one process or two."""

from __future__ import annotations

import importlib
import os
import subprocess
from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import pytest

import backends
from backends.numpy import CLIP as Reference
from clip_core import similarity
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.naming import parameters
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.training.parameter_groups import parameter_groups
from clip_core.training.recipe import Loss
from clip_core.training.trainable import with_initial_scale
from tests.launching import LAUNCHERS
from tests.requested import FRAMEWORKS
from tests.tolerances import step_bound
from tests.training.distributed_worker import ARCHITECTURE, LOSSES, batches, four_steps
from tests.training.steps import LOSS_BOUND, RATE, STEPS, WEIGHT_BOUND, recipe, run, trainer_for, without_key_biases

GRADIENT_BOUND = 1e-4  # of a tensor, relative to its largest value; measured 6e-6
# The moments are as smooth as the gradients are: relative to a tensor's largest value, measured 1.4e-4.
MOMENT_BOUND = 1e-3
# The longest way through a tower of `distributed_worker.ARCHITECTURE` and back: twice two blocks of seven sums over 64
# and one over 256, and as much again in the backward pass for the weights.
OPERATIONS = 3 * 2 * (7 * 64 + 256)

RECIPES = {
    "softmax": {},
    "sum of both directions, Adam, all decayed": {
        "loss": {"reduction": "sum"},
        "optimizer": {"name": "adam", "decay": "all", "gradient_clip": 1.0, "ema_decay": 0.9},
    },
    "sigmoid": {"loss": {"kind": "sigmoid", "initial_logit_scale": 10.0}},
    "chunks": {"training": {"micro_batch_size": 3}},
    "frozen image tower, slower text tower": {"optimizer": {"frozen": ["image"], "text_learning_rate": 1e-4}},
    "frozen text tower": {"optimizer": {"frozen": ["text"]}, "training": {"micro_batch_size": 4}},
}


def assert_same_run(found, expected) -> None:
    """Of results and last state: every loss, and every weight, average and moment, within the bounds above."""
    (results, state), (expected_results, expected_state) = found, expected
    for name in ("loss", "logit_scale", "gradient_norm"):
        values, wanted = ([getattr(result, name) for result in side] for side in (results, expected_results))
        np.testing.assert_allclose(values, wanted, rtol=LOSS_BOUND, err_msg=name)
    for result, wanted in zip(results, expected_results, strict=True):
        assert (result.top1, result.top5) == (wanted.top1, wanted.top5)
    assert state.keys() == expected_state.keys()
    for name, array in state.items():
        wanted = expected_state[name]
        bound = MOMENT_BOUND * np.abs(wanted).max() if "_moment/" in name else WEIGHT_BOUND
        np.testing.assert_allclose(array, wanted, rtol=0, atol=bound, err_msg=name)


def assert_same_gradients(state: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Of the states after the first step, whose first moments are the gradients times a constant."""
    names = [name for name in expected if name.startswith("first_moment/")]
    assert names
    for name in names:
        bound = GRADIENT_BOUND * np.abs(expected[name]).max()
        np.testing.assert_allclose(state[name], expected[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_every_framework_takes_the_same_twenty_steps(changes):
    what = recipe(changes)
    found = {}
    for framework in FRAMEWORKS:
        trainer = trainer_for(framework, what)
        found[framework] = run(trainer, slice(STEPS)), without_key_biases(trainer.state())
    results, state = found[FRAMEWORKS[0]]
    assert len(results) == STEPS == state["updates"]
    assert results[-2].loss < results[0].loss  # the same batch, six times later
    assert ("average/visual.proj" in state) == (what.optimizer.ema_decay is not None)
    for framework in FRAMEWORKS[1:]:
        assert_same_run(found[framework], found[FRAMEWORKS[0]])


OTHER_RECIPES = {
    "second beta": {"betas": [0.9, 0.981]},
    "decay": {"weight_decay": 0.25},
    "epsilon": {"epsilon": 1e-5},
    "average": {"ema_decay": 0.92},
}


@pytest.mark.parametrize("changes", OTHER_RECIPES.values(), ids=OTHER_RECIPES.keys())
def test_the_bounds_tell_another_recipe(changes):
    trainers = [trainer_for("torch", recipe({"optimizer": {"ema_decay": 0.9} | other})) for other in ({}, changes)]
    expected, found = ((run(trainer, slice(STEPS)), trainer.state()) for trainer in trainers)
    with pytest.raises(AssertionError):
        assert_same_run(found, expected)


def test_the_bounds_tell_one_weight_that_moved():
    trainer, moved = (trainer_for("torch", recipe()) for _ in range(2))
    weights = moved.model.export()
    weights["visual.conv1.weight"][5, 1, 2, 3] += RATE
    moved.model.load(weights)
    expected, found = ((run(each, slice(1)), each.state()) for each in (trainer, moved))
    with pytest.raises(AssertionError, match=r"visual\.conv1\.weight"):
        assert_same_run((expected[0], found[1]), expected)
    with pytest.raises(AssertionError):
        assert_same_gradients(found[1], expected[1])


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
def test_a_loss_has_no_upper_end_and_is_nan_for_nan(framework):
    """Each picture is the very text of the other pair, so at a scale of 150 its own text is 150 below the best."""
    trainer = trainer_for(framework, recipe({"optimizer": {"logit_scale_bounds": [0.01, 200.0]}}))
    weights = trainer.model.export()
    trainer.model.load(weights | {"logit_scale": np.array(np.log(150.0), np.float32)})
    features = np.eye(2, ARCHITECTURE.embed_dim, dtype=np.float32)
    tensor = backends.get(framework).native
    sums, _ = trainer._loss(tensor(features), tensor(features[::-1].copy()))
    assert np.asarray(sums.data)[0] == pytest.approx(150.0, rel=1e-5)
    features[0, 0] = np.nan
    sums, _ = trainer._loss(tensor(features), tensor(features[::-1].copy()))
    assert np.isnan(np.asarray(sums.data)[0])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_first_update_is_adamw_as_pytorch_defines_it(framework):
    """After one step the moments tell the gradient, and the weights must follow from it by the definition."""
    what = recipe({"optimizer": {"weight_decay": 0.3, "betas": [0.8, 0.9], "epsilon": 1e-3}})
    trainer = trainer_for(framework, what)
    before = trainer.model.export()
    trainer.step(*batches()[0], 0.01)
    state = trainer.state()
    for name, group in parameter_groups(ARCHITECTURE, what).items():
        gradient = state[f"first_moment/{name}"].astype(np.float64) / 0.2
        np.testing.assert_allclose(state[f"second_moment/{name}"], 0.1 * gradient**2, rtol=1e-4, atol=1e-12)
        kept = before[name] * (1 - 0.01 * group.decay)
        expected = kept - 0.01 * gradient / (np.abs(gradient) + 1e-3)
        np.testing.assert_allclose(state[f"weights/{name}"], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    kinds = {parameter.name: parameter.kind for parameter in parameters(ARCHITECTURE)}
    decayed = {kinds[name] for name, group in parameter_groups(ARCHITECTURE, what).items() if group.decay}
    assert decayed == {"linear", "conv", "projection", "embedding"}


def test_gradients_of_the_first_step_agree_by_tensor():
    states = {}
    for framework in FRAMEWORKS:
        trainer = trainer_for(framework, recipe())
        run(trainer, slice(1))
        states[framework] = without_key_biases(trainer.state())
    for framework in FRAMEWORKS[1:]:
        assert len(states[framework]) == 3 * len(parameters(ARCHITECTURE)) + 1
        assert_same_gradients(states[framework], states[FRAMEWORKS[0]])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_own_text_is_looked_for_among_the_nearest(framework):
    trainer = trainer_for(framework, recipe())
    pixels, tokens = batches()[0]
    images, texts = trainer.model.embed_image(pixels), trainer.model.embed_text(tokens)
    logits = similarity.logits(images, texts, 1.0)
    places = [list(np.argsort(-row)).index(own) for own, row in enumerate(logits)]
    expected = [np.mean([place < k for place in places]) for k in (1, 5)]
    assert 0 < expected[0] < expected[1] < 1
    result = trainer.step(pixels, tokens, RATE)
    assert [result.top1, result.top5] == expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_tie_counts_against_the_own_text(framework):
    """So that a model that gives every text one feature, or no number, has found nothing."""
    count = importlib.import_module(f"backends.{framework}.training").own_text_among_nearest
    tensor = backends.get(framework).native
    logits = np.full((5, 8), 2.0, np.float32)  # of five pictures, whose own texts are the third and the following
    logits[1, 3] = 3.0  # alone
    logits[2, [4, 0, 1, 5]] = 3.0  # with three others
    logits[3, [5, 0, 1, 2, 3, 4]] = 3.0  # with five others
    logits[4, 6] = np.nan
    assert [int(x) for x in count(tensor(logits), 2)] == [1, 2]


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
    found = run(resumed, slice(3, 6))
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
    with pytest.raises(ClipError, match="micro_batch_size does not go with batch normalisation"):
        module.Trainer(model, recipe({"training": {"micro_batch_size": 2}}))


def test_prepare_sets_scale_and_bias_alone():
    architecture = replace(ARCHITECTURE, logit_bias=True)
    weights = initialize(architecture, 0)
    prepared = with_initial_scale(weights, Loss(kind="sigmoid", initial_logit_scale=10.0, initial_logit_bias=-7.0))
    assert exp(prepared["logit_scale"]) == pytest.approx(10.0)
    assert prepared["logit_bias"] == -7.0
    assert all((prepared[name] == weights[name]).all() for name in weights if not name.startswith("logit_"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_take_the_steps_of_one(framework, tmp_path):
    worker = Path(__file__).with_name("distributed_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2])}
    command = [*LAUNCHERS[framework], str(worker), framework, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for loss in LOSSES:
        alone = four_steps(framework, loss, backends.get(framework).ProcessGroup())
        assert_same_steps(without_key_biases(dict(np.load(tmp_path / f"{loss}.npz"))), without_key_biases(alone))


def assert_same_steps(two: dict[str, np.ndarray], one: dict[str, np.ndarray]) -> None:
    """Of two processes and of one: every result, and the last state."""
    assert (one.pop("size"), two.pop("size")) == (1, 2)
    for name in ("skipped", "loss_scale", "top1", "top5"):
        assert one[f"steps/{name}"].tolist() == two[f"steps/{name}"].tolist()
    updated = ~one["steps/skipped"]
    assert updated.tolist() == [True, False, True, True]
    weights = sum(array.size for name, array in one.items() if name.startswith("weights/"))
    for name in ("loss", "logit_scale", "gradient_norm"):
        values = two.pop(f"steps/{name}"), one.pop(f"steps/{name}")
        assert np.isfinite(values).all(axis=0).tolist() == (updated | (name != "gradient_norm")).tolist()
        for updates, (found_value, expected) in enumerate(zip(*(value[updated] for value in values))):
            assert found_value == pytest.approx(expected, rel=step_bound(OPERATIONS, updates, weights)), (name, updates)
    assert (one["updates"], one["loss_scale"]) == (3, 2**12)
    assert any((one[f"average/{name}"] != one[f"weights/{name}"]).any() for name in ("visual.proj", "logit_scale"))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-4, atol=WEIGHT_BOUND, err_msg=name)
