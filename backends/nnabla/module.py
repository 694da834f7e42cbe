"""Modules that own their parameters, so that several models live in one process without NNabla's global scope."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import nnabla as nn
import numpy as np


def empty(*shape: int) -> nn.Variable:
    """A trainable parameter whose value is about to be set."""
    return nn.Variable(shape, need_grad=True)


def buffer(value: np.ndarray) -> nn.Variable:
    """A tensor that belongs to the parameters but is not trained."""
    return nn.Variable.from_numpy_array(value, need_grad=False)


SWITCHES = RLock()
"""Held by who sets NNabla's ``auto_forward``, ``no_grad`` or context, of which there is one each for all threads."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a Python function raised while NNabla computed, without the SystemErrors that NNabla wraps it in."""
    try:
        yield
    except SystemError as error:
        cause: BaseException = error
        while isinstance(cause, SystemError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


class Module:
    """A part of a network: its variables are parameters, its modules and lists of modules are parts of their own."""

    training = False

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, nn.Variable]]:
        """The parameters and buffers as (name, variable), named by their path of attributes and indices."""
        for name, value in self.own_parameters():
            yield prefix + name, value
        for name, part in self._parts():
            yield from part.named_parameters(f"{prefix}{name}.")

    def own_parameters(self) -> Iterator[tuple[str, nn.Variable]]:
        """The parameters and buffers that are no part's."""
        for name, value in vars(self).items():
            if isinstance(value, nn.Variable):
                yield name, value

    def children(self) -> Iterator[tuple[str, Module | list[Module]]]:
        """The parts, and lists of parts, by their attributes."""
        for name, value in vars(self).items():
            if isinstance(value, Module | list):
                yield name, value

    def modules(self) -> Iterator[Module]:
        """This module and all of its parts, theirs included."""
        return (module for _, module in self.named_modules())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """`modules` as (name, module), named by their path of attributes and indices; this one by ``prefix``."""
        yield prefix, self
        for name, part in self._parts():
            yield from part.named_modules(f"{prefix}.{name}" if prefix else name)

    def train(self, mode: bool = True) -> None:
        """Let batch normalisations use the statistics of the batch, and move their running ones."""
        for module in self.modules():
            module.training = mode

    def eval(self) -> None:
        """Let batch normalisations use their running statistics."""
        self.train(False)

    def _parts(self) -> Iterator[tuple[str, Module]]:
        for name, value in self.children():
            if isinstance(value, Module):
                yield name, value
            else:
                yield from ((f"{name}.{index}", part) for index, part in enumerate(value))
