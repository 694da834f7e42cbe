"""PIL image -> uint8 [r, r, 3], as the libraries in use resize a picture before its colours are scaled.

Pillow, PyTorch and OpenCV filter along one axis after the other. They differ in what they round: Pillow's weights have
22 bits behind the point, PyTorch's on a CPU as many as fit into 16 bits, and its floats are rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from clip_core.errors import ImageError
from clip_core.image import in_eight_bits
from clip_core.pixels import Interpolation, Pixels, Resize
from clip_core.preprocess import PREMULTIPLIED, centre_box, resampling_of, resize, resized_size
from clip_core.resize import interpolation

Filtering = Literal["pillow", "pillow 13", "tensor", "float tensor", "samples"]

ROWS = 256  # of a picture that are filtered at once, which bounds the memory
MOST_BITS = 15  # of a weight of PyTorch's, without its sign


@dataclass(frozen=True)
class Resizing:
    """One way from a picture to the square that a model sees."""

    name: str
    fit: Resize = "shortest"
    filtering: Filtering = "pillow"
    interpolation: Interpolation = "bicubic"  # of Pillow's two filterings; tensors are bicubic, samples bilinear
    floored: bool = False  # whether the middle begins at the pixel below, rather than at the nearest
    rgb_first: bool = False  # whether colours are converted before the picture is resized, rather than after it

    def __call__(self, image: Image.Image, resolution: int) -> np.ndarray:
        """A picture of any mode and size as uint8 [r, r, 3].

        Raises:
            ImageError: as `clip_core.preprocess.preprocess`.
        """
        image = in_eight_bits(image, "The picture")
        if self.rgb_first:
            image = _rgb(image)
        size = resized_size(image.size, resolution, Pixels(resize=self.fit))
        left, top = (
            (length - resolution) // 2 if self.floored else centre_box(length, length, resolution)[0] for length in size
        )
        if self.filtering in _MATRICES:
            return _filtered(np.asarray(_rgb(image)), size, (left, top), resolution, self.filtering)
        resized = _PILLOW[self.filtering](image, size, resampling_of(self.interpolation))
        return np.asarray(_rgb(resized.crop((left, top, left + resolution, top + resolution))))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    image = image.copy()
    image.info.pop("transparency", None)  # without effect on the colours, but Pillow warns of it
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"A picture of mode {image.mode} cannot be converted to RGB: {error}.") from error


def _resize_as_pillow_13(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """The picture in another size, along the height first where the height loses more than twice what the width does.

    The rule was found by comparing both orders with the results of Pillow 13.0.0 for 1,500 sizes.
    """
    lost_width, lost_height = image.width - size[0], image.height - size[1]
    if lost_height <= max(0, 2 * lost_width):
        return resize(image, size, resampling)
    mixed = image.convert(PREMULTIPLIED.get(image.mode, image.mode))
    return resize(resize(mixed, (image.width, size[1]), resampling), size, resampling).convert(image.mode)


_PILLOW: dict[str, Callable[[Image.Image, tuple[int, int], Image.Resampling], Image.Image]] = {
    "pillow": resize,
    "pillow 13": _resize_as_pillow_13,
}


def _filtered(
    colours: np.ndarray, size: tuple[int, int], corner: tuple[int, int], resolution: int, filtering: Filtering
) -> np.ndarray:
    """The square at ``corner`` of the picture ``colours`` uint8 [h, w, 3] in another size, (width, height)."""
    matrix_of, rounded = _MATRICES[filtering]
    matrices = []
    for before, after, first in zip(colours.shape[1::-1], size, corner):
        matrix, unit = matrix_of(before, after)
        matrices.append((matrix[first : first + resolution], unit))
    (columns, unit_of_columns), (rows, unit_of_rows) = matrices
    parts = [
        rounded(np.einsum("xw,hwc->hxc", columns, part.astype(np.float64), optimize=True), unit_of_columns)
        for part in np.split(colours, range(ROWS, len(colours), ROWS))
    ]
    filtered = rounded(np.einsum("yh,hxc->yxc", rows, np.concatenate(parts), optimize=True), unit_of_rows)
    return np.rint(filtered).clip(0, 255).astype(np.uint8)


def _bicubic_of_tensors(before: int, after: int) -> tuple[np.ndarray, float]:
    """PyTorch's weights for whole numbers [after, before], and what stands for 1 in them.

    The unit is the largest power of 2 for which every weight fits into 16 bits.
    """
    shares = interpolation(before, after)
    unit, largest = 1, float(shares.max())
    while int(0.5 + largest * 2 * unit) < 2**MOST_BITS:
        unit *= 2
    return np.trunc(shares * unit + np.copysign(0.5, shares)), float(unit)


def _bicubic_of_floats(before: int, after: int) -> tuple[np.ndarray, float]:
    return interpolation(before, after), 1.0


def _linear_samples(before: int, after: int) -> tuple[np.ndarray, float]:
    """The weights of the two values around each place, however much is left out between the places."""
    places = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(before)), 0), 1.0


def _in_eight_bits(sums: np.ndarray, unit: float) -> np.ndarray:
    return np.floor((sums + unit / 2) / unit).clip(0, 255)


def _unrounded(sums: np.ndarray, unit: float) -> np.ndarray:
    return sums / unit


_MATRICES: dict[str, tuple[Callable[[int, int], tuple[np.ndarray, float]], Callable[[np.ndarray, float], np.ndarray]]]
_MATRICES = {
    "tensor": (_bicubic_of_tensors, _in_eight_bits),
    "float tensor": (_bicubic_of_floats, _unrounded),
    "samples": (_linear_samples, _unrounded),
}
