"""CLIP in Paddle."""

from __future__ import annotations

import sys

from paddle.base import framework

from backends.paddle.model import CLIP
from backends.paddle.tensors import to_array, to_tensor
from backends.paddle.wrapper import CLIPWrapper
from clip_core.backend import Backend, ProcessGroupClass, TrainerClass

__all__ = ["BACKEND", "CLIP", "CLIPWrapper", "to_array", "to_tensor"]

# Paddle computes at once in all threads as long as this lives, which would otherwise end with the thread that has
# imported Paddle.
_DYNAMIC_MODE = getattr(framework.global_var, "_functional_dygraph_context_manager", None)


class Paddle(Backend):
    """Paddle, whose processes its own launcher starts."""

    name = "paddle"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)

    @property
    def Trainer(self) -> TrainerClass:
        from backends.paddle.training import Trainer

        return Trainer

    @property
    def ProcessGroup(self) -> ProcessGroupClass:
        from backends.paddle.process_group import ProcessGroup

        return ProcessGroup

    def launcher(self, processes: int) -> list[str]:
        return [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]


BACKEND = Paddle()
