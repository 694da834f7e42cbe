"""What a model needs to be trained by a recipe: settings that it can follow, and the scale its loss starts from."""

from __future__ import annotations

from collections.abc import Collection
from math import log

from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.naming import Weights
from clip_core.training.recipe import Loss, Recipe

OPTIONAL_KEYS = ("compile", "fully_sharded")  # of the section training, that PyTorch alone can follow


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
    for place, tower in architecture.towers.items():
        for key, rate in getattr(recipe.regularization, place):
            if rate and key not in tower.noises:
                raise ClipError(f"regularization.{place}.{key} does not go with a {tower.title}; leave it out.")
            if rate and recipe.training.compile:
                raise ClipError(
                    f"training.compile does not go with regularization.{place}.{key}; leave one of them out."
                )
    if recipe.training.micro_batch_size is not None and any(
        tower.has_statistics for tower in architecture.towers.values()
    ):
        raise ClipError(
            "training.micro_batch_size does not go with batch normalisation, which looks at the whole batch; "
            "leave it out."
        )


def with_initial_scale(weights: Weights, loss: Loss) -> Weights:
    """Initial ``weights`` with the scale and the bias that the recipe's loss starts from; softmax sees no bias."""
    bias = loss.initial_logit_bias if loss.kind == "sigmoid" else 0.0
    start = {"logit_scale": log(loss.initial_logit_scale), "logit_bias": bias}
    return {
        name: array * 0 + array.dtype.type(start[name]) if name in start else array for name, array in weights.items()
    }
