"""Arrays as tensors of Paddle and back, parameters, and devices."""

from __future__ import annotations

import ctypes
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
from clip_core.processor import choose_mkl_kernels

OPENMP = Path(paddle.__file__).parent / "libs" / "libiomp5.so"  # Intel's, which wheels for Linux on x86 have


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
    choose_mkl_kernels()
    _let_threads_sleep()
    if device is None:
        return
    try:
        paddle.set_device(str(device).replace("cuda", "gpu"))
    except (ValueError, OSError, RuntimeError) as error:
        raise ClipError(
            f"Paddle cannot use the device {device!r} here: {str(error).strip().splitlines()[-1]}."
        ) from error


def _let_threads_sleep() -> None:
    """Let this thread's helpers in Paddle's OpenMP sleep a millisecond after their work, unless the user chose a time.

    By default they keep their cores busy for 200 more milliseconds, in which PyTorch and NumPy do not get them.
    """
    if "KMP_BLOCKTIME" not in os.environ and "OMP_WAIT_POLICY" not in os.environ and OPENMP.is_file():
        ctypes.CDLL(str(OPENMP)).kmp_set_blocktime(1)


@contextmanager
def no_initial_values() -> Iterator[None]:
    """Let parameters have no values, and no memory, until they are set."""
    with _initial_values(NoValues()):
        yield


@contextmanager
def constant_initial_values() -> Iterator[None]:
    """Keep Paddle from drawing random numbers for values that are about to be overwritten."""
    with _initial_values(nn.initializer.Constant()):
        yield


class NoValues(nn.initializer.Initializer):
    """Leaves a parameter as it is: without memory."""

    def forward(self, var: paddle.Tensor, block: object = None) -> paddle.Tensor:
        return var


@contextmanager
def _initial_values(chosen: nn.initializer.Initializer) -> Iterator[None]:
    """Give this initial value to all parameters that are created, whatever the user has set."""
    users = initializer._global_weight_initializer(), initializer._global_bias_initializer()
    nn.initializer.set_global_initializer(chosen, chosen)
    try:
        yield
    finally:
        nn.initializer.set_global_initializer(*users)


def empty(*shape: int) -> paddle.Tensor:
    """A trainable parameter whose value is about to be set."""
    return paddle.create_parameter(list(shape), "float32", default_initializer=nn.initializer.Constant())
