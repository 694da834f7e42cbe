"""CLIP in PyTorch."""

from backends.torch.model import CLIP, to_array, to_tensor

__all__ = ["CLIP", "to_array", "to_tensor"]
