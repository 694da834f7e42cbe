"""CLIP in PyTorch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from backends.torch.model import CLIP
from backends.torch.tensors import to_array, to_tensor
from clip_core.backend import Backend, ProcessGroupClass, TrainerClass
from clip_core.pixels import Pixels

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]


class PyTorch(Backend):
    """PyTorch, whose processes torchrun starts."""

    name = "torch"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)

    @property
    def compile(self) -> Callable[[Any], None]:
        from backends.torch.compilation import compile_inference

        return compile_inference

    @property
    def Trainer(self) -> TrainerClass:
        from backends.torch.training import Trainer

        return Trainer

    @property
    def ProcessGroup(self) -> ProcessGroupClass:
        from backends.torch.process_group import ProcessGroup

        return ProcessGroup

    def preprocessing_steps(self, resolution: int, wanted: Pixels) -> list[Callable[[Any], Any]]:
        from backends.torch.transforms import steps

        return steps(resolution, wanted)

    def launcher(self, processes: int) -> list[str]:
        options = ["--standalone", "--nproc_per_node", str(processes)]
        return [sys.executable, "-m", "torch.distributed.run", *options]

    def exit(self, code: int) -> None:
        """Exit without the interpreter's shutdown: threads of gloo outlive the group, and sometimes abort in it."""
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


BACKEND = PyTorch()
