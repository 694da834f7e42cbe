"""CLIP in onnxruntime, which runs the graphs that `exporters.onnx` writes: a backend for inference, and for parity."""

from __future__ import annotations

from backends.onnx.model import CLIP
from backends.onnx.tensors import to_array, to_tensor
from clip_core.backend import Backend

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]


class ONNX(Backend):
    """onnxruntime, which takes and gives arrays."""

    name = "onnx"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)


BACKEND = ONNX()
