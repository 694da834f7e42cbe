"""What a recipe means for each parameter: which are trained, how fast, and which are decayed."""

from __future__ import annotations

from dataclasses import dataclass

from clip_core.architecture import Architecture
from clip_core.naming import parameters
from clip_core.training.recipe import Recipe

# Norms, biases, the class token and the scalars are not drawn towards zero.
DECAYED_KINDS = ("linear", "conv", "projection", "embedding")


@dataclass(frozen=True)
class ParameterGroup:
    """How the parameters of a group are trained."""

    rate: float  # times the step's learning rate
    decay: float


def parameter_groups(architecture: Architecture, recipe: Recipe) -> dict[str, ParameterGroup]:
    """The group of every parameter that is trained, in the order of the table.

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
            found[parameter.name] = ParameterGroup(
                rate=rates[parameter.tower] / optimizer.learning_rate, decay=optimizer.weight_decay if decayed else 0.0
            )
    return found
