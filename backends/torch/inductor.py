"""Functions as code that inductor, the compiler of ``torch.compile``, makes of them for inference.

Inductor's own linear layer on a CPU is that of `F.linear`. Here it is the one of eager inference, `packs.linear`, which
is faster, and inductor fuses what lies between. Weights are inputs of the code, so that it sees each change of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from backends.torch import packs

Function = TypeVar("Function", bound=Callable[..., Any])
VERSIONS = 64  # of one function that PyTorch keeps: for each width, with a mask and without, one row or more


@cache
def compiled(function: Function) -> Function:
    """``function`` as code for inputs of any size; it is compiled when it is first called with a new kind of them."""
    torch._dynamo.config.cache_size_limit = VERSIONS  # the name that all releases know recompile_limit by
    return torch.compile(function, backend=_compile, dynamic=True)


def advance(block: nn.Module, *inputs: Any) -> torch.Tensor:
    """What a block gives."""
    return block(*inputs)


def _compile(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
    from torch._inductor.compile_fx import compile_fx  # which takes a second

    if not torch.is_autocast_enabled("cpu"):
        for node in graph.graph.nodes:
            if node.target is F.linear and len(node.args) == 3 and packs.takes(*map(_example, node.args)):
                node.target = torch.ops.triclip.linear.default
        graph.recompile()
    return compile_fx(graph, inputs)


def _example(argument: torch.fx.Node | None) -> Any:
    return None if argument is None else argument.meta["example_value"]


torch.library.define("triclip::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.impl("triclip::linear", "CPU", packs.linear)


@torch.library.register_fake("triclip::linear")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
