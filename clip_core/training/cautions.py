"""What a recipe may not mean: settings that can be followed, and that have no effect or not the usual one."""

from __future__ import annotations

from clip_core.data.augmentation import Augmentation
from clip_core.data.settings import Section
from clip_core.training.recipe import Loss, Recipe


def cautions(recipe: Recipe, total: int, processes: int = 1) -> list[str]:
    """A sentence for each such setting.

    Args:
        total: steps of the whole run.
        processes: of the run.
    """
    return [
        *_schedule(recipe, total),
        *_optimizer(recipe),
        *_loss(recipe),
        *_augmentation(recipe.data.augmentation),
        *_batch_norm(recipe, processes),
    ]


def _batch_norm(recipe: Recipe, processes: int) -> list[str]:
    if processes == 1:
        return []
    return [
        f"The batch normalisation of the {place} tower looks at the {recipe.data.batch_size // processes} examples of "
        f"one process rather than at all {recipe.data.batch_size}, so the numbers are not those of one process."
        for place, tower in recipe.model.build().towers.items()
        if tower.has_statistics
    ]


def _schedule(recipe: Recipe, total: int) -> list[str]:
    steps = recipe.schedule.warm_up_steps
    if steps <= total:
        return []
    return [
        f"schedule.warm_up_steps is {steps:,} and the run has {total:,} steps, so the learning rate does not reach "
        "optimizer.learning_rate."
    ]


def _optimizer(recipe: Recipe) -> list[str]:
    optimizer = recipe.optimizer
    found = [
        f"optimizer.{tower}_learning_rate has no effect: optimizer.frozen names the {tower} tower."
        for tower in sorted(set(optimizer.frozen))
        if getattr(optimizer, f"{tower}_learning_rate") is not None
    ]
    found += [
        f"regularization.{tower}.{key} has no effect: optimizer.frozen names the {tower} tower."
        for tower in sorted(set(optimizer.frozen))
        for key, rate in getattr(recipe.regularization, tower)
        if rate
    ]
    if set(optimizer.frozen) == {"image", "text"}:
        found.append("optimizer.frozen names both towers, so that nothing but the scale of the logits is trained.")
    low, high = optimizer.logit_scale_bounds
    if not low <= recipe.loss.initial_logit_scale <= high:
        found.append(
            f"loss.initial_logit_scale is {recipe.loss.initial_logit_scale:g}, and the first step moves it into "
            f"optimizer.logit_scale_bounds, {low:g} to {high:g}."
        )
    return found


def _loss(recipe: Recipe) -> list[str]:
    other = {"softmax": ("initial_logit_bias", "sigmoid"), "sigmoid": ("reduction", "softmax")}
    key, kind = other[recipe.loss.kind]
    found = []
    if key in _changed(recipe.loss, Loss()):
        found.append(f"loss.{key} has no effect: it belongs to the {kind} loss.")
    evaluation = recipe.evaluation
    if evaluation is not None and evaluation.retrieval is not None and evaluation.batch_size == 1:
        found.append(
            "evaluation.batch_size is 1, so that validation_loss is of pairs alone, with no others to tell from."
        )
    return found


def _augmentation(augmentation: Augmentation) -> list[str]:
    changed = _changed(augmentation, Augmentation())
    found = [
        f"data.augmentation.{key} has no effect: it belongs to data.augmentation.crop: resized."
        for key in ("scale", "ratio")
        if key in changed and augmentation.crop != "resized"
    ]
    if "interpolation" in changed and not augmentation.random:
        found.append("data.augmentation.interpolation has no effect: it belongs to a random or resized crop.")
    return found


def _changed(section: Section, default: Section) -> set[str]:
    """The keys that have not their default value."""
    return {key for key, value in section if value != getattr(default, key)}
