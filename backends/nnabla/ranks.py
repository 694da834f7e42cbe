"""The processes of a training run in NNabla on CPUs, as ``mpirun`` starts them, over mpi4py."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from clip_core.errors import BackendMissing

# How the launchers of Open MPI, MPICH and Slurm say how many processes they have started.
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


class Ranks:
    """All processes of the run; one process alone needs no MPI."""

    def __init__(self) -> None:
        self.size, self.rank, self.device = 1, 0, None
        if max(int(os.environ.get(name, 1)) for name in SIZES) > 1:
            try:
                from mpi4py import MPI
            except ImportError as error:
                raise BackendMissing(
                    "Training in NNabla over several processes needs mpi4py and an MPI library; install mpi4py, and "
                    "openmpi-bin from the system's packages."
                ) from error
            self.world = MPI.COMM_WORLD
            self.size, self.rank = self.world.Get_size(), self.world.Get_rank()

    def gather(self, x: np.ndarray) -> np.ndarray:
        """[n, d] of every process -> [size * n, d] in the order of their ranks."""
        everyone = np.empty((self.size * len(x), *x.shape[1:]), x.dtype)
        self.world.Allgather(np.ascontiguousarray(x), everyone)
        return everyone

    def sum(self, arrays: Sequence[np.ndarray]) -> None:
        """Replace each array by its sum over all processes."""
        if self.size == 1:
            return
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        total = np.empty_like(flat)
        self.world.Allreduce(flat, total)
        start = 0
        for array in arrays:
            array[...] = total[start : start + array.size].reshape(array.shape)
            start += array.size

    def numbers(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""
        return [value] if self.size == 1 else self.world.allgather(value)

    def close(self) -> None:
        """MPI ends with the process."""
