"""CLIP in OpenVINO, which runs the graphs that `exporters.onnx` writes: a backend for inference, and for parity."""

from __future__ import annotations

from backends.openvino.model import CLIP
from backends.openvino.tensors import to_array, to_tensor
from clip_core.backend import Backend

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]


class OpenVINO(Backend):
    """OpenVINO, which takes and gives arrays."""

    name = "openvino"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)


BACKEND = OpenVINO()
