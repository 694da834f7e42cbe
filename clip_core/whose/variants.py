"""The table of variants: how pictures are resized, scaled and ordered, and which activation the model computes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from clip_core.pixels import DEVIATION, IMAGENET_DEVIATION, IMAGENET_MEAN, MEAN, Colour, Pixels
from clip_core.whose.resizing import Resizing

Channels = Literal["RGB", "BGR"]

RESIZINGS = (
    Resizing("OpenAI"),  # open_clip's, too
    Resizing("OpenAI, Pillow 13", filtering="pillow 13"),
    Resizing("transformers 4", floored=True, rgb_first=True),
    Resizing("transformers 4, Pillow 13", filtering="pillow 13", floored=True, rgb_first=True),
    Resizing("transformers 5", filtering="tensor", floored=True, rgb_first=True),
    Resizing("transformers 5, GPU", filtering="float tensor", floored=True, rgb_first=True),
    Resizing("torchvision tensors", filtering="tensor", rgb_first=True),  # and the fast processors of transformers 4
    Resizing("torchvision tensors, GPU", filtering="float tensor", rgb_first=True),
    Resizing("squash", "squash"),  # open_clip's of SigLIP and others
    Resizing("squash, Pillow 13", "squash", filtering="pillow 13"),
    Resizing("bilinear", interpolation="bilinear"),
    Resizing("bilinear squash", "squash", interpolation="bilinear"),
    Resizing("OpenCV", "squash", filtering="samples", rgb_first=True),  # cv2.resize without further arguments
)
"""Every way to resize that is in use for CLIP, each with a name of its own."""

SCALINGS: dict[str, tuple[Colour, Colour]] = {
    "CLIP": (MEAN, DEVIATION),
    "ImageNet": (IMAGENET_MEAN, IMAGENET_DEVIATION),
    "-1 to 1": ((0.5,) * 3, (0.5,) * 3),
    "0 to 1": ((0.0,) * 3, (1.0,) * 3),
}
"""What is subtracted from red, green and blue, which go from 0 to 1, and what they are divided by then."""

FIRST_LOOK = ("OpenAI", "squash")
"""The two resizings that differ most, with which the other dimensions are told apart first."""


class Making(NamedTuple):
    """All but the resizing of a variant."""

    activation: str | None  # None: the image tower has no choice
    scaling: str  # a key of the scalings
    channels: Channels


def scalings_with(pixels: Pixels) -> dict[str, tuple[Colour, Colour]]:
    """`SCALINGS`, and that of a model where it is none of them."""
    own = pixels.mean, pixels.deviation
    return SCALINGS if own in SCALINGS.values() else {"the model's": own} | SCALINGS


def makings(activations: tuple[str | None, ...], scalings: dict[str, tuple[Colour, Colour]]) -> Iterator[Making]:
    """Every combination of the other dimensions."""
    orders: tuple[Channels, ...] = ("RGB", "BGR")
    return (Making(*each) for each in product(activations, scalings, orders))


def scaled(squares: np.ndarray, scaling: tuple[Colour, Colour], channels: Channels) -> np.ndarray:
    """Squares uint8 [n, r, r, 3] with red first as pixels float32 [n, 3, r, r] for a model.

    The mean and the deviation stay in their places when the colours are in the other order, as in programs that read
    pictures with OpenCV and forget to convert them.
    """
    mean, deviation = (np.array(each, np.float32) for each in scaling)
    ordered = squares[..., ::-1] if channels == "BGR" else squares
    pixels = (ordered / np.float32(255) - mean) / deviation
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # [n, r, r, 3] -> [n, 3, r, r]
