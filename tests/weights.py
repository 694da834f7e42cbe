"""What models and weights are compared by: names, shapes, types and bits."""

from __future__ import annotations

from typing import Any

from clip_core.naming import Weights


def own_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the framework's own parameters and buffers."""
    if model.backend == "numpy":
        return {name: array.shape for name, array in model.weights.items()}
    if model.backend == "nnabla":
        return {name: variable.shape for name, variable in model.named_parameters()}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def trained(model: Any) -> set[str]:
    """The names of the parameters that the framework trains."""
    if model.backend == "nnabla":
        return {name for name, variable in model.named_parameters() if variable.need_grad}
    return {name for name, tensor in model.named_parameters() if not getattr(tensor, "stop_gradient", False)}


def same(found: Weights, expected: Weights) -> bool:
    """Equal names in equal order, equal bits and equal types."""
    return list(found) == list(expected) and all(
        found[name].dtype == array.dtype and found[name].shape == array.shape and (found[name] == array).all()
        for name, array in expected.items()
    )
