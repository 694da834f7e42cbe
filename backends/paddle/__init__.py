"""CLIP in Paddle."""

from backends.paddle.model import CLIP, to_array, to_tensor

__all__ = ["CLIP", "to_array", "to_tensor"]
