"""Files of OpenVINO: its own form of a graph that is in a file of ONNX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

WEIGHTS = ".bin"  # the suffix of the file beside the graph that has its weights
SECTION = "triclip"  # of the information about the graph that holds the metadata


def save(
    source: Path,
    target: Path,
    metadata: Mapping[str, Any],
    calibration: Iterable[Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write the graph in ``source``, a file of ONNX, to ``target``, an .xml, and its weights beside that.

    Args:
        calibration: batches of inputs by name, with which the graph is quantised; by default, it is not.

    Raises:
        BackendMissing: it is to be quantised, and NNCF is not installed.
    """
    model = openvino.Core().read_model(str(source))
    if calibration is not None:
        from exporters.openvino.quantization import quantized

        model = quantized(model, calibration)
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), [SECTION, key])
    openvino.save_model(model, str(target), compress_to_fp16=False)


def metadata_of(path: Path) -> dict[str, Any]:
    """The metadata that `save` has put into a file."""
    model = openvino.Core().read_model(str(path))
    return {key: json.loads(model.get_rt_info([SECTION, key]).value) for key in model.get_rt_info()[SECTION]}
