"""Every format and layout gives back exactly what was written, and holds what its project expects, value by value."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.naming import count
from converters import ModelFile, convert, inspect, read, write
from tests.converters.small import ARCHITECTURES, HELD, random_weights

SUFFIXES = [".safetensors", ".pt", ".h5", ".pdparams"]
CONTAINERS = {".safetensors": "safetensors", ".h5": "hdf5", ".pdparams": "pdparams"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("layout", "name"), HELD)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_and_layout(name, suffix, layout, dtype, tmp_path, assert_equal_weights):
    weights = random_weights(ARCHITECTURES[name], dtype)
    checkpoint = ModelFile(weights, ARCHITECTURES[name], vocabulary="a b\nc d\n")
    path = tmp_path / f"a{suffix}"
    report = write(checkpoint, path, layout=layout)
    found = read(path)
    assert_equal_weights(found.weights, weights)
    assert found.architecture == checkpoint.architecture
    assert found.vocabulary == "a b\nc d\n"
    assert found.container == CONTAINERS.get(suffix, "torch state dict")
    # open_clip's own models have OpenAI's names.
    assert found.layout == ("openai" if layout == "open_clip" else layout)
    data = path.read_bytes()
    assert found.sha256 == report.target_sha256 == hashlib.sha256(data).hexdigest()
    assert found.size == len(data)
    assert report.max_abs_difference == 0.0
    assert report.parameters == count(checkpoint.architecture)
    assert report.dtype == dtype
    assert all(array.flags.c_contiguous and array.flags.aligned for array in found.weights.values())


@pytest.mark.parametrize(
    ("layout", "name"), sorted({(layout, name) for layout in LAYOUTS for name in ARCHITECTURES} - set(HELD))
)
def test_a_layout_without_names_for_the_towers_is_refused(layout, name, tmp_path):
    checkpoint = ModelFile(random_weights(ARCHITECTURES[name]), ARCHITECTURES[name])
