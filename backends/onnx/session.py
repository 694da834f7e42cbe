"""Graphs of ONNX run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from clip_core.naming import Weights
from exporters.onnx.graph import DEFAULT_OPSET, Graph, outside

ERRORS_ONLY = 3


class Session:
    """A graph that is ready to run: of a file, or one in memory, whose weights are not copied."""

    def __init__(self, graph: Path | Graph) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if isinstance(graph, Path):
            source: str | bytes = str(graph)
        else:
            model = graph.model("clip", DEFAULT_OPSET, {}, lambda name, array: outside(name, array, "memory"))
            source = model.SerializeToString()
            # onnxruntime looks at the arrays while the session lives.
            self._weights = graph.weights
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Weights:
        """All outputs by their names; of ``inputs`` those that the graph takes are given to it."""
        found = self._session.run(None, {name: inputs[name] for name in self._inputs})
        return dict(zip(self._outputs, found))
