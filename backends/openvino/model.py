"""CLIP in OpenVINO, for inference: that of onnxruntime with other sessions."""

from __future__ import annotations

from backends.onnx.model import CLIP as OfGraphs
from backends.openvino.session import Session


class CLIP(OfGraphs):
    """CLIP in OpenVINO, for inference on the CPU; arguments and errors are those of `backends.onnx.model.CLIP`."""

    backend = "openvino"
    Session = Session
