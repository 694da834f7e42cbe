"""The models of `tests.converters.small` as fixtures, and how their weights are compared."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest

import backends
from clip_core.buffers import Tensor
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights
from converters import ModelFile
from tests.converters.small import ARCHITECTURES, random_weights

with warnings.catch_warnings():
    # What the frameworks say of the machine while they are imported is not about this project.
    warnings.simplefilter("ignore")
    for name in set(backends.available()) - {"numpy"}:
        importlib.import_module(name)


@pytest.fixture(params=["vit", "resnet"])
def any_checkpoint(request) -> ModelFile:
    architecture = ARCHITECTURES[request.param]
    return ModelFile(random_weights(architecture), architecture)


@pytest.fixture
def vit() -> ModelFile:
    return ModelFile(random_weights(ARCHITECTURES["vit"]), ARCHITECTURES["vit"])


@pytest.fixture
def resnet() -> ModelFile:
    return ModelFile(random_weights(ARCHITECTURES["resnet"]), ARCHITECTURES["resnet"])


@pytest.fixture
def assert_equal_weights():
    def check(found: Weights, expected: Weights) -> None:
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert found[name].dtype == array.dtype, name
            assert found[name].shape == array.shape, name
            assert found[name].tobytes() == array.tobytes(), name

    return check


@pytest.fixture
def spelled():
    """The names and arrays of a checkpoint as a layout stores them."""

    def spell(checkpoint: ModelFile, layout: str) -> dict[str, np.ndarray]:
        tensors = {name: Tensor(array, array.dtype) for name, array in checkpoint.weights.items()}
        found = LAYOUTS[layout].store(tensors, checkpoint.architecture)
        return {name: tensor.values() for name, tensor in found.items()}

    return spell
