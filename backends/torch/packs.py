"""oneDNN's linear layer, and weights as it multiplies by them fastest.

These are kept from call to call for as long as nobody changes the weights.

The version of a tensor does not tell of all changes: those through ``.data`` are counted elsewhere. Its memory does. A
lazy clone shares the memory of a weight until somebody writes to either, by whatever view; then PyTorch gives what is
written memory of its own. So a weight that still shares the memory of its clone is unchanged. A writer whom PyTorch
does not see, such as NumPy, holds the memory of the weight, which is then not packed; nor is one whose memory is not
PyTorch's own.

oneDNN's operations ask for the memory of what they only read like writers, and PyTorch does not guard what it does
then: threads that ask for the memory of a lazy clone at once crash. So a weight is packed only while no other thread
multiplies by the weight itself, and is no lazy clone when one does.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import NamedTuple

import torch
from torch import nn


class _Use(NamedTuple):
    """A weight as of its last use."""

    weight: weakref.ref[nn.Parameter]
    address: int
    packable: bool = True  # whether it may be packed at the next use
    packed: torch.Tensor | None = None
    clone: torch.Tensor | None = None  # keeps others from getting memory of the same address

    def was_of(self, weight: nn.Parameter) -> bool:
        """Whether it is of this weight; one that came later may have the identity of one that is gone."""
        return self.weight() is weight


_uses: dict[int, _Use] = {}  # by the identities of weights
_reads: Counter[int] = Counter()  # threads that multiply by a weight itself now, by its identity
_lock = threading.Lock()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x`` [..., in] times a weight [out, in], plus the bias: [..., out], by oneDNN without gradient.

    They are such as it `takes`. In bf16 the weight is packed if it can be; in float32 that would gain less, and take as
    much memory as the model.
    """
    if not (x.dtype == torch.bfloat16 and type(weight) is nn.Parameter and AVAILABLE):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    with _lock:
        values = packed(weight)
        if values is weight:
            _reads[id(weight)] += 1
            weight.data_ptr()  # for which PyTorch ends a lazy clone
    try:
        return torch.ops.mkldnn._linear_pointwise(x, values, bias, "none", [], "")
    finally:
        if values is weight:
            with _lock:
                _reads[id(weight)] -= 1
                if not _reads[id(weight)]:
                    del _reads[id(weight)]


def takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `linear` computes with these: dense tensors on the CPU, all of one of `DTYPES`.

    A bias has to be a whole vector: oneDNN looks neither at its strides nor at whether it has a number for each output.
    """
    return (
        x.dtype == weight.dtype
        and x.dtype in DTYPES
        and x.device == weight.device == CPU
        and x.layout == weight.layout == torch.strided
        and (
            bias is None
            or ((bias.shape, bias.dtype, bias.device) == (weight.shape[:1], weight.dtype, CPU) and bias.is_contiguous())
        )
    )


def packed(weight: nn.Parameter) -> torch.Tensor:
    """A weight [out, in] on the CPU as oneDNN multiplies by it fastest, from its second use on; before that, itself."""
    key, address = id(weight), torch._C._data_address(weight)
    use = _uses.get(key)
    if use is None or not use.was_of(weight) or use.address != address or not weight.is_contiguous():
        _uses[key] = _Use(weakref.ref(weight, lambda _: forget(key)), address)
        return weight
    if use.packed is not None:
        return use.packed if use.packed.shape == weight.shape else weight
    values = weight.detach()
    if not use.packable or key in _reads or torch._C._storage_Use_Count(values.untyped_storage()._cdata) > ALONE:
        return weight
    try:
        torch._lazy_clone(values)
    except RuntimeError:  # the memory is not PyTorch's own
        _uses[key] = use._replace(packable=False)
        return weight
    result: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(values)  # which asks for the memory like a writer
    clone = torch._lazy_clone(values)
    _uses[key] = use._replace(address=torch._C._data_address(weight), packed=result, clone=clone)
    return result


def forget(key: int) -> None:
    """Free what is kept of the weight with this identity, if anything is."""
    _uses.pop(key, None)


CPU = torch.device("cpu")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
DTYPES: set[torch.dtype] = set()  # what oneDNN's linear layer computes in, on this processor
if HAS_ONEDNN:
    DTYPES.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        DTYPES.add(torch.bfloat16)
ALONE = 3  # who hold the memory of a weight that nobody else holds: the weight, a view of it, and the storage asked
AVAILABLE = (
    HAS_ONEDNN
    and all(hasattr(torch._C, name) for name in ("_data_address", "_storage_Use_Count"))
    and hasattr(torch, "_lazy_clone")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)
