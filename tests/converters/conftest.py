"""Two small models whose tensors are all different, so that no two can be mistaken for each other."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.buffers import Tensor
from clip_core.naming import Weights, parameters
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, dialects

with warnings.catch_warnings():
    # What the frameworks say of the machine while they are imported is not about this project.
    warnings.simplefilter("ignore")
    for name in set(backends.available()) - {"numpy"}:
        importlib.import_module(name)

TEXT = TextTransformer(context_length=16, vocabulary_size=50, width=128, layers=3, heads=2)
ARCHITECTURES = {
    "vit": Architecture(32, VisionTransformer(resolution=32, patch=8, width=64, layers=2, heads=1), TEXT),
    "resnet": Architecture(32, ModifiedResNet(resolution=64, width=8, blocks=(1, 2, 1, 1), heads=4), TEXT),
}


def random_weights(architecture: Architecture, dtype: str = "float32") -> Weights:
    generator = np.random.default_rng(0)
    return {
        parameter.name: np.asarray(generator.integers(1, 1000), np.int64)
        if parameter.kind == "counter"
        else np.asarray(generator.standard_normal(parameter.shape), dtype)
        for parameter in parameters(architecture)
    }


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
        found = dialects.spell(tensors, checkpoint.architecture, layout)
        return {name: tensor.values() for name, tensor in found.items()}

    return spell
