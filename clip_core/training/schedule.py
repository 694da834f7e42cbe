"""The learning rate of each step."""

from __future__ import annotations

from math import cos, pi

from clip_core.training.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate of step ``step`` of ``total``, counted from 1: a linear warm-up, then half a cosine.

    The last step of the warm-up has the highest rate and the step after the recipe's last would have the final one.
    """
    highest, schedule = recipe.optimizer.learning_rate, recipe.schedule
    if step <= schedule.warm_up_steps:
        return highest * step / schedule.warm_up_steps
    done = (step - schedule.warm_up_steps) / (total + 1 - schedule.warm_up_steps)
    return highest * (schedule.final_share + (1 - schedule.final_share) * (1 + cos(pi * done)) / 2)
