"""Weights that are spread over two processes take the steps of weights that are whole on each, or on one process.

The command trains so in a row of docs/migrating.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from math import prod
from pathlib import Path

import numpy as np
import pytest

from clip_core.naming import parameters
from tests.launching import LAUNCHERS
from tests.training.sharding_worker import ARCHITECTURE, RATE, batches, steps, trainer_for
from tests.training.steps import without_key_biases

# Weights after three steps at a rate of 1e-3: where a gradient is nothing but rounding, Adam makes a step of it.
WEIGHT_BOUND = 3e-4

RECIPES = {
    "plain": {"training": {"steps": 3}},
    "clipped and averaged": {
        "training": {"steps": 3},
        "optimizer": {"name": "adam", "decay": "all", "gradient_clip": 1.0, "ema_decay": 0.5},
    },
    "chunks, recomputed": {
        "training": {"steps": 3, "micro_batch_size": 3, "gradient_checkpointing": True},
        "loss": {"kind": "sigmoid"},
    },
    "bf16": {"training": {"steps": 3, "precision": "bf16"}},
    "frozen image tower": {"training": {"steps": 3}, "optimizer": {"frozen": ["image"]}},
}
RESNET = {"ResNet": {"training": {"steps": 3, "gradient_checkpointing": True}}}
Numbers = dict[str, np.ndarray]


def sharded(sections: dict) -> dict:
    return sections | {"training": sections["training"] | {"fully_sharded": True}}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[Numbers]:
    """What both processes of one run of the worker found."""
    folder = tmp_path_factory.mktemp("sharding")
    first = trainer_for(RECIPES["plain"])
    first.step(*batches()[0], RATE)
    np.savez(folder / "start.npz", **first.state())
    recipes = RECIPES | RESNET
    recipes |= {f"sharded, {name}": sharded(sections) for name, sections in recipes.items()}
    recipes["resumed"] = sharded(RECIPES["plain"])
    (folder / "recipes.json").write_text(json.dumps(recipes))
    worker = Path(__file__).with_name("sharding_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[2])}
    command = [*LAUNCHERS["torch"], str(worker), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FSDP" not in done.stderr, "a warning"
    return [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(2)]


def of(numbers: Numbers, name: str) -> Numbers:
    """What was found with the recipe ``name``."""
    return {key[len(name) + 2 :]: array for key, array in numbers.items() if key.startswith(f"{name}: ")}


def assert_same_training(found: Numbers, expected: Numbers) -> None:
    np.testing.assert_allclose(found["steps"], expected["steps"], rtol=1e-5)
    for key, array in without_key_biases(expected).items():
        if key.startswith(("weights/", "average/")):
            np.testing.assert_allclose(without_key_biases(found)[key], array, rtol=0, atol=WEIGHT_BOUND, err_msg=key)


@pytest.mark.parametrize("name", [*RECIPES, *RESNET])
def test_sharded_weights_take_the_steps_of_whole_ones(ranks, name):
    found, expected = of(ranks[0], f"sharded, {name}"), of(ranks[0], name)
    del found["held"], expected["held"]
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["steps"], expected["steps"], rtol=1e-6)
    found = without_key_biases(found)
    for key, array in without_key_biases(expected).items():
        np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "bf16"])  # where a sum's order is all there is
def test_two_processes_with_sharded_weights_take_the_steps_of_one(ranks, name):
    alone = trainer_for(RECIPES[name])
    before = alone.state()
    expected = {"steps": steps(alone)} | alone.state()
    assert any(np.abs(expected[key] - before[key]).max() > 10 * WEIGHT_BOUND / 3 for key in before if "weights" in key)
    assert_same_training(of(ranks[0], f"sharded, {name}"), expected)


@pytest.mark.parametrize("weight", ["visual.transformer.resblocks.1.mlp.c_fc.weight", "ln_final.bias"])
def test_one_weight_that_differs_is_noticed(ranks, weight):
    alone = trainer_for(RECIPES["plain"])
    weights = alone.model.export()
    weights[weight].flat[-1] += 0.1
    alone.model.load(weights)
    expected = {"steps": steps(alone)} | alone.state()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_training(of(ranks[0], "sharded, plain"), expected)


@pytest.mark.parametrize("name", RECIPES)
def test_every_process_gives_the_whole_state_and_holds_half_of_it(ranks, name):
    first, second = (of(numbers, f"sharded, {name}") for numbers in ranks)
    sizes = {parameter.name: prod(parameter.shape) for parameter in parameters(ARCHITECTURE)}
    held = [int(numbers.pop("held")) for numbers in (first, second)]
    trained = [key.removeprefix("first_moment/") for key in first if key.startswith("first_moment/")]
    replicated = {
        "positional_embedding",
        "text_projection",
        "ln_final.weight",
        "ln_final.bias",
        "logit_scale",
        "logit_bias",
    }
    copies = 4 if name == "clipped and averaged" else 3  # weights, two moments, an average
    common = copies * sum(sizes.get(key, 1) for key in trained if key in replicated)
    spread = copies * sum(sizes[key] for key in trained if key not in replicated)
    for numbers in held:
        assert numbers - common == pytest.approx(spread / 2, rel=0.01)
    assert int(of(ranks[0], name)["held"]) == common + spread
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key]), key
    for key in sizes:
        assert np.array_equal(first[f"weights/{key}"], first[f"exported/{key}"]), key


def test_a_checkpoint_of_whole_weights_goes_on_sharded(ranks):
    alone = trainer_for(RECIPES["plain"])
    expected = {"steps": steps(alone)[1:]} | alone.state()
    found = of(ranks[1], "resumed")
    assert found["updates"] == 3
    assert_same_training(found, expected)


def test_a_checkpoint_of_sharded_weights_goes_on_whole(ranks):
    found, state = trainer_for(RECIPES["clipped and averaged"]), of(ranks[1], "sharded, clipped and averaged")
    alone = trainer_for(RECIPES["clipped and averaged"])
    steps(alone)
    found.restore({key: array for key, array in state.items() if key in alone.state()})
    assert_same_training({"steps": steps(found)} | found.state(), {"steps": steps(alone)} | alone.state())


def test_one_process_alone_keeps_its_weights_whole():
    alone, expected = trainer_for(sharded(RECIPES["plain"])), trainer_for(RECIPES["plain"])
    assert (steps(alone) == steps(expected)).all()
