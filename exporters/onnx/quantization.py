"""Integers of 8 bits by onnxruntime: matrices and kernels by channel, what goes into them by calibration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from clip_core.errors import ClipError
from exporters.onnx.storage import BESIDE

OPERATORS = ["MatMul", "Gemm", "Conv"]  # which do nearly all of the work


class _Batches(CalibrationDataReader):
    """Inputs for onnxruntime's calibration, which asks for one batch after the other."""

    def __init__(self, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        self._batches: Iterator[Mapping[str, np.ndarray]] = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(source: Path, target: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write a file of the graph in ``source`` with weights and inputs of matrix products and convolutions in int8.

    Weights have one scale for each channel and 7 bits, so that no processor's products of 16 bits overflow. Products of
    two computed matrices, as in attention, stay in float32.

    Args:
        batches: inputs by name, whose ranges the scales are for.

    Raises:
        ClipError: the weights of ``source`` are in a file of their own, since they are too large for one.
    """
    if source.with_name(source.name + BESIDE).exists():
        raise ClipError(
            f"The weights of the {target.stem} graph have more than 2 GB, which cannot be quantised; choose fp16, or "
            "smaller parts with --image and --text."
        )
    folded = target.with_name(f"folded-{target.name}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)  # in which transposed matrices are constants
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    model = onnx.load(str(folded))
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # else it warns
    constants = {each.name for each in model.graph.initializer}
    computed = [each.name for each in model.graph.node if each.op_type == "MatMul" and each.input[1] not in constants]
    quantize_static(
        model,
        str(target),
        _Batches(batches),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=OPERATORS,
        nodes_to_exclude=computed,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    folded.unlink()
