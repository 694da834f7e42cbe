"""Arrays as tensors of Paddle and back, parameters, and devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddle.base import initializer

from clip_core.chunks import threads
from clip_core.errors import ClipError

PROCESSOR = Path("/proc/cpuinfo")


def to_tensor(array: np.ndarray) -> paddle.Tensor:
    """A NumPy array as a tensor on the CPU."""
    return paddle.to_tensor(array, place=paddle.CPUPlace())


def to_array(tensor: paddle.Tensor) -> np.ndarray:
    """A tensor as a float32 (or integer) NumPy array."""
    tensor = tensor.detach()
    return (tensor.astype("float32") if tensor.is_floating_point() else tensor).numpy()


@paddle.jit.not_to_static  # which would record the comparison
def size(x: paddle.Tensor, axis: int) -> int | paddle.Tensor:
    """The length of an axis: a number, or where a graph is recorded that leaves it open, a tensor."""
    length = x.shape[axis]
    return length if length >= 0 else paddle.shape(x)[axis]


def use_device(device: str | None) -> None:
    """Make ``device`` Paddle's current one (``cuda`` means ``gpu``), and let the CPU use all that it has.

    Raises:
        ClipError: this build of Paddle has no such device.
    """
    paddle.core.set_num_threads(threads())  # left alone, Paddle uses one
    # The MKL in Paddle's wheels takes AMD's processors for the oldest ones, at less than half of their speed.
    processor = PROCESSOR.read_text() if PROCESSOR.is_file() else ""
    if "AuthenticAMD" in processor and "avx2" in processor:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")  # has AVX2; read at the first matrix product
    if device is None:
        return
    try:
        paddle.set_device(str(device).replace("cuda", "gpu"))
    except (ValueError, OSError, RuntimeError) as error:
        raise ClipError(
            f"Paddle cannot use the device {device!r} here: {str(error).strip().splitlines()[-1]}."
        ) from error


@contextmanager
def constant_initial_values() -> Iterator[None]:
    """Keep Paddle from drawing random numbers for values that are about to be overwritten."""
    users = initializer._global_weight_initializer(), initializer._global_bias_initializer()
    nn.initializer.set_global_initializer(nn.initializer.Constant(), nn.initializer.Constant())
    try:
        yield
    finally:
        nn.initializer.set_global_initializer(*users)


def empty(*shape: int) -> paddle.Tensor:
    """A trainable parameter whose value is about to be set."""
    return paddle.create_parameter(list(shape), "float32", default_initializer=nn.initializer.Constant())
