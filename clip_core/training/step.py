"""The arithmetic of a training step that is the same in every framework."""

from __future__ import annotations

from math import log

from clip_core.training.recipe import Optimizer

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
