"""The arithmetic of a training step that is the same in every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Protocol

from clip_core.noise import Noise, PatchNoise
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
    """A block of a tower, or what leaves out patches, in any framework."""

    noise: Any


def set_noise(noisy: Mapping[str, Sequence[Noisy]], recipe: Recipe, step: int, first: int) -> None:
    """Give everything that drops something its noise for the examples from ``first`` on, counted over all processes.

    Args:
        noisy: the blocks of the ``image`` tower and of the ``text`` tower, and what leaves out ``patches``. A frozen
            tower has no noise.
        step: the number of updates so far.
    """
    clear_noise(noisy)
    seed = recipe.training.seed
    for tower, place in enumerate(TOWERS):
        rates = getattr(recipe.regularization, place)
        if place in recipe.optimizer.frozen or not (rates.dropout or rates.drop_path):
            continue
        last = max(len(noisy[place]) - 1, 1)
        for number, block in enumerate(noisy[place]):
            block.noise = Noise(rates.dropout, rates.drop_path * number / last, seed, step, tower, number, first)
    share = recipe.regularization.image.patch_dropout
    if share and "image" not in recipe.optimizer.frozen:
        for patches in noisy["patches"]:
            patches.noise = PatchNoise(share, seed, step, first)


def clear_noise(noisy: Mapping[str, Sequence[Noisy]]) -> None:
    """Leave no noise behind for who uses the model after a step."""
    for members in noisy.values():
        for member in members:
            member.noise = None
