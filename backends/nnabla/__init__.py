"""CLIP in NNabla."""

from __future__ import annotations

import sys

import nnabla as nn
import nnabla_ext.cpu
import numpy as np

from backends.nnabla.model import CLIP, published
from backends.nnabla.tensors import to_array, to_tensor
from clip_core.backend import Backend, Model, ProcessGroupClass, TrainerClass

__all__ = ["BACKEND", "CLIP", "to_array", "to_tensor"]

# With each look at a variable's array, NNabla imports this extension, and looks for it as a module of its own package
# first, where it is not. The search takes 15 times as long as the look, and Python 3.10 answers it with a KeyError when
# the garbage collector runs another import in the middle of it.
for extension in (nnabla_ext, nnabla_ext.cpu):
    sys.modules.setdefault(f"nnabla.{extension.__name__}", extension)


class NNabla(Backend):
    """NNabla, whose processes MPI starts."""

    name = "nnabla"
    CLIP = CLIP
    to_tensor = staticmethod(to_tensor)
    to_array = staticmethod(to_array)

    def native(self, array: np.ndarray) -> np.ndarray:
        """The array itself: a variable is a part of a graph."""
        return array

    def value_of(self, output: nn.Variable) -> np.ndarray:
        """The value of a variable, which outside of ``auto_forward`` is a graph that nothing has computed yet."""
        output.forward()
        return to_array(output)

    def publish(self, model: Model) -> None:
        """Make the model's parameters those of NNabla's current parameter scope (`CLIP.publish`)."""
        assert isinstance(model, CLIP)
        model.publish()

    def published(self) -> Model | None:
        """The model in NNabla's current parameter scope (`backends.nnabla.model.published`)."""
        return published()

    @property
    def Trainer(self) -> TrainerClass:
        from backends.nnabla.training import Trainer

        return Trainer

    @property
    def ProcessGroup(self) -> ProcessGroupClass:
        from backends.nnabla.process_group import ProcessGroup

        return ProcessGroup

    def launcher(self, processes: int) -> list[str]:
        from backends.nnabla.process_group import mpirun

        return [mpirun(), "-n", str(processes), sys.executable]


BACKEND = NNabla()
