"""Read a written file back and compare it with the intended content, before the file is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clip_core.buffers import Buffer, Tensor, equal, release
from clip_core.errors import CheckpointError
from clip_core.naming import Weights


def compare(
    path: Path,
    expected: Mapping[str, Tensor],
    manifest: str,
    found: Weights,
    found_manifest: str | None,
    buffer: Buffer,
) -> None:
    """Compare every tensor read back bit for bit; the memory of ``buffer``, the file's, is released piece by piece.

    Raises:
        CheckpointError: the manifest, a name, a dtype, a shape or one bit differs.
    """
    if found_manifest != manifest:
        raise _refusal(path, "its manifest")
    if differing := sorted(expected.keys() ^ found.keys()):
        raise _refusal(path, f"the names {', '.join(differing)} are not in both")
    for name, tensor in expected.items():
        values, read = tensor.values(), found[name]
        if (read.shape, read.dtype) != (values.shape, values.dtype):
            raise _refusal(path, f"{name} is {read.dtype} {read.shape}, expected {values.dtype} {values.shape}")
        if not equal(read, values):
            raise _refusal(path, f"{name} has other values")
        release(buffer)


def largest_difference(tensor: Tensor) -> float:
    """The largest absolute difference that writing ``tensor`` as its dtype makes.

    Raises:
        CheckpointError: a value is too large for the dtype.
    """
    if np.can_cast(tensor.array.dtype, tensor.dtype) or tensor.array.size == 0:
        return 0.0
    with np.errstate(over="ignore"):
        values = tensor.values()
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"holds a value of size {np.abs(tensor.array).max():g}, which {tensor.dtype} cannot "
            f"(at most {np.finfo(tensor.dtype).max:g}); use float32."
        )
    return float(np.abs(values.astype(tensor.array.dtype) - tensor.array).max())


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} read back differs from what was written: {what}; nothing was published. "
        "Check the disk and the memory of this machine, then convert again."
    )
