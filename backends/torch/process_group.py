"""The processes of a training run in PyTorch, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist


class ProcessGroup:
    """All processes of the run: NCCL between CUDA devices, gloo between CPUs; one process alone needs neither."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("gloo" if self.device == "cpu" else "nccl")

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """[n, d] of every process -> [size * n, d] in the order of their ranks, without gradient."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def gather_float(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        return self.gather(torch.tensor([value], dtype=torch.float64, device=self.device)).tolist()

    def peak_memory(self) -> int | None:
        """Bytes of the device's own memory that were in use at most; None on a CPU."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated(self.device)

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
