"""What NNabla saves besides ``.h5``: Protocol Buffers, and archives with a network."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from nnabla.utils.save import save

import clip
from clip_core.errors import ClipError
from clip_core.layouts import LAYOUTS
from clip_core.naming import parameters
from converters import write
from tests.converters.bare import inspect, read


@pytest.fixture
def in_scope(any_checkpoint):
    """A checkpoint whose parameters are in NNabla's global scope, but for batch counters, which NNabla has none of."""
    nn.clear_parameters()
    spell = LAYOUTS["nnabla"].spell
    for parameter in parameters(any_checkpoint.architecture):
        if parameter.kind != "counter":
            name, shape = spell(parameter.name), parameter.shape
            variable = nn.parameter.get_parameter_or_create(name, shape, need_grad=parameter.trainable)
            variable.d = any_checkpoint.weights[parameter.name]
    yield any_checkpoint
    nn.clear_parameters()


def save_archive(path, **options) -> None:
    x = nn.Variable((1, 3))
    network = {"name": "net", "batch_size": 1, "outputs": {"y": x + 1}, "names": {"x": x}}
    executor = {"name": "run", "network": "net", "data": ["x"], "output": ["y"]}
    save(str(path), {"networks": [network], "executors": [executor]}, **options)


@pytest.mark.parametrize("suffix", [".protobuf", ".nnp", "+protobuf.nnp", "+network.protobuf"])
def test_what_nnabla_saves_is_read(in_scope, suffix, tmp_path, assert_equal_weights):
    path = tmp_path / f"a{suffix}"
    if suffix == ".protobuf":
        nn.save_parameters(str(path))
    elif suffix == "+network.protobuf":
        save_archive(path, include_params=True)
    else:
        save_archive(path, parameter_format=".protobuf" if suffix == "+protobuf.nnp" else ".h5")
    found = read(path)
    assert (found.container, found.layout) == (path.suffix[1:], "nnabla")
    assert found.architecture == in_scope.architecture
    expected = in_scope.weights | {
        name: np.zeros((), np.int64) for name, array in in_scope.weights.items() if array.dtype == np.int64
    }
    assert_equal_weights(found.weights, expected)
    assert inspect(path).faults == ()
    assert clip.load(str(path), activation="quick_gelu")[0].backend == "nnabla"


def test_these_formats_are_not_written(vit, tmp_path):
    for name in ("a.protobuf", "a.nnp"):
        with pytest.raises(ClipError, match=f"{name} has no suffix to write a format by"):
            write(vit, tmp_path / name)
