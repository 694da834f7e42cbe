"""ONNX from the canonical architecture, without a framework.

`exporters.onnx.model` writes the graph of a tower or of both, `exporters.onnx.storage` a file of it, which has the
weights under their canonical names, and `exporters.onnx.quantization` makes int8 of such a file.
"""
