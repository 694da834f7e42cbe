"""What becomes of a picture before an image tower sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bicubic", "bilinear"]
Resize = Literal["shortest", "squash"]
Colour = tuple[float, float, float]  # red, green and blue, which go from 0 to 1
# Of the pictures OpenAI trained on.
MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
DEVIATION: Colour = (0.26862954, 0.26130258, 0.27577711)
# Of ImageNet, as torchvision's networks are trained with.
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION: Colour = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pixels:
    """What becomes of a picture: resized to the tower's resolution, then (value / 255 - mean) / deviation.

    The defaults are those of OpenAI's package.
    """

    mean: Colour = MEAN
    deviation: Colour = DEVIATION
    interpolation: Interpolation = "bicubic"  # Pillow's filter
    # The shorter side becomes as long as the resolution and the middle is kept, or both sides are stretched to it.
    resize: Resize = "shortest"


OPENAI_PIXELS = Pixels()
# simple-clip's square pictures, in the colours that its pretrained image towers expect.
TORCHVISION_PIXELS = Pixels(IMAGENET_MEAN, IMAGENET_DEVIATION, "bilinear", "squash")
