"""CLIP in NumPy, for inference."""

from __future__ import annotations

from clip_core.backend import Backend
from clip_core.reference import CLIP, to_array, to_tensor

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]


class NumPy(Backend):
    """NumPy, whose tensors are arrays."""

    name = "numpy"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)


BACKEND = NumPy()
