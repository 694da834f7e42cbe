"""CLIP in NNabla."""

from backends.nnabla.model import CLIP, to_array, to_tensor

__all__ = ["CLIP", "to_array", "to_tensor"]
