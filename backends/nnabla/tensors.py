"""Arrays as variables of NNabla and back, and devices."""

from __future__ import annotations

import nnabla as nn
import numpy as np
from nnabla.ext_utils import get_extension_context

from clip_core.errors import ClipError
from clip_core.installation import requirement


def to_tensor(array: np.ndarray) -> nn.Variable:
    """A NumPy array as a variable."""
    return nn.Variable.from_numpy_array(array)


def to_array(tensor: nn.Variable) -> np.ndarray:
    """A computed variable as a float32 (or integer) NumPy array."""
    array = tensor.data.get_data("r")
    return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)


def context_of(device: str) -> nn.Context:
    """NNabla's context for ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ClipError: there is no such device, or NNabla's extension for it is not installed.
    """
    name, _, index = str(device).partition(":")
    extension = {"cpu": "cpu", "cuda": "cudnn", "gpu": "cudnn", "cudnn": "cudnn"}.get(name)
    if extension is None or not (index or "0").isdecimal():
        raise ClipError(f"NNabla has no device {device!r}; choose cpu, cuda or cuda:N.")
    try:
        return get_extension_context(extension, device_id=index or "0")
    except (ImportError, RuntimeError) as error:
        raise ClipError(
            f"NNabla cannot use the device {device!r} here ({error}); "
            f"install its extension with: pip install {requirement('nnabla-cuda')}."
        ) from error
