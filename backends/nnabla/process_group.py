"""The processes of a training run in NNabla, as ``mpirun`` starts them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nnabla as nn
import nnabla.functions as F
import numpy as np
from nnabla.ext_utils import get_extension_context, import_extension_module

from clip_core.errors import BackendMissing, ClipError
from clip_core.installation import requirement

# How the launchers of Open MPI, MPICH and Slurm say how many processes they have started.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class ProcessGroup:
    """All processes of the run: NNabla's communicator between GPUs, mpi4py between CPUs; one alone needs neither."""

    def __init__(self) -> None:
        self.size, self.rank = 1, 0
        self.device = "cuda:0" if has_gpu() else None  # the current context
        if max(int(os.environ.get(name, 1)) for name in SIZES) > 1:
            self.world: Any
            if self.device is None:
                self.world = CPUCommunicator()
            else:
                self.world = gpu_communicator()
                self.device = f"cuda:{self.world.local_rank}"
            self.size, self.rank = self.world.size, self.world.rank

    def gather(self, x: nn.NdArray) -> nn.NdArray:
        """[n, d] of every process -> [size * n, d] in the order of their ranks, without gradient."""
        parts = [nn.NdArray(x.shape) for _ in range(self.size)]
        self.world.all_gather(x, parts)
        return F.concatenate(*parts, axis=0)

    def sum(self, arrays: Sequence[nn.NdArray]) -> None:
        """Replace each array by its sum over all processes."""
        if self.size > 1:
            self.world.all_reduce(list(arrays), division=False, inplace=False)

    def gather_float(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        # Arrays travel in float32, which holds each 16 bits of a float64 exactly.
        words = np.array([[value]], np.float64).view(np.uint16).astype(np.float32)
        return self.gather(nn.NdArray.from_numpy_array(words)).data.astype(np.uint16).view(np.float64)[:, 0].tolist()

    def peak_memory(self) -> int | None:
        """None: NNabla does not count."""
        return None

    def close(self) -> None:
        """MPI ends with the process."""


class CPUCommunicator:
    """What training uses of NNabla's communicator, over mpi4py: NNabla has none between CPUs.

    Raises:
        BackendMissing: there is no mpi4py.
    """

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise BackendMissing(
                "Training in NNabla over several processes needs mpi4py and an MPI library; install mpi4py, and "
                "openmpi-bin from the system's packages."
            ) from error
        self.in_place, self.processes = MPI.IN_PLACE, MPI.COMM_WORLD
        self.size, self.rank = self.processes.Get_size(), self.processes.Get_rank()

    def all_gather(self, array: nn.NdArray, everyone: list[nn.NdArray]) -> None:
        """Put the array of each process into one of ``everyone``, in the order of their ranks."""
        gathered = np.empty((self.size, *array.shape), np.float32)
        self.processes.Allgather(array.get_data("r", np.float32), gathered)
        for target, values in zip(everyone, gathered):
            target.data = values

    def all_reduce(self, arrays: list[nn.NdArray], division: bool, inplace: bool) -> None:
        """Replace each array by its sum over all processes; the options are always those of `ProcessGroup.sum`."""
        for array in arrays:
            self.processes.Allreduce(self.in_place, array.get_data("rw", np.float32))


def has_gpu() -> bool:
    """Whether NNabla's extension for GPUs is installed and finds one."""
    if importlib.util.find_spec("nnabla_ext.cudnn") is None:
        return False
    try:
        return len(import_extension_module("cudnn").get_devices()) > 0
    except (ImportError, RuntimeError):  # no driver, or no CUDA library; NNabla logs which
        return False


def gpu_communicator() -> Any:
    """NNabla's communicator over all processes; it gives each process the GPU of its rank on the machine.

    Raises:
        ClipError: a process has no GPU of its own, or NNabla finds no Open MPI.
    """
    from nnabla.communicators import MultiProcessDataParallelCommunicator  # looks for MPI and warns without it

    try:
        communicator = MultiProcessDataParallelCommunicator(get_extension_context("cudnn"))
        communicator.init()
    except RuntimeError as error:
        raise ClipError(
            f"NNabla cannot connect the processes over their GPUs ({str(error).splitlines()[-1]}); start at most one "
            "process for each GPU, and install Open MPI, with OMPI_HOME naming its folder."
        ) from error
    return communicator


def mpirun() -> str:
    """The launcher of MPI: the system's, or else that of the package ``openmpi``, which is beside the interpreter.

    Raises:
        ClipError: there is neither.
    """
    places = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    found = shutil.which("mpirun", path=os.pathsep.join(places))
    if found is None:
        raise ClipError(
            f"NNabla's processes are started by mpirun, which is neither on the PATH nor in {places[1]}; "
            f"run: pip install {requirement('mpi')}."
        )
    return found
