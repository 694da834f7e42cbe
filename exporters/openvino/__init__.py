"""OpenVINO's files, from those of ONNX."""
