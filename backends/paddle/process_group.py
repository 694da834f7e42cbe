"""The processes of a training run in Paddle, as ``python -m paddle.distributed.launch`` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import paddle
import paddle.distributed as dist


class ProcessGroup:
    """All processes of the run: NCCL between GPUs, gloo between CPUs; one process alone needs neither."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("PADDLE_TRAINERS_NUM", 1))
        self.rank = int(os.environ.get("PADDLE_TRAINER_ID", 0))
        self.device = None  # the launcher sets the current device
        if self.size > 1 and not dist.is_initialized():
            dist.init_parallel_env()

    def gather(self, x: paddle.Tensor) -> paddle.Tensor:
        """[n, d] of every process -> [size * n, d] in the order of their ranks, without gradient."""
        parts: list[paddle.Tensor] = []
        dist.all_gather(parts, x.detach())
        return paddle.concat(parts)

    def sum(self, tensors: Sequence[paddle.Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size == 1:
            return
        flat = paddle.concat([tensor.reshape([-1]) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.size for tensor in tensors])):
            tensor.set_value(part.reshape(tensor.shape))

    def gather_float(self, value: float) -> list[float]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        return self.gather(paddle.to_tensor([value], "float64")).tolist()

    def peak_memory(self) -> int | None:
        """Bytes of the device's own memory that were in use at most; None on a CPU."""
        return None if paddle.get_device() == "cpu" else paddle.device.cuda.max_memory_allocated()

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
