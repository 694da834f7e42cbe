"""The exponential moving average of the weights, the same in every framework, in the state and out of it."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.initialize import initialize
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from tests.requested import FRAMEWORKS
from tests.training.distributed_worker import batches
from tests.training.steps import RATE, WEIGHT_BOUND, recipe, run, trainer_for

DECAY = 0.75
AVERAGED = {"optimizer": {"ema_decay": DECAY}}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_average_is_its_definition_over_the_weights_after_each_update(framework):
    # The scale is at a bound, so that it is averaged as it is after that.
    bounds = {"logit_scale_bounds": [14.28, 14.29]}
    trainer = trainer_for(framework, recipe({"optimizer": {"ema_decay": DECAY} | bounds}))
    expected = {name: array.astype(np.float64) for name, array in trainer.model.export().items()}
    for pixels, tokens in batches():
        trainer.step(pixels, tokens, 0.01)
        for name, weights in trainer.model.export().items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * weights
        state, average = trainer.state(), trainer.average()
        assert list(average) == list(trainer.model.export())
        for name, array in average.items():
            np.testing.assert_allclose(array, expected[name], rtol=0, atol=5e-7, err_msg=name)
            assert array.dtype == np.float32
            assert np.array_equal(array, state[f"average/{name}"])
    assert float(state["weights/logit_scale"]) == pytest.approx(log(14.28), abs=1e-6)
    assert not np.array_equal(state["average/visual.proj"], state["weights/visual.proj"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_training_is_not_changed_by_the_average(framework):
    plain, averaged = trainer_for(framework, recipe()), trainer_for(framework, recipe(AVERAGED))
    assert run(plain) == run(averaged)
    assert plain.average() is None
    weights = plain.state()
    assert not any(name.startswith("average/") for name in weights)
    assert all(np.array_equal(array, averaged.state()[name]) for name, array in weights.items())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_what_is_not_trained_is_taken_from_the_model(framework):
    """A frozen tower, and the running statistics of batch normalisation."""
    architecture = Architecture(8, ModifiedResNet(32, 2, (1, 1, 1, 1), 1), TextTransformer(8, 50, 64, 1, 1))
    model = backends.get(framework).CLIP(architecture, initialize(architecture, 0), device="cpu")
    what = recipe({"optimizer": {"ema_decay": DECAY, "frozen": ["text"]}})
    trainer = backends.get(framework).Trainer(model, what)
    pixels = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    trainer.step(pixels, batches()[0][1], RATE)
    average, weights = trainer.average(), model.export()
    averaged = {name.removeprefix("average/") for name in trainer.state() if name.startswith("average/")}
    assert list(average) == list(weights)
    assert averaged == set(trainer.groups)
    for name, array in weights.items():
        assert average[name].dtype == array.dtype
        if name not in averaged:
            assert np.array_equal(average[name], array), name
    assert (average["visual.conv1.weight"] != weights["visual.conv1.weight"]).any()
    assert average["visual.bn1.num_batches_tracked"] == 1
    assert (average["visual.bn1.running_mean"] != 0).any()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("other", FRAMEWORKS)
def test_the_average_goes_on_in_another_framework(framework, other):
    first, stopped, resumed = (trainer_for(name, recipe(AVERAGED)) for name in (framework, framework, other))
    run(first)
    run(stopped, slice(3))
    resumed.restore(stopped.state())
    run(resumed, slice(3, 6))
    found, expected = resumed.average(), first.average()
    for name, array in expected.items():
        if framework == other:
            assert np.array_equal(found[name], array), name
        elif not name.endswith("attn.in_proj_bias"):  # the biases of keys have no gradient but rounding
            np.testing.assert_allclose(found[name], array, rtol=0, atol=WEIGHT_BOUND, err_msg=name)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_average_that_is_given_out_is_a_copy(framework):
    trainer = trainer_for(framework, recipe(AVERAGED))
    given = trainer.state() | {f"given/{name}": array for name, array in trainer.average().items()}
    before = {name: array.copy() for name, array in given.items()}
    restored = trainer_for(framework, recipe(AVERAGED))
    restored.restore(trainer.state())
    run(trainer, slice(1))
    run(restored, slice(2))
    assert all(np.array_equal(array, before[name]) for name, array in given.items())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_state_of_a_recipe_with_another_average_is_refused(framework):
    plain, averaged = trainer_for(framework, recipe()), trainer_for(framework, recipe(AVERAGED))
    run(averaged, slice(1))
    before = averaged.state()
    with pytest.raises(CheckpointError, match=r"has no moving average, which optimizer\.ema_decay asks for"):
        averaged.restore(plain.state())
    with pytest.raises(CheckpointError, match=r"has a moving average, and the recipe has no optimizer\.ema_decay"):
        plain.restore(before)
    broken = before | {"average/visual.proj": np.zeros((2, 2), np.float32)}
    del broken["average/logit_scale"]
    with pytest.raises(
        CheckpointError, match=r"average/logit_scale is missing; average/visual.proj is float32 \(2, 2\)"
    ):
        averaged.restore(broken)
    after = averaged.state()
    assert all(np.array_equal(array, after[name]) for name, array in before.items())
