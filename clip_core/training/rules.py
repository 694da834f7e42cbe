"""What a recipe means for each parameter: which are trained, how fast, and which are decayed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import log

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.naming import Weights, parameters
from clip_core.training.recipe import Loss, Optimizer, Recipe

# Norms, biases, the class token and the scalars are not drawn towards zero.
DECAYED_KINDS = ("linear", "conv", "projection", "embedding")
SCALARS = ("logit_scale", "logit_bias")  # of neither tower; their gradients come from the loss itself
OPTIONAL_KEYS = ("compile", "fully_sharded")  # of the section training, that PyTorch alone can follow


@dataclass(frozen=True)
class Rule:
    """How one parameter is trained."""

    rate: float  # times the step's learning rate
    decay: float


def rules(architecture: Architecture, recipe: Recipe) -> dict[str, Rule]:
    """The rule of every parameter that is trained, in the order of the table.

    Frozen towers are left out, and a logit bias that the loss does not look at.
    """
    optimizer = recipe.optimizer
    left_out = set(optimizer.frozen) | ({"logit_bias"} if recipe.loss.kind != "sigmoid" else set())
    rates = {
        "image": optimizer.image_learning_rate or optimizer.learning_rate,
        "text": optimizer.text_learning_rate or optimizer.learning_rate,
        "joint": optimizer.learning_rate,
    }
    found = {}
    for parameter in parameters(architecture):
        if parameter.trainable and not {parameter.tower, parameter.name} & left_out:
            decayed = optimizer.decay == "all" or parameter.kind in DECAYED_KINDS
            found[parameter.name] = Rule(
                rate=rates[parameter.tower] / optimizer.learning_rate, decay=optimizer.weight_decay if decayed else 0.0
            )
    return found


def check_trainable(architecture: Architecture, recipe: Recipe, followed: Collection[str]) -> None:
    """Refuse a recipe that the model cannot follow, or not in this framework.

    Args:
        followed: which of `OPTIONAL_KEYS` the framework's trainer can follow.

    Raises:
        ClipError: naming the setting and what the model or the framework lacks.
    """
    for key in OPTIONAL_KEYS:
        if getattr(recipe.training, key) and key not in followed:
            raise ClipError(f"training.{key} works in PyTorch alone; leave it out, or train with --backend torch.")
    if recipe.loss.kind == "sigmoid" and not architecture.logit_bias:
        raise ClipError("The sigmoid loss needs a model with a logit bias; set model.architecture.logit_bias to true.")
    if recipe.training.micro_batch_size is not None and any(
        tower.has_statistics for tower in architecture.towers.values()
    ):
        raise ClipError(
            "training.micro_batch_size does not go with batch normalisation, which looks at the whole batch; "
            "leave it out."
        )


def prepare(weights: Weights, loss: Loss) -> Weights:
    """Initial ``weights`` with the scale and the bias that the recipe's loss starts from."""
    start = {"logit_scale": log(loss.initial_logit_scale), "logit_bias": loss.initial_logit_bias}
    return {
        name: array * 0 + array.dtype.type(start[name]) if name in start else array for name, array in weights.items()
    }


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
