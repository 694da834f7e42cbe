"""Initial values: the same numbers everywhere, spread as the scheme says."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from math import cos, log, sin
from pathlib import Path

import numpy as np
import pytest

from clip_core.initialize import initialize
from clip_core.naming import faults, parameters
from tests.models import REDUCED, RESNET, VIT

WIDTH, TEXT_WIDTH, LAYERS, TEXT_LAYERS = 128, 128, 2, 3  # of VIT
POOL = 256  # feature width of RESNET


@pytest.mark.parametrize("name", REDUCED)
def test_they_fit_the_model(name):
    assert faults(REDUCED[name], initialize(REDUCED[name], 0)) == []


def test_equal_seeds_give_equal_numbers():
    one, same, other = initialize(VIT, 3), initialize(VIT, 3), initialize(VIT, 4)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    drawn = {name for name, array in one.items() if array.std() > 0} - {"visual.positional_embedding"}
    assert all(not np.array_equal(one[name], other[name]) for name in drawn)
    assert len(drawn) == 5 * 4 + 6  # matrices of five blocks, and those outside of them


@pytest.mark.parametrize(("name", "architecture"), [("vit", VIT), ("resnet", RESNET)])
def test_golden_numbers(name, architecture):
    """They must never change: runs are repeated from a seed."""
    digests = {name: hashlib.sha256(array).hexdigest()[:16] for name, array in initialize(architecture, 0).items()}
    assert digests == json.loads(Path(__file__).with_name("golden_initial_values.json").read_text())[name]


def test_no_tensor_repeats_another():
    arrays = [array.ravel()[-50:] for array in initialize(VIT, 0).values() if array.size >= 50 and array.std() > 0]
    for index, array in enumerate(arrays):
        for other in arrays[:index]:
            assert abs(np.corrcoef(array, other)[0, 1]) < 0.6


def test_a_change_in_one_tower_leaves_the_others_numbers():
    wider = replace(VIT, image=replace(VIT.image, layers=4))
    one, other = initialize(VIT, 0), initialize(wider, 0)
    assert all(np.array_equal(one[name], other[name]) for name in one if not name.startswith("visual."))


# pattern of names: the standard deviation of a normal distribution, or the bound of a uniform one
SPREAD = [
    (VIT, r"token_embedding\.weight", "normal", 0.02),
    (VIT, r"positional_embedding", "normal", 0.01),
    (VIT, r"text_projection", "normal", TEXT_WIDTH**-0.5),
    (VIT, r"visual\.(class_embedding|proj)", "normal", WIDTH**-0.5),
    (VIT, r"visual\.conv1\.weight", "uniform", (3 * 32 * 32) ** -0.5),
    (VIT, r".*\.attn\.in_proj_weight", "normal", WIDTH**-0.5),
    (VIT, r".*\.mlp\.c_fc\.weight", "normal", (2 * WIDTH) ** -0.5),
    (VIT, r"visual\..*(out_proj|c_proj)\.weight", "normal", WIDTH**-0.5 * (2 * LAYERS) ** -0.5),
    (VIT, r"transformer\..*(out_proj|c_proj)\.weight", "normal", TEXT_WIDTH**-0.5 * (2 * TEXT_LAYERS) ** -0.5),
    (RESNET, r"visual\.layer4\.0\.conv2\.weight", "uniform", (64 * 9) ** -0.5),
    (RESNET, r"visual\.attnpool\.(positional_embedding|[kqvc]_proj\.weight)", "normal", POOL**-0.5),
    (RESNET, r"visual\.attnpool\.[kqvc]_proj\.bias", "uniform", POOL**-0.5),
]


@pytest.mark.parametrize(("architecture", "pattern", "distribution", "size"), SPREAD)
def test_drawn_values_are_spread_as_the_scheme_says(architecture, pattern, distribution, size):
    arrays = [array for name, array in initialize(architecture, 0).items() if re.fullmatch(pattern, name)]
    assert arrays
    for array in arrays:
        uncertainty = 4 / np.sqrt(array.size)
        deviation = size if distribution == "normal" else size / np.sqrt(3)
        assert array.std() == pytest.approx(deviation, rel=uncertainty)
        assert abs(array.mean()) < uncertainty * deviation
        if distribution == "normal":
            assert np.abs(array).max() > 1.8 * size
        else:
            assert 0.8 * size < np.abs(array).max() <= size


@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_the_spread_of_every_drawn_tensor_is_checked(architecture):
    patterns = [pattern for _, pattern, _, _ in SPREAD] + [r".*\.(conv\d|downsample\.0)\.weight"]
    for name, array in initialize(architecture, 0).items():
        if array.std() > 0 and not (architecture is VIT and name == "visual.positional_embedding"):
            assert any(re.fullmatch(pattern, name) for pattern in patterns), name


def test_positions_of_an_image_transformer_are_waves():
    """Its columns' sines and cosines, then its rows'; the class token has no place."""
    positions = initialize(VIT, 0)["visual.positional_embedding"]
    grid, quarter = VIT.image.grid, WIDTH // 4
    assert not positions[0].any()
    for row, column, wave in [(0, 0, 0), (1, 0, 3), (0, 1, 0), (1, 1, quarter - 1)]:
        frequency = 100 ** -(wave / quarter)
        expected = [sin(column * frequency), cos(column * frequency), sin(row * frequency), cos(row * frequency)]
        found = positions[1 + row * grid + column, wave::quarter]
        assert found == pytest.approx([0.7 * value for value in expected], abs=1e-6)
    assert np.array_equal(positions, initialize(VIT, 1)["visual.positional_embedding"])


def test_constant_values():
    weights = {**initialize(VIT, 0), **initialize(RESNET, 0)}
    for parameter in (*parameters(VIT), *parameters(RESNET)):
        array = weights[parameter.name]
        if parameter.kind == "scalar":
            assert array == np.float32(log(1 / 0.07))
        elif parameter.kind == "counter":
            assert (array, array.dtype) == (0, np.int64)
        elif parameter.name.endswith(("running_mean", "ln_1.bias", "bn1.bias", "c_fc.bias", "in_proj_bias")):
            assert not array.any()
        elif parameter.name.endswith(("running_var", "ln_2.weight", "bn2.weight", "downsample.1.weight")):
            assert (array == 1).all()
        elif parameter.name.endswith("bn3.weight"):
            # The stem's third normalisation is not the last of a bottleneck.
            assert (array == (1 if parameter.name == "visual.bn3.weight" else 0)).all()
