"""Graphs run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino

from clip_core.naming import Weights
from exporters.onnx import storage
from exporters.onnx.graph import DEFAULT_OPSET, Graph

# By default some processors compute in bfloat16, which is another precision than the file's.
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


class Session:
    """A graph that is ready to run: of a file of ONNX or OpenVINO, or one in memory."""

    def __init__(self, graph: Path | Graph) -> None:
        if isinstance(graph, Path):
            self._compiled = openvino.Core().compile_model(str(graph), "CPU", SETTINGS)
            return
        with TemporaryDirectory() as folder:
            path = Path(folder, "graph.onnx")
            storage.write(graph, path, DEFAULT_OPSET, {})
            self._compiled = openvino.Core().compile_model(str(path), "CPU", SETTINGS)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Weights:
        """All outputs by their names; of ``inputs`` those that the graph takes are given to it."""
        # Each has the names of all nodes that OpenVINO has found to do nothing but pass it on.
        given = {port: inputs[name] for port in self._compiled.inputs for name in port.get_names() & inputs.keys()}
        found = self._compiled(given)
        return {name: found[port] for port in self._compiled.outputs for name in port.get_names()}
