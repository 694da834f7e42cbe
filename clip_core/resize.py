"""A model at another resolution: what its image tower calls its positions is interpolated, all else stays as it is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from operator import index

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.naming import Weights

MAX_RESOLUTION = 4096  # whose positions take about a gigabyte while they are made


def at_resolution(architecture: Architecture, weights: Weights, resolution: int) -> tuple[Architecture, Weights]:
    """A model for square pictures of ``resolution`` pixels a side, and its weights, which share what has not changed.

    Args:
        weights: all of the model's, in canonical names and axis order.

    Raises:
        ClipError: the image tower cannot be built at this resolution, or has no positions that can be interpolated.
    """
    image = architecture.image
    with suppress(TypeError):  # of what is no whole number, which `check` says
        resolution = index(resolution)  # a whole number of NumPy as Python's
    if resolution == image.resolution:
        return architecture, weights
    if type(resolution) is int and resolution > MAX_RESOLUTION:
        raise ClipError(f"The resolution {resolution} is too large; give at most {MAX_RESOLUTION}.")
    result = replace(architecture, image=replace(image, resolution=resolution))
    result.check()
    before, after = image.position_grids(), result.image.position_grids()
    resized = {}
    for name, (old, leading) in before.items():
        name_in_model = architecture.prefix("image") + name
        resized[name_in_model] = resize_positions(weights[name_in_model], old, after[name][0], leading)
    return result, {name: resized.get(name, array) for name, array in weights.items()}


def resize_positions(positions: np.ndarray, old: int, new: int, leading: int) -> np.ndarray:
    """The positions of ``old`` x ``old`` patches as those of ``new`` x ``new``, in the same dtype.

    It is the bicubic interpolation with antialiasing by which open_clip changes the resolution of a model.

    Args:
        positions: [leading + old ** 2, width], the patches row by row.
        leading: the tokens in front of the patches, whose positions are kept.
    """
    grid = positions[leading:].reshape(old, old, -1).astype(np.float64)
    matrix = interpolation(old, new)
    resized = np.einsum("yi,xj,ijw->yxw", matrix, matrix, grid, optimize=True).reshape(new * new, -1)
    return np.concatenate([positions[:leading], resized.astype(positions.dtype)])


def interpolation(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] that interpolates along one axis; cells have their values in their middle."""
    scale = old / new
    widening = max(scale, 1.0)  # of the filter, so that it covers all cells that become one
    middles = scale * (np.arange(new) + 0.5)
    distances = np.abs(np.arange(old) + 0.5 - middles[:, None]) / widening
    # Keys' cubic convolution with a = -1/2. At the edges the cells that are there share the whole weight.
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    weights = np.where(distances < 1, near, np.where(distances < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)
