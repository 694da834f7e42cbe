"""CLIP in plain NumPy: the judge when two frameworks disagree, and a backend like the others, for inference."""

from __future__ import annotations

from backends.numpy.model import CLIP
from backends.numpy.tensors import to_array, to_tensor
from clip_core.backend import Backend

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]


class NumPy(Backend):
    """NumPy, whose tensors are arrays."""

    name = "numpy"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)


BACKEND = NumPy()
