"""PIL image -> pixels float32 [3, r, r] for a model of resolution r, bit for bit those of OpenAI's transform.

The transform is that of OpenAI's package (github.com/openai/CLIP, ``_transform``): resize the shorter side to r with
Pillow's bicubic filter, crop the centre, convert to RGB, divide by 255, subtract the mean and divide by the deviation.
The conversion comes after the resizing, which matters for pictures with a palette or an alpha channel. A model that
wants another filter, mean or deviation, or both sides stretched to r, says so (`clip_core.pixels.Pixels`).

Pictures of more than 8 bits per channel (modes ``I;16``, ``I`` and ``F``), which that transform makes flat white or
black, get 8 bits first by the rule of `clip_core.image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt

import numpy as np
from PIL import Image

from clip_core.errors import ClipError, ImageError
from clip_core.image import MAX_PIXELS, in_eight_bits
from clip_core.pixels import OPENAI_PIXELS, Interpolation, Pixels

PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}  # modes whose colours mix in proportion to their alpha

WIDEST_SUPPORT = 3  # pixels to each side that a filter of Pillow reaches to, where it enlarges

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two are outside


def preprocess(image: Image.Image, resolution: int, wanted: Pixels = OPENAI_PIXELS) -> np.ndarray:
    """One picture of any mode and size as pixels float32 [3, resolution, resolution], channels red, green, blue.

    Args:
        wanted: what the model was trained on.

    Raises:
        ImageError: not a PIL image, without pixels, of a mode that has no conversion to RGB, of values whose range is
            unknown, or so long and narrow that resizing its shorter side to ``resolution`` gives more than `MAX_PIXELS`
            pixels.
    """
    _check_image(image)
    size = resized_size(image.size, resolution, wanted)
    middle = _resized(image, size, wanted, centre_box(*size, resolution))
    try:
        return _pixels_of(middle, wanted)
    except Exception as error:
        raise _unusable(image, error) from error


def resized(image: Image.Image, resolution: int, wanted: Pixels = OPENAI_PIXELS) -> Image.Image:
    """One picture of any mode and size, resized as for `preprocess`, which also crops and converts it.

    Raises:
        ImageError: as `preprocess`.
    """
    _check_image(image)
    return _resized(image, resized_size(image.size, resolution, wanted), wanted)


def _resized(image: Image.Image, size: tuple[int, int], wanted: Pixels, kept: Box | None = None) -> Image.Image:
    try:
        return resize(in_eight_bits(image, "The picture"), size, resampling_of(wanted.interpolation), kept)
    except ImageError:
        raise
    except Exception as error:  # an image that was opened lazily is decoded here, and decoders raise anything
        raise _unusable(image, error) from error


def centre(image: Image.Image, resolution: int) -> Image.Image:
    """The middle of a picture, ``resolution`` pixels along each side."""
    return image.crop(centre_box(image.width, image.height, resolution))


def centre_box(width: int, height: int, resolution: int) -> Box:
    """The middle of a picture of ``width`` x ``height`` pixels."""
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    return left, top, left + resolution, top + resolution


def pixels(images: Sequence[Image.Image], resolution: int, wanted: Pixels = OPENAI_PIXELS) -> np.ndarray:
    """Several pictures as pixels float32 [n, 3, resolution, resolution]; no pictures give n = 0.

    Raises:
        ImageError: as `preprocess`, with the picture's place in the list.
    """
    batch = np.empty((len(images), 3, resolution, resolution), np.float32)
    for place, image in enumerate(images):
        try:
            batch[place] = preprocess(image, resolution, wanted)
        except ImageError as error:
            raise ImageError(f"Picture {place} of {len(images)} (counted from 0): {error}") from error
    return batch


def resampling_of(interpolation: Interpolation) -> Image.Resampling:
    """Pillow's filter of that name."""
    return Image.Resampling[interpolation.upper()]


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    kept: Box | None = None,
) -> Image.Image:
    """The picture in another size, (width, height), or the part ``kept`` of that: the only place that resizes one.

    Pillow filters along one axis after the other and rounds between them. Up to version 12 it began with the width, as
    the official transform did when the models were trained; version 13 begins with the height where that is quicker,
    which gives other pixels. Two calls of one axis each give those of version 12 under all of them.
    """
    mixed_by_alpha = image.mode in PREMULTIPLIED and size != image.size and resampling != Image.Resampling.NEAREST
    if mixed_by_alpha:  # Pillow multiplies by alpha around each call, and rounds then, too
        return resize(image.convert(PREMULTIPLIED[image.mode]), size, resampling, kept).convert(image.mode)
    left, top, right, bottom = kept or (0, 0, *size)
    first, last = _made_of(top, bottom, image.height / size[1], image.height)
    rows = image.crop((0, first, image.width, last)) if last - first < image.height else image
    # Pillow can leave out columns and rows by itself, but rounds where they begin, which gives other pixels. The rows
    # that were left out are black here, and no row that is kept is made of them.
    columns, middle = (left, -first, right, image.height - first), (0, top, right - left, bottom)
    wide, tall = (size[0], rows.height), (right - left, size[1])
    return rows.resize(wide, resampling).crop(columns).resize(tall, resampling).crop(middle)


def _made_of(start: int, stop: int, scale: float, length: int) -> tuple[int, int]:
    """Of ``length`` rows, the first and one behind the last that the rows from ``start`` to ``stop`` are made of."""
    reach = WIDEST_SUPPORT * max(scale, 1) + 1
    return max(0, int(start * scale - reach)), min(length, ceil(stop * scale + reach))


@dataclass(frozen=True)
class RandomResizedCrop:
    """For training: a random part of the picture, stretched to the model's resolution.

    The part has a share of the picture's area drawn evenly from ``scale`` and a ratio of width to height drawn from
    ``ratio``, evenly in its logarithm (the crop of Inception, arXiv 1409.4842, section 6). When ten draws do not fit
    into the picture, the largest centred part within ``ratio`` is taken. Equal generators give equal pixels.
    """

    scale: tuple[float, float]  # shares of the area, within 0 to 1
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    resampling: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ClipError(f"The scale of a random crop is {self.scale}; give two rising shares, above 0 and up to 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ClipError(f"The ratio of a random crop is {self.ratio}; give two rising numbers above 0.")

    def __call__(
        self,
        image: Image.Image,
        resolution: int,
        generator: np.random.Generator,
        wanted: Pixels = OPENAI_PIXELS,
    ) -> np.ndarray:
        """A random part of ``image`` as pixels float32 [3, resolution, resolution].

        Raises:
            ImageError: not a PIL image, without pixels, of a mode that has no conversion to RGB, or of values whose
                range is unknown.
        """
        _check_image(image)
        try:
            part = in_eight_bits(image, "The picture").crop(self.box(image.width, image.height, generator))
            return _pixels_of(resize(part, (resolution, resolution), self.resampling), wanted)
        except ImageError:
            raise
        except Exception as error:
            raise _unusable(image, error) from error

    def box(self, width: int, height: int, generator: np.random.Generator) -> Box:
        """The part that is taken from a picture of ``width`` x ``height`` pixels."""
        narrowest, widest = self.ratio
        for _ in range(10):
            area = width * height * generator.uniform(*self.scale)
            ratio = exp(generator.uniform(log(narrowest), log(widest)))
            part_width, part_height = round(sqrt(area * ratio)), round(sqrt(area / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                left = int(generator.integers(width - part_width, endpoint=True))
                top = int(generator.integers(height - part_height, endpoint=True))
                return left, top, left + part_width, top + part_height
        part_width = max(1, min(width, round(height * widest)))
        part_height = max(1, min(height, round(width / narrowest)))
        left, top = (width - part_width) // 2, (height - part_height) // 2
        return left, top, left + part_width, top + part_height


def resized_size(size: tuple[int, int], resolution: int, wanted: Pixels = OPENAI_PIXELS) -> tuple[int, int]:
    """Width and height once the shorter side is ``resolution``, the longer side rounded down; or once both are.

    Raises:
        ImageError: that are more than `MAX_PIXELS` pixels.
    """
    if wanted.resize == "squash":
        return resolution, resolution
    width, height = size
    short, long = sorted(size)
    resized_long = int(resolution * long / short)
    if resolution * resized_long > MAX_PIXELS:
        # Resizing the crop alone would cost nothing, but it gives other pixels than the official transform.
        raise ImageError(
            f"A picture of {width} x {height} pixels is too long and narrow: resized to {resolution} along "
            f"its shorter side it has {resolution * resized_long} pixels, and the limit is {MAX_PIXELS}; crop it first."
        )
    return (resolution, resized_long) if width <= height else (resized_long, resolution)


def _pixels_of(image: Image.Image, wanted: Pixels) -> np.ndarray:
    """Pixels float32 [3, h, w] of a picture that no one else holds, in the order of operations of the transform."""
    image.info.pop("transparency", None)  # without effect on the colours, but Pillow warns of it and may fail on it
    rgb = np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # [h, w, 3] -> [3, h, w]
    values = np.divide(rgb, np.float32(255), dtype=np.float32, order="C")
    values -= np.array(wanted.mean, np.float32)[:, None, None]
    values /= np.array(wanted.deviation, np.float32)[:, None, None]
    return values


def _check_image(image: Image.Image) -> None:
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"A picture was given as {type(image).__name__}; give a PIL image: clip_core.image.open_image makes one of "
            "a file, PIL.Image.fromarray of a uint8 array [height, width, 3]."
        )
    if not image.width * image.height:
        raise ImageError(f"A picture of {image.width} x {image.height} pixels was given; give one that has pixels.")


def _unusable(image: Image.Image, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(
        f"A picture of mode {image.mode} and {image.width} x {image.height} pixels cannot be resized and converted to "
        f"RGB: {reason}; give it in mode RGB."
    )
