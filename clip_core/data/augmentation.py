"""Random augmentation of pictures, as a recipe sets it; equal generators give equal pixels."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field, model_validator

from clip_core.data.settings import Number, Section, SettingError
from clip_core.errors import ClipError, ImageError
from clip_core.image import in_eight_bits
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.preprocess import Box, RandomResizedCrop, preprocess, resampling_of, resize

Strength = Annotated[float, Number, Field(ge=0, le=100)]


class Augmentation(Section):
    """The augmentation of a recipe. By default, the pixels are those of `clip_core.preprocess.preprocess`.

    The crop comes first, then brightness, contrast, saturation and hue, then the mirror.
    """

    crop: Literal["centre", "random", "resized"] = "centre"
    """``centre`` is the official preprocessing; ``random`` a square as long as the shorter side, anywhere; ``resized``
    a part of random size and ratio (`clip_core.preprocess.RandomResizedCrop`)."""
    scale: tuple[float, float] = (0.9, 1.0)  # of a resized crop: its share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of a resized crop: its width by its height
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"  # of a random or resized crop
    flip: Annotated[float, Number, Field(ge=0, le=1)] = 0.0  # how often a picture is mirrored, left to right
    brightness: Strength = 0.0  # the factor is drawn evenly from 1 - brightness to 1 + brightness, not below 0
    contrast: Strength = 0.0  # likewise
    saturation: Strength = 0.0  # likewise
    hue: Annotated[float, Number, Field(ge=0, le=0.5)] = 0.0  # the shift is drawn evenly from -hue to hue, in turns

    @model_validator(mode="after")
    def _fits(self) -> Augmentation:
        try:
            RandomResizedCrop(self.scale, self.ratio)
        except ClipError as error:
            raise SettingError((), f"{{}}: {error}") from error
        return self

    @property
    def random(self) -> bool:
        """Whether the pixels depend on the generator."""
        return self.crop != "centre" or any((self.flip, self.brightness, self.contrast, self.saturation, self.hue))

    def __call__(
        self,
        image: Image.Image,
        resolution: int,
        generator: np.random.Generator,
        wanted: Pixels = OPENAI_PIXELS,
    ) -> np.ndarray:
        """Pixels float32 [3, resolution, resolution], preprocessed for the model and augmented.

        Raises:
            ImageError: the picture has no pixels, a mode without conversion to RGB, or values whose range is unknown.
        """
        if not self.random:
            return preprocess(image, resolution, wanted)
        image = in_eight_bits(image, "The picture")
        try:
            resampling = resampling_of(wanted.interpolation if self.crop == "centre" else self.interpolation)
            square = resize(image.crop(self._box(image, generator, wanted)), (resolution, resolution), resampling)
            square.info.pop("transparency", None)  # Pillow warns of it on conversion
            square = self._coloured(square.convert("RGB"), generator)
        except Exception as error:  # what Pillow raises for modes that it cannot resize or convert
            size = f"{image.width} x {image.height} pixels in mode {image.mode}"
            raise ImageError(f"A picture of {size} cannot be cropped and resized: {error}; give it in RGB.") from error
        if generator.random() < self.flip:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return preprocess(square, resolution, wanted)

    def _box(self, image: Image.Image, generator: np.random.Generator, wanted: Pixels) -> Box:
        if self.crop == "resized":
            return RandomResizedCrop(self.scale, self.ratio).box(image.width, image.height, generator)
        if self.crop == "centre" and wanted.resize == "squash":
            return 0, 0, image.width, image.height
        side = min(image.size)
        room = image.width - side, image.height - side
        if self.crop == "random":
            left, top = (int(generator.integers(length, endpoint=True)) for length in room)
        else:
            left, top = room[0] // 2, room[1] // 2
        return left, top, left + side, top + side

    def _coloured(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        for strength, enhance in (
            (self.brightness, ImageEnhance.Brightness),
            (self.contrast, ImageEnhance.Contrast),
            (self.saturation, ImageEnhance.Color),
        ):
            if strength:
                image = enhance(image).enhance(generator.uniform(max(0.0, 1 - strength), 1 + strength))
        if self.hue:
            hue, saturation, value = image.convert("HSV").split()
            shift = round(generator.uniform(-self.hue, self.hue) * 256)
            turned = Image.fromarray((np.asarray(hue).astype(int) + shift).astype(np.uint8))  # 256 steps are one turn
            image = Image.merge("HSV", (turned, saturation, value)).convert("RGB")
        return image
