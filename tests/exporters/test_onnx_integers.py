"""Graphs in int8 stay near their originals, for every tower and in both runtimes."""

from __future__ import annotations

import importlib

import numpy as np
import onnx
import pytest

import backends
from clip_core.similarity import normalize
from exporters.onnx import model, storage
from exporters.onnx.graph import DEFAULT_OPSET
from exporters.onnx.quantization import quantize
from exporters.openvino import storage as vino
from tests.models import sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES

DEFAULT = "siglip and siglip"  # the others run with the slow tests


@pytest.mark.parametrize(
    "name", [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
@pytest.mark.parametrize("part", ["image", "text"])
def test_features_keep_their_direction(part, name, tmp_path):
    architecture = EXAMPLES[name]
    inputs = {"image": sample_pixels(architecture, 16), "text": sample_tokens(architecture, 16)}
    exact, integers = tmp_path / "exact.onnx", tmp_path / "integers.onnx"
    storage.save(model.write(architecture, sample_weights(architecture), part), exact, DEFAULT_OPSET, {})
    quantize(exact, integers, [{part: inputs[part]}])
    found = {}
    for runtime in backends.RUNTIMES:
        session = importlib.import_module(f"backends.{runtime}.session").Session
        for path in (exact, integers):
            found[runtime, path] = normalize(session(path)(inputs)[f"{part}_features"])
        cosines = (found[runtime, exact] * found[runtime, integers]).sum(axis=1)
        assert cosines.min() > 0.99
        assert not np.allclose(found[runtime, exact], found[runtime, integers], atol=1e-4), "it is int8 indeed"


@pytest.mark.parametrize(
    "name", [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_features_keep_their_direction_in_nncf(name, tmp_path):
    architecture = EXAMPLES[name]
    inputs = {"image": sample_pixels(architecture, 16), "text": sample_tokens(architecture, 16)}
    session = importlib.import_module("backends.openvino.session").Session
    for part in ("image", "text"):
        storage.save(
            model.write(architecture, sample_weights(architecture), part), tmp_path / "a.onnx", DEFAULT_OPSET, {}
        )
        vino.save(tmp_path / "a.onnx", tmp_path / "exact.xml", {})
        vino.save(tmp_path / "a.onnx", tmp_path / "integers.xml", {"key": 1}, [{part: inputs[part]}])
        exact, integers = (session(tmp_path / f"{file}.xml")(inputs) for file in ("exact", "integers"))
        cosines = (normalize(exact[f"{part}_features"]) * normalize(integers[f"{part}_features"])).sum(axis=1)
        assert 0.99 < cosines.min() < 1 - 1e-6, "it is int8 indeed"
        assert vino.metadata_of(tmp_path / "integers.xml") == {"key": 1}
        sizes = [(tmp_path / f"{file}.bin").stat().st_size for file in ("exact", "integers")]
        assert sizes[1] < sizes[0] / 2


def test_products_of_two_computed_matrices_stay_in_float32(tmp_path):
    """onnxruntime computes some of them wrongly in integers."""
    architecture = EXAMPLES[DEFAULT]
    storage.save(model.write(architecture, sample_weights(architecture), "image"), tmp_path / "a.onnx", 17, {})
    quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", [{"image": sample_pixels(architecture)}])
    graph = onnx.load(str(tmp_path / "b.onnx")).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    products = [{made_by.get(name) for name in node.input} for node in graph.node if node.op_type == "MatMul"]
    in_integers = [product for product in products if product == {"DequantizeLinear"}]
    assert len(in_integers) >= 4 * 2  # of two blocks
    assert len(products) - len(in_integers) == 2 * 3  # scores and states of two blocks and of the attention pool
    assert all("DequantizeLinear" not in product for product in products if product not in in_integers)
