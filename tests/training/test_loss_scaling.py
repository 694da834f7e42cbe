"""The loss scale of float16 training: how it adapts, and that it changes nothing but what can be represented."""

from __future__ import annotations

from math import isfinite, log

import numpy as np
import pytest

from clip_core.errors import CheckpointError, ClipError
from clip_core.training.scaling import GROWTH_STEPS, LARGEST, LossScaling
from tests.requested import FRAMEWORKS
from tests.training.distributed_worker import batches
from tests.training.steps import RATE, recipe, run, trainer_for

TOO_LARGE = 2.0**127  # float32 itself cannot hold gradients that are multiplied by this


def scaled(framework: str, scale: float, changes: dict | None = None):
    """A float32 trainer whose gradients are scaled, since a CPU need not compute in float16."""
    trainer = trainer_for(framework, recipe(changes))
    trainer.scaling = LossScaling(scale)
    return trainer


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in found)


def without_scaling(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in state.items() if name not in ("loss_scale", "steps_since_overflow")}


def test_the_scale_is_doubled_after_many_steps_without_overflow():
    scaling = LossScaling()
    assert scaling == LossScaling(2.0**16, 0)
    for _ in range(GROWTH_STEPS - 1):
        assert not scaling.adapt(overflowed=False)
    assert scaling == LossScaling(2.0**16, GROWTH_STEPS - 1)
    assert not scaling.adapt(overflowed=False)
    assert scaling == LossScaling(2.0**17, 0)
    assert scaling.adapt(overflowed=True)
    assert scaling == LossScaling(2.0**16, 0)


def test_an_overflow_starts_the_count_again():
    scaling = LossScaling(4.0, GROWTH_STEPS - 1)
    assert scaling.adapt(overflowed=True)
    assert not scaling.adapt(overflowed=False)
    assert scaling == LossScaling(2.0, 1)


def test_the_scale_does_not_grow_beyond_the_largest():
    scaling = LossScaling(LARGEST, GROWTH_STEPS - 1)
    scaling.adapt(overflowed=False)
    assert scaling == LossScaling(LARGEST, 0)


def test_below_a_scale_of_1_a_step_is_not_skipped():
    scaling = LossScaling(2.0)
    assert scaling.adapt(overflowed=True)
    assert not scaling.adapt(overflowed=True)
    assert scaling == LossScaling(1.0, 0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("size", [None, 3])
def test_a_power_of_two_changes_no_digit(framework, size):
    changes = {"training": {"micro_batch_size": size}, "optimizer": {"gradient_clip": 1.0, "ema_decay": 0.9}}
    plain, lifted = trainer_for(framework, recipe(changes)), scaled(framework, 2.0**12, changes)
    for expected, found in zip(run(plain), run(lifted), strict=True):
        assert (found.loss, found.gradient_norm) == (expected.loss, expected.gradient_norm)
        assert (expected.loss_scale, found.loss_scale) == (1, 2**12)
        assert (expected.skipped, found.skipped) == (False, False)
    assert same(without_scaling(lifted.state()), plain.state())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_overflow_updates_nothing_and_training_goes_on(framework):
    changes = {"loss": {"initial_logit_scale": 90.0}, "optimizer": {"ema_decay": 0.9}}
    trainer, twin = scaled(framework, 2.0**12, changes), scaled(framework, 2.0**12, changes)
    for each in (trainer, twin):
        run(each, slice(2))
    before = trainer.state()
    trainer.scaling = LossScaling(TOO_LARGE, 2)
    result = trainer.step(*batches()[2], RATE)
    assert (result.skipped, result.loss_scale) == (True, TOO_LARGE)
    assert (isfinite(result.loss), isfinite(result.gradient_norm)) == (True, False)
    assert same(without_scaling(trainer.state()), without_scaling(before))
    assert trainer.scaling == LossScaling(TOO_LARGE / 2, 0)
    results = [trainer.step(*batches()[0], RATE) for _ in range(20)]
    skipped = [result.skipped for result in results]
    assert sum(skipped) < 15
    assert skipped == sorted(skipped, reverse=True)  # until the scale fits
    assert results[-1].loss < results[0].loss
    # And those that were skipped have left no trace.
    for _ in range(len(results) - sum(skipped)):
        twin.step(*batches()[0], RATE)
    assert same(without_scaling(trainer.state()), without_scaling(twin.state()))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("scaling", [None, LossScaling(1.0)])
def test_gradients_that_overflow_without_scaling_are_reported_and_update_nothing(framework, scaling):
    trainer = trainer_for(framework, recipe())
    trainer.model.load(trainer.model.export() | {"logit_scale": np.array(log(1e36), np.float32)})
    trainer.scaling = scaling
    before = trainer.state()
    result = trainer.step(*batches()[0], RATE)
    assert (isfinite(result.loss), isfinite(result.gradient_norm)) == (True, False)
    assert (result.skipped, result.loss_scale) == (False, 1)
    assert same(trainer.state(), before)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_that_is_not_finite_is_not_blamed_on_the_scale(framework):
    trainer = scaled(framework, 2.0**12, {"loss": {"kind": "sigmoid"}})
    weights = trainer.model.export()
    weights["visual.proj"] = np.full_like(weights["visual.proj"], 3e38)
    trainer.model.load(weights)
    before = trainer.state()
    result = trainer.step(*batches()[0], RATE)
    assert (isfinite(result.loss), result.skipped) == (False, False)
    assert same(trainer.state(), before)
    assert trainer.scaling == LossScaling(2.0**12, 0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("other", FRAMEWORKS)
def test_the_scale_is_part_of_the_state(framework, other):
    first, second = scaled(framework, 2.0**13), scaled(other, 2.0**16)
    run(first, slice(2))
    state = first.state()
    assert (state["loss_scale"], state["loss_scale"].dtype) == (2**13, np.float32)
    assert (state["steps_since_overflow"], state["steps_since_overflow"].dtype) == (2, np.int64)
    second.restore(state)
    assert second.scaling == LossScaling(2.0**13, 2)
    assert same(second.state(), state)
    if framework == other:
        assert run(first, slice(2, 5)) == run(second, slice(2, 5))


def test_a_state_of_another_precision_is_refused():
    plain, lifted = trainer_for("torch", recipe()), scaled("torch", 2.0**12)
    with pytest.raises(CheckpointError, match=r"has no loss scale, which training\.precision fp16 asks for"):
        lifted.restore(plain.state())
    with pytest.raises(CheckpointError, match=r"has a loss scale, which belongs to training\.precision fp16 alone"):
        plain.restore(lifted.state())
    with pytest.raises(CheckpointError, match=r"loss_scale is 0\.5, expected at least 1"):
        lifted.restore(lifted.state() | {"loss_scale": np.array(0.5, np.float32)})
    with pytest.raises(CheckpointError, match=r"updates is -1, expected at least 0"):
        lifted.restore(lifted.state() | {"updates": np.array(-1, np.int64)})
    state = lifted.state()
    del state["steps_since_overflow"]
    with pytest.raises(CheckpointError, match="steps_since_overflow is missing"):
        lifted.restore(state)
    assert lifted.scaling == LossScaling(2.0**12, 0)


def test_float16_steps_follow_float32_steps():
    exact, rough = trainer_for("torch", recipe()), trainer_for("torch", recipe({"training": {"precision": "fp16"}}))
    assert rough.scaling == LossScaling(2.0**16, 0)
    rough.scaling = LossScaling(2.0**6)
    for expected, found in zip(run(exact), run(rough), strict=True):
        assert not found.skipped
        assert found.loss == pytest.approx(expected.loss, rel=0.01)
        assert found.loss != expected.loss
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.05)
    assert all(array.dtype == np.float32 for array in rough.model.export().values())
    assert rough.scaling == LossScaling(2.0**6, 6)


def test_float16_finds_its_scale():
    """The first gradients of this model, times 2**16, are more than the 65504 that float16 can hold."""
    trainer = trainer_for("torch", recipe({"training": {"precision": "fp16"}}))
    results = [trainer.step(*batches()[0], RATE) for _ in range(20)]
    skipped = [result.skipped for result in results]
    assert 0 < sum(skipped) < 10
    assert skipped == sorted(skipped, reverse=True)
    assert trainer.scaling == LossScaling(2.0 ** (16 - sum(skipped)), 20 - sum(skipped))
    assert trainer.state()["updates"] == 20 - sum(skipped)
    assert results[-1].loss < results[0].loss / 2


@pytest.mark.parametrize(
    ("framework", "sentence"),
    [
        ("paddle", "Paddle has no float16 kernels for the CPU; train with precision fp32, or on a GPU."),
        pytest.param(
            *("nnabla", "NNabla trains with precision fp32, not fp16; change the recipe."),
            marks=pytest.mark.needs("nnabla"),
        ),
    ],
)
def test_float16_is_refused_where_there_is_none(framework, sentence):
    with pytest.raises(ClipError) as caught:
        trainer_for(framework, recipe({"training": {"precision": "fp16"}}))
    assert str(caught.value) == sentence
