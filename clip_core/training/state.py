"""What a trainer's state is made of, the same for every framework: weights, moments and average by canonical name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.naming import faults, parameters
from clip_core.parameters import Shape

LOSS_SCALING = ("loss_scale", "steps_since_overflow")
COUNTERS = ("updates", "steps_since_overflow")


def check_state(
    architecture: Architecture,
    trained: Collection[str],
    state: Mapping[str, np.ndarray],
    averaged: bool,
    scaled: bool,
) -> None:
    """Refuse a training state that does not fit ``architecture`` and the recipe exactly.

    Args:
        trained: the names of the parameters that are trained, which have moments.
        averaged: whether there is a moving average of them.
        scaled: whether the loss is scaled.

    Raises:
        CheckpointError: listing every fault.
    """
    mismatch = _of_another_recipe(state, averaged, scaled)
    if mismatch is not None:
        raise CheckpointError(f"The training state {mismatch}; resume with the recipe that it was made with.")
    weights = {name[len("weights/") :]: array for name, array in state.items() if name.startswith("weights/")}
    found = [f"weights/{fault}" for fault in faults(architecture, weights)]
    shapes: dict[str, Shape] = {
        f"{kind}/{parameter.name}": parameter.shape
        for kind in ("first_moment", "second_moment", *(["average"] if averaged else []))
        for parameter in parameters(architecture)
        if parameter.name in trained
    }
    shapes |= dict.fromkeys(("updates", *(LOSS_SCALING if scaled else ())), ())
    given = {name: array for name, array in state.items() if not name.startswith("weights/")}
    found += [f"{name} is missing" for name in sorted(shapes.keys() - given.keys())]
    found += [f"{name} is not part of a training state" for name in sorted(given.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & given.keys()):
        array, dtype = given[name], np.int64 if name in COUNTERS else np.float32
        if array.shape != shapes[name] or array.dtype != dtype:
            found.append(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shapes[name]}")
        elif not np.isfinite(array).all():
            found.append(f"{name} holds NaN or infinity")
        elif name in COUNTERS and array < 0:
            found.append(f"{name} is {array}, expected at least 0")
        elif name == "loss_scale" and array < 1:
            found.append(f"loss_scale is {array}, expected at least 1")
    if found:
        raise CheckpointError(f"The training state does not fit the model: {'; '.join(found)}.")


def _of_another_recipe(state: Mapping[str, np.ndarray], averaged: bool, scaled: bool) -> str | None:
    """In which option the recipe of ``state`` was another, if it was."""
    has_average, has_scale = any(name.startswith("average/") for name in state), "loss_scale" in state
    if averaged and not has_average:
        return "has no moving average, which optimizer.ema_decay asks for"
    if has_average and not averaged:
        return "has a moving average, and the recipe has no optimizer.ema_decay"
    if scaled and not has_scale:
        return "has no loss scale, which training.precision fp16 asks for"
    if has_scale and not scaled:
        return "has a loss scale, which belongs to training.precision fp16 alone"
    return None
