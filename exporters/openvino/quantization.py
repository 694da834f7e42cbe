"""Integers of 8 bits by NNCF: matrices and kernels by channel, what goes into them by calibration."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout

import numpy as np
import openvino
from openvino.passes import ConstantFolding, Manager

from clip_core.errors import BackendMissing
from clip_core.installation import requirement

os.environ.setdefault("NNCF_CI", "1")  # without which it tells its makers over the network that it is used
try:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, OverflowFix
except Exception as error:  # a broken installation can raise anything
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise BackendMissing(
        f"int8 for OpenVINO needs nncf, which does not import here ({reason}); install it with: "
        f"pip install {requirement('nncf')}, or export int8 to onnx, whose files OpenVINO reads as well."
    ) from error

CONVOLUTIONS = ("Convolution", "GroupConvolution")


def quantized(model: openvino.Model, batches: Iterable[Mapping[str, np.ndarray]]) -> openvino.Model:
    """A graph with weights and inputs of matrix products and convolutions in int8.

    Weights have one scale for each channel and 7 bits, so that no processor's products of 16 bits overflow. Products of
    two computed matrices, as in attention, stay in float32.

    Args:
        batches: inputs by name, whose ranges the scales are for.
    """
    given = list(batches)
    passes = Manager()
    passes.register_pass(ConstantFolding())  # in which transposed matrices are constants, which are stored as integers
    passes.run_passes(model)
    others = [node for node in model.get_ops() if not _has_weights(node)]
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(io.StringIO()):  # it draws bars
        return nncf.quantize(
            model,
            nncf.Dataset(given),
            subset_size=len(given),
            preset=nncf.QuantizationPreset.MIXED,  # ranges of inputs need not be symmetric
            ignored_scope=nncf.IgnoredScope(names=[node.get_friendly_name() for node in others], validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE,
                # Moving the ranges of inputs into the weights loses the direction of DistilBERT's features.
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),
            ),
        )


def _has_weights(node: openvino.Node) -> bool:
    """Whether it is a convolution, or a product with a matrix that is a constant."""
    kind = node.get_type_name()
    return kind in CONVOLUTIONS or (kind == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant")
