"""CLIP in Paddle."""

from backends.paddle.model import CLIP, to_array, to_tensor
from backends.paddle.wrapper import CLIPWrapper

__all__ = ["CLIP", "CLIPWrapper", "to_array", "to_tensor"]
