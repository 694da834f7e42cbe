"""The arithmetic of a training step that is the same in every framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log
from typing import Protocol

from clip_core.training.noise import Noise
from clip_core.training.recipe import Optimizer, Recipe

TOWERS = ("image", "text")  # in the order of their features
SCALARS = ("logit_scale", "logit_bias")  # of neither tower; their gradients come from the loss itself


def log_scale_bounds(optimizer: Optimizer) -> tuple[float, float]:
    """Between which values the logarithm of the logit scale is kept."""
    low, high = optimizer.logit_scale_bounds
    return log(low), log(high)


def clip_factor(norm: float, limit: float | None) -> float:
    """What gradients of this norm are multiplied by, so that their norm is at most ``limit``."""
    return 1.0 if limit is None else min(limit / (norm + 1e-6), 1.0)


def chunks(count: int, size: int | None) -> list[slice]:
    """``count`` rows in consecutive parts of at most ``size``; one part when there is no size."""
    size = size or max(count, 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class Noisy(Protocol):
    """A block of a tower, in any framework."""

    noise: Noise | None


def set_noise(blocks: Mapping[str, Iterable[Noisy]], recipe: Recipe, step: int, first: int) -> None:
    """Give each block its noise for the examples from ``first`` on, counted over all processes.

    Args:
        blocks: those of the image tower and of the text tower. A frozen tower has no noise.
        step: the number of updates so far.
    """
    for index, place in enumerate(TOWERS):
        rates = getattr(recipe.regularization, place)
        wanted = (rates.dropout or rates.drop_path) and place not in recipe.optimizer.frozen
        members = list(blocks[place])
        for number, block in enumerate(members):
            drop_path = rates.drop_path * number / max(len(members) - 1, 1)
            block.noise = (
                Noise(rates.dropout, drop_path, recipe.training.seed, step, index, number, first) if wanted else None
            )


def clear_noise(blocks: Mapping[str, Iterable[Noisy]]) -> None:
    """Leave no noise behind for who uses the model after a step."""
    for members in blocks.values():
        for block in members:
            block.noise = None
