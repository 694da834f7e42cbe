"""Architecture -> the ordered table of its parameters: the one list of names that every framework and file is held to.

The names are those of OpenAI's state dictionary, in its axis order: linear weights are (out, in), and the two
projections are used as ``x @ P``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import log, prod
from typing import Any

import numpy as np

from clip_core.architecture import Architecture, infer
from clip_core.errors import CheckpointError
from clip_core.models import name_of
from clip_core.parameters import Constant, Parameter

Weights = dict[str, np.ndarray]

INITIAL_LOGIT_SCALE = log(1 / 0.07)  # section 2.5 of the paper
INITIAL_LOGIT_BIAS = -10.0  # section 3.2 of "Sigmoid loss for language image pre-training"


@lru_cache(maxsize=64)
def parameters(architecture: Architecture) -> tuple[Parameter, ...]:
    """Every parameter of ``architecture``, in the order of OpenAI's state dictionary."""
    return tuple(_parameters(architecture))


def _parameters(architecture: Architecture) -> Iterator[Parameter]:
    image, text = architecture.mounted("image"), architecture.mounted("text")
    # As in a state dictionary of PyTorch, a module's own tensors come before those of its parts.
    yield from (parameter for parameter in text if "." not in parameter.name)
    yield Parameter("logit_scale", (), "scalar", Constant(INITIAL_LOGIT_SCALE))
    if architecture.logit_bias:
        yield Parameter("logit_bias", (), "scalar", Constant(INITIAL_LOGIT_BIAS))
    yield from image
    yield from (parameter for parameter in text if "." in parameter.name)


def count(architecture: Architecture) -> int:
    """The number of trained scalars."""
    return sum(prod(parameter.shape) for parameter in parameters(architecture) if parameter.trainable)


def faults(architecture: Architecture, weights: Mapping[str, Any]) -> list[str]:
    """Everything in which ``weights`` differ from the table of ``architecture``, each as a short phrase, sorted.

    Missing, extra and misshapen tensors, values that are no arrays, dtypes that are not float32, float16 or float64
    (int64 for a counter), and values, or a logit scale, that are not finite numbers in float32 are all found at once.
    An empty list means that the weights fit.
    """
    expected = {parameter.name: parameter for parameter in parameters(architecture)}
    largest = float(np.finfo(np.float32).max)
    found: list[str] = []
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    found += [f"{name} is missing" for name in missing]
    found += [f"{name} is not a parameter of this model" for name in extra]
    for name in sorted(expected.keys() & weights.keys()):
        parameter, array = expected[name], weights[name]
        if not isinstance(array, (np.ndarray, np.generic)):
            found.append(f"{name} is an object of the type {type(array).__name__}, expected a NumPy array")
        elif array.shape != parameter.shape:
            found.append(f"{name} has shape {array.shape}, expected {parameter.shape}")
        elif parameter.kind == "counter":
            if array.dtype != np.int64:
                found.append(f"{name} has dtype {array.dtype}, expected int64")
        elif array.dtype not in (np.float32, np.float16, np.float64):
            found.append(f"{name} has dtype {array.dtype}, expected float32, float16 or float64")
        elif not (-largest <= float(array.min()) and float(array.max()) <= largest):  # false for NaN, too
            found.append(f"{name} holds NaN or infinity in float32")
        elif name == "logit_scale" and not array.item() <= log(largest):
            found.append(f"logit_scale is {array.item():g}, the logarithm of what is infinite in float32")
    return found


def check(architecture: Architecture, weights: Mapping[str, np.ndarray], source: str) -> None:
    """Refuse weights that do not fit ``architecture`` exactly, reporting every fault at once.

    Args:
        source: the file or thing the weights came from, for the message.

    Raises:
        CheckpointError: listing every fault that `faults` finds and, when they fit another named model, its name.
    """
    found = faults(architecture, weights)
    if not found:
        return
    hint = ""
    try:
        actual = infer({name: getattr(array, "shape", ()) for name, array in weights.items()})
    except CheckpointError:
        pass
    else:
        name = name_of(actual)
        if name is not None and actual != architecture:
            hint = f" The weights look like {name}."
    expected = name_of(architecture) or "the model"
    raise CheckpointError(f"{source} does not fit {expected}: {'; '.join(found)}.{hint}")
