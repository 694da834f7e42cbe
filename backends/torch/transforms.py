"""OpenAI's preprocessing as single steps, like those of torchvision's ``Compose``, for code that takes some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clip_core import preprocess as preprocessing
from clip_core.pixels import Colour, Interpolation, Pixels


class Resize:
    """Resizes the shorter side to ``size``, or both sides: of a PIL image, or of pixels [..., h, w]."""

    def __init__(self, size: int, wanted: Pixels) -> None:
        self.size, self.wanted = size, wanted
        self.interpolation: Interpolation = wanted.interpolation

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, torch.Tensor):
            return preprocessing.resized(image, self.size, self.wanted)
        height, width = image.shape[-2:]
        width, height = preprocessing.resized_size((width, height), self.size, self.wanted)
        pixels = image.reshape(-1, *image.shape[-3:])  # [..., 3, h, w] -> [n, 3, h, w]
        wide = pixels if pixels.is_floating_point() else pixels.float()
        wide = F.interpolate(wide, (height, width), mode=self.interpolation, antialias=True)
        if wide is not pixels and not pixels.is_floating_point():
            wide = wide.round().clamp(0, 255).to(pixels.dtype)
        return wide.reshape(*image.shape[:-2], height, width)


class CenterCrop:
    """Keeps the middle of ``size`` x ``size`` pixels: of a PIL image, or of pixels [..., h, w], with zeros around what
    is smaller.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, torch.Tensor):
            return preprocessing.centre(image, self.size)
        height, width = image.shape[-2:]
        wide, high = max(self.size - width, 0), max(self.size - height, 0)  # how much is missing
        image = F.pad(image, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        left, top, right, bottom = preprocessing.centre_box(image.shape[-1], image.shape[-2], self.size)
        return image[..., top:bottom, left:right]


def convert_image_to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode in RGB."""
    return image.convert("RGB")


class ToTensor:
    """A PIL image of 8 bits, or an array uint8 [h, w, channels] -> float32 [channels, h, w] from 0 to 1."""

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        array = np.atleast_3d(np.asarray(image))  # [h, w] -> [h, w, 1]
        return torch.tensor(array.transpose(2, 0, 1)).float().div(255)  # [h, w, channels] -> [channels, h, w]


class Normalize:
    """Pixels [..., 3, h, w], minus ``mean``, divided by ``std``."""

    def __init__(self, mean: Colour, std: Colour) -> None:
        self.mean, self.std = mean, std

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (pixels.new_tensor(colour)[:, None, None] for colour in (self.mean, self.std))
        return (pixels - mean) / std


def steps(resolution: int, wanted: Pixels) -> list[Callable[[Any], Any]]:
    """What a model's preprocessing does, one after the other."""
    return [
        Resize(resolution, wanted),
        CenterCrop(resolution),
        convert_image_to_rgb,
        ToTensor(),
        Normalize(wanted.mean, wanted.deviation),
    ]
