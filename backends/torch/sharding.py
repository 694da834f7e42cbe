"""Weights sharded over the processes of a run: each block is gathered only while it is computed (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from clip_core.errors import ClipError


def shard(modules: Iterable[nn.Module], device: torch.device, processes: int) -> None:
    """Leave each process an equal share of the rows of every weight of ``modules``.

    A module's weights are gathered before it computes and forgotten after it. Those of a module that comes earlier are
    gathered apart from those of the later one that it is in.

    Raises:
        ClipError: this PyTorch is too old for it.
    """
    if torch.__version__ < "2.9":
        raise ClipError(
            f"training.fully_sharded needs PyTorch 2.9 or newer, and this is {torch.__version__}; update it."
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in modules:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        # Each process computes its share of the gradient of the whole batch, so gradients add up.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is a DTensor, found out without importing that class, which takes most of a second."""
    return hasattr(tensor, "full_tensor")


def part_of(tensor: torch.Tensor, whole: torch.Tensor | None = None) -> torch.Tensor:
    """The shard of ``tensor`` on this process, in the same memory; or the same rows of ``whole``, of the same shape."""
    if not is_sharded(tensor):
        return tensor if whole is None else whole
    if whole is None:
        return tensor.detach().to_local()
    rows = -(-len(whole) // tensor.device_mesh.size())
    start = rows * tensor.device_mesh.get_local_rank()
    return whole[start : start + rows]


def whole_of(tensor: torch.Tensor, part: torch.Tensor | None = None) -> torch.Tensor:
    """All of ``tensor``; or of what each process has a ``part`` [its rows, ...] of. All processes call it together."""
    if not is_sharded(tensor):
        return tensor if part is None else part
    if part is not None:
        from torch.distributed.tensor import DTensor

        tensor = DTensor.from_local(
            part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
    return tensor.full_tensor()
