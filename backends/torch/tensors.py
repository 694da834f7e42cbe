"""Arrays as tensors of PyTorch and back, and devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch

from clip_core.errors import ClipError

T = TypeVar("T")


class unless_set(Generic[T]):
    """A property that gives way to an attribute of its name, which code for a class without that property may set."""

    def __init__(self, compute: Callable[..., T]) -> None:
        self.compute = compute

    def __get__(self, instance: object, owner: type) -> T:
        return self.compute(instance)


def drawn_seed() -> int:
    """A seed for other generators, from PyTorch's own."""
    return int(torch.randint(2**31, (), device="cpu"))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """A NumPy array as a tensor on the CPU."""
    return torch.tensor(array)


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) NumPy array."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def device_of(device: str | torch.device | None) -> torch.device:
    """``device``, by default the first CUDA device if there is one, else the CPU.

    Raises:
        ClipError: this build of PyTorch, or this machine, has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ClipError(f"PyTorch cannot use the device {device!r} here: {str(error).splitlines()[0]}.") from error
